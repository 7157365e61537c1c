// One item: picture or video, captions, facts, neighbours.

import { get, Gone } from "./api.js";
import { alike } from "./ask.js";
import { bones, neighbour } from "./cards.js";
import { $, h, icon, sheetHead, showSheet } from "./dom.js";
import { bytes, cosine, day, duration, title, value } from "./format.js";
import { activeView } from "./options.js";
import { dropAll, show } from "./pictures.js";
import { change, state } from "./state.js";

const dialog = $("item");
let controller = new AbortController();
let lastAnswer = null;
let shown = "";

export function wire() {
  dialog.addEventListener("close", () => {
    controller.abort();
    stopMedia();
    shown = "";
    dialog.replaceChildren();
    if (!state.item) return;
    const was = state.item;
    // Closing undoes the step that opened it, so that "back" does not open it again.
    if (history.state?.opened) history.back();
    else change({ item: "" }, "replace");
    const cell = document.querySelector(`#content [data-id="${CSS.escape(was)}"] > a`);
    cell?.focus({ preventScroll: true });
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.target.closest("video") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
  });
}

/** The hits among which the arrow keys go on. */
export function among(answer) {
  lastAnswer = answer;
}

/** Follow the state: open, show another item, or close. */
export function render(collection) {
  if (!state.item) {
    if (dialog.open) dialog.close();
    return;
  }
  if (shown === state.item) return;
  shown = state.item;
  load(collection, state.item);
}

function hits() {
  return lastAnswer ? [...lastAnswer.hits, ...(lastAnswer.frozen_hits ?? [])] : [];
}

function step(by) {
  const list = lastAnswer?.hits ?? [];
  const at = list.findIndex((hit) => hit.id === state.item);
  const next = list[at + by];
  if (at >= 0 && next) change({ item: next.id }, "replace");
}

async function load(collection, id) {
  controller.abort();
  controller = new AbortController();
  const hit = hits().find((one) => one.id === id);
  stopMedia();
  fill(head(hit ? title(hit) : "Item", id), h("div", { class: "sheet-body", "aria-busy": "true" }, bones(4)));
  showSheet(dialog);
  if (!dialog.contains(document.activeElement)) dialog.focus();
  const query = new URLSearchParams({ collection: collection.name, neighbours: 12, view: activeView() });
  try {
    const item = await get(`/items/${encodeURIComponent(id)}?${query}`, { signal: controller.signal });
    fill(head(title(item), id), body(item, hit));
    dialog.scrollTop = 0;
    dialog.setAttribute("aria-label", title(item));
  } catch (error) {
    if (error.name === "AbortError") return;
    const told = error instanceof Gone ? { what: "The server does not answer", fix: "start it again, then reopen the item" } : error;
    fill(head("This item cannot be shown", id), h("div", { class: "sheet-body" },
      h("div", { class: "notice", role: "alert" }, icon("warning"), h("h3", {}, told.what), told.fix && h("p", {}, told.fix))));
  }
}

/** Replace what the dialog shows; the focus stays where it was, or in the dialog at least. */
function fill(...children) {
  const inside = dialog.contains(document.activeElement);
  const label = inside ? document.activeElement.getAttribute("aria-label") : null;
  dialog.replaceChildren(...children);
  if (!inside) return;
  const same = label && dialog.querySelector(`button[aria-label="${CSS.escape(label)}"]:not(:disabled)`);
  (same || dialog).focus({ preventScroll: true });
}

function head(text, id) {
  const list = lastAnswer?.hits ?? [];
  const at = list.findIndex((hit) => hit.id === id);
  const arrow = (name, label, by) => {
    const button = h("button", { type: "button", class: "quiet icon", "aria-label": label, disabled: !list[at + by] }, icon(name));
    button.addEventListener("click", () => step(by));
    return button;
  };
  const arrows = at >= 0 ? [arrow("left", "Previous hit", -1), arrow("right", "Next hit", 1)] : [];
  return sheetHead(dialog, "item-title", text, ...arrows);
}

