// The keyboard: single keys, and arrows through the results.

import { alike } from "./ask.js";
import { $, typing } from "./dom.js";
import { open as openHelp } from "./help.js";
import { compare } from "./options.js";
import { nextTheme } from "./themes.js";

const content = $("content");

/** `hitOf(id)` gives the hit shown under an id. */
export function wire(hitOf) {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (document.querySelector("dialog:modal")) return;
    if (event.target === $("q")) inBox(event);
    else if (!typing(event.target)) single(event, hitOf);
  });
  // One card can be reached with Tab: the last one that was used.
  content.addEventListener("focusin", (event) => {
    const link = event.target.closest(".cell > a");
    if (!link) return;
    for (const other of links()) other.tabIndex = other === link ? 0 : -1;
  });
}

function inBox(event) {
  if (event.key === "ArrowDown" && links().length) {
    event.preventDefault();
    (links().find((link) => link.tabIndex === 0) ?? links()[0]).focus();
  } else if (event.key === "Escape") {
    event.preventDefault();
    if ($("q").value) {
      $("q").value = "";
      $("q").dispatchEvent(new Event("input"));
    } else {
      $("q").blur();
    }
  }
}

function single(event, hitOf) {
  const here = event.target.closest?.("#content .cell > a");
  if (here && move(here, event.key)) {
    event.preventDefault();
    return;
  }
  const hit = here && hitOf(here.parentElement.dataset.id);
  const actions = {
    "/": () => $("q").focus(),
    c: () => compare(),
    t: nextTheme,
    "?": () => openHelp(),
    m: () => hit && alike(hit),
    ArrowDown: () => document.activeElement === document.body && links()[0]?.focus(),
  };
  const action = Object.hasOwn(actions, event.key) ? actions[event.key] : null;
  if (!action || action() === false) return;
  if (event.key !== "ArrowDown" || document.activeElement !== document.body) event.preventDefault();
  if (event.key === "/") $("q").select();
}

const links = () => [...content.querySelectorAll(".cell > a")];

function move(from, key) {
  const all = links();
  if (key === "Home" || key === "End") return focus(all.at(key === "Home" ? 0 : -1));
  const sides = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const way = sides[key];
  if (!way) return false;
  if (key === "ArrowUp" && !toward(from, all, way)) return focus($("q"));
  // In a grid, right of the last in a row is the first of the next, as when reading.
  const inGrid = from.closest(".grid");
  const step = inGrid && way[0] ? all[all.indexOf(from) + way[0]] : toward(from, all, way);
  return focus(step);
}

function focus(link) {
  if (link) {
    link.focus();
    link.scrollIntoView({ block: "nearest" });
  }
  return true;
}

/** The nearest link in a direction, by where the links are on the screen. */
function toward(from, all, [x, y]) {
  const centre = (link) => {
    const box = link.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
  };
  const [left, top] = centre(from);
  let best = null;
  let least = Infinity;
  for (const link of all) {
    const [a, b] = centre(link);
    const [along, aside] = x ? [(a - left) * x, Math.abs(b - top)] : [(b - top) * y, Math.abs(a - left)];
    const distance = along + 4 * aside;
    if (along > 8 && distance < least) [best, least] = [link, distance];
  }
  return best;
}
