// The result grid, before and after, and how cards travel when ranks change.

import { card, bones, movedFrom, movedTo, row } from "./cards.js";
import { $, h } from "./dom.js";
import { count, milliseconds, percent, plural, viewName } from "./format.js";
import { dropAll } from "./pictures.js";
import { change, PAGE, state } from "./state.js";

const content = $("content");
const MOST = 1000;
const still = matchMedia("(prefers-reduced-motion: reduce)");

/** Grey shapes where nothing is shown yet; what is shown stays, dimmed. */
export function loading() {
  content.classList.add("busy");
  content.setAttribute("aria-busy", "true");
  if (!content.querySelector(".grid, .versus")) content.replaceChildren(bones(12));
}

export function settled() {
  content.classList.remove("busy");
  content.removeAttribute("aria-busy");
}

export function clear(...children) {
  settled();
  dropAll(content);
  content.replaceChildren(...children);
}

/** Name whose pictures are shown, as their licence asks. */
export function credit(hits) {
  const openmoji = hits.some((hit) => hit.name.startsWith("openmoji:"));
  $("credit").textContent = openmoji ? "Pictures: OpenMoji (openmoji.org), CC BY-SA 4.0" : "";
}

/** Show an answer of /search. */
export function render(answer, total) {
  const before = positions();
  const focused = document.activeElement?.closest?.("#content .cell")?.dataset.id;
  clear(answer.frozen_hits ? versus(answer) : grid(answer));
  travel(before);
  const cells = [...content.querySelectorAll(".cell > a")];
  const same = focused && content.querySelector(`[data-id="${CSS.escape(focused)}"] > a`);
  credit(answer.hits);
  const entry = same || cells[0];
  if (entry) entry.tabIndex = 0;
  if (same) same.focus({ preventScroll: true });
  $("status").replaceChildren(...said(answer, total));
  $("notes").replaceChildren(...answer.notes.map((note) => h("p", { class: "note" }, note)));
}

function grid(answer) {
  const list = h("ul", { class: "grid", role: "list", "aria-label": "Hits, the best first" }, ...answer.hits.map(card));
  const more = answer.hits.length >= state.k && answer.passing > state.k && state.k < MOST;
  if (!more) return list;
  const button = h("button", { type: "button", class: "quiet bordered" }, "Show more");
  button.addEventListener("click", () => change({ k: Math.min(MOST, state.k + PAGE) }, "replace"));
  return h("div", {}, list, h("div", { class: "more" }, button));
}

function versus(answer) {
  const now = new Map(answer.hits.map((hit) => [hit.id, hit.rank]));
  const was = new Set(answer.frozen_hits.map((hit) => hit.id));
  const left = answer.frozen_hits.map((hit) => row(hit, movedTo(now.get(hit.id))));
  const right = answer.hits.map((hit) => row(hit, movedFrom(hit, was.has(hit.id))));
  const strength = answer.strength < 1 ? `, ${percent(answer.strength)}` : "";
  const box = h("div", { class: "versus" },
    side("frozen", "Frozen", "before", left),
    side("adapted", `${viewName(answer.view)}${strength}`, `after · ${changes(answer, was)}`, right));
  // The same item lights up on both sides.
  const mark = (event, on) => {
    const id = event.target.closest?.(".cell")?.dataset.id;
    if (!id) return;
    for (const cell of box.querySelectorAll(`[data-id="${CSS.escape(id)}"] > a`)) cell.classList.toggle("twin", on);
  };
  for (const [name, on] of [["mouseover", true], ["mouseout", false], ["focusin", true], ["focusout", false]]) {
    box.addEventListener(name, (event) => mark(event, on));
  }
  return box;
}

function side(kind, name, about, rows) {
  return h("section", { class: `side ${kind}`, "aria-label": `${name}, ${about}` },
    h("header", {}, h("h3", {}, name), h("span", {}, about)),
    h("ol", { class: "rows", role: "list" }, ...rows));
}

function changes(answer, was) {
  const counts = { new: 0, up: 0, down: 0, same: 0 };
  for (const hit of answer.hits) counts[movedFrom(hit, was.has(hit.id)).kind] += 1;
  const parts = [counts.new && `${counts.new} new`, counts.up && `${counts.up} up`, counts.down && `${counts.down} down`];
  return parts.filter(Boolean).join(", ") || "nothing moved";
}

function said(answer, total) {
  const of = answer.passing < total ? `${count(answer.passing)} that pass the filters` : plural(total, "item");
  const how = answer.plan === "index" ? `index, ${count(answer.searched)} compared` : answer.plan;
  const judged = answer.hits.filter((hit) => hit.match !== null).length;
  const second = judged ? ` · ${count(judged)} re-ranked in ${milliseconds(answer.took_ms.rerank)}` : "";
  return [h("strong", {}, plural(answer.hits.length, "hit")), ` of ${of}`,
    h("span", { class: "aside" }, ` · ${milliseconds(answer.took_ms.total)} · ${how}${second}`)];
}

// --- cards that travel -------------------------------------------------------------------------

function positions() {
  const found = new Map();
  for (const cell of content.querySelectorAll(".grid [data-id]")) found.set(cell.dataset.id, cell.getBoundingClientRect());
  return found;
}

function travel(before) {
  if (still.matches || !before.size) return;
  for (const cell of content.querySelectorAll(".grid [data-id]")) {
    const old = before.get(cell.dataset.id);
    const now = cell.getBoundingClientRect();
    if (now.top > innerHeight) continue;
    const easing = { duration: 260, easing: "cubic-bezier(.2, .7, .2, 1)" };
    if (!old) cell.animate([{ opacity: 0 }, { opacity: 1 }], easing);
    else if (old.left !== now.left || old.top !== now.top) {
      const from = `translate(${old.left - now.left}px, ${old.top - now.top}px)`;
      cell.animate([{ transform: from }, { transform: "none" }], easing);
    }
  }
}