function body(item, hit) {
  const more = h("button", { type: "button", class: "primary" }, "More like this");
  more.addEventListener("click", () => alike(item));
  const original = h("button", { type: "button", class: "quiet bordered" }, icon("open"), "Open the original");
  original.addEventListener("click", () => openOriginal(item));
  const texts = item.texts.length ? item.texts : [item.name];
  const near = item.neighbours.length
    ? [h("h3", {}, "Neighbours"), h("ul", { class: "neighbours", role: "list" }, ...item.neighbours.map(neighbour))] : [];
  return h("div", { class: "sheet-body" },
    h("div", { class: "look" }, stage(item, hit),
      h("div", {}, h("ul", { class: "captions", role: "list", "aria-label": "Captions" }, ...texts.map((text) => h("li", {}, text))),
        facts(item, hit), h("div", { class: "actions" }, more, original))),
    ...near);
}

function stage(item, hit) {
  const box = h("div", { class: "stage" });
  box.append(item.kind === "video" ? video(item, hit, box) : picture(item, box));
  return box;
}

function picture(item, box) {
  // The small picture is there at once; the original takes its place when it has come.
  const image = h("img", { alt: title(item), class: item.width && item.width < 400 ? "small-one" : null });
  show(image, item.thumbnail);
  const full = h("img", { alt: title(item), class: image.className });
  full.addEventListener("load", () => image.isConnected && image.replaceWith(full), { once: true });
  image.addEventListener("error", () => image.replaceWith(h("p", {}, "The picture cannot be shown.")));
  show(full, item.file);
  return image;
}

function video(item, hit, box) {
  const player = h("video", { controls: true, preload: "metadata", playsinline: true, "aria-label": title(item) });
  player.addEventListener("loadedmetadata", () => {
    if (hit?.start) player.currentTime = hit.start;
    // Only where it was found: who comes by a link has not clicked, and nothing moves unasked.
    if (hit && !matchMedia("(prefers-reduced-motion: reduce)").matches) player.play().catch(() => {});
  }, { once: true });
  player.addEventListener("error", () => {
    const image = h("img", { alt: title(item) });
    show(image, item.thumbnail);
    box.replaceChildren(image, h("p", {}, "The browser cannot play this video, or it has changed since it was indexed."));
  }, { once: true });
  show(player, item.file);
  return player;
}

function facts(item, hit) {
  const rows = [];
  if (hit) rows.push(["rank", String(hit.rank)]);
  if (hit?.match != null) rows.push(["match", cosine(hit.match)]);
  if (hit?.start) rows.push(["found at", duration(hit.start)]);
  for (const [name, given] of Object.entries(item.attributes)) rows.push([name, value(given)]);
  if (item.width) rows.push(["size", `${item.width} × ${item.height}`]);
  if (item.duration) rows.push(["duration", duration(item.duration)]);
  if (item.bytes) rows.push(["file", `${item.name}, ${bytes(item.bytes)}`]);
  else rows.push(["name", item.name]);
  if (item.modified) rows.push(["changed", day(item.modified)]);
  return h("dl", { class: "facts" }, ...rows.flatMap(([name, given]) => [h("dt", {}, name), h("dd", {}, given)]),
    h("dt", {}, "id"), h("dd", { class: "mono" }, item.id));
}

function openOriginal(item) {
  // What is shown already may be a blob that was fetched with the token; a plain address has none.
  const shownNow = dialog.querySelector(".stage img, .stage video");
  const blob = shownNow?.src.startsWith("blob:") ? shownNow.src : "";
  window.open(blob || item.file, "_blank", "noopener");
}

function stopMedia() {
  dropAll(dialog);
  for (const player of dialog.querySelectorAll("video")) {
    player.pause();
    player.removeAttribute("src");
    player.load();
  }
}
