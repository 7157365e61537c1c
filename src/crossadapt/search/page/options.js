// View, strength, before and after, excluded words, second look: how to search.

import { $, h, later } from "./dom.js";
import { percent, short, viewName } from "./format.js";
import { change, PAGE, state } from "./state.js";

const FROZEN = "frozen";
// How many of the nearest items are judged: one page of results.
const JUDGED = PAGE;
let collection = null;
let share = () => null;

export const activeView = () => state.view || collection.default_view;
const views = () => collection.views.map((view) => view.name);
export const canCompare = () => views().includes(FROZEN) && views().length > 1;
/** What is really asked: the switch and the slider mean nothing without both embeddings. */
export const comparing = () => state.compare && canCompare() && activeView() !== FROZEN;
export const strengthInUse = () => (canCompare() && activeView() !== FROZEN ? state.strength : 1);
/** How many hits to judge; 0 also where the switch is on and the question cannot be judged. */
export const judging = () => (state.rerank && collection.rerank && state.q && !obstacle() ? JUDGED : 0);

/** Why the server would not judge this question: it judges words, with the model as it is. */
function obstacle() {
  if (state.picture || state.like) return "Not with a picture: it judges words.";
  if (state.exclude) return "Not while words are excluded.";
  if (comparing()) return "Not with before and after.";
  if (strengthInUse() !== 1) return "Not with a part of the adapter.";
  return "";
}

const setStrength = later((value) => change({ strength: value }, "replace"), 60);

export function wire() {
  $("strength").addEventListener("input", (event) => {
    showStrength(event.target.valueAsNumber);
    setStrength(event.target.valueAsNumber);
  });
  $("compare").addEventListener("change", (event) => compare(event.target.checked));
  $("rerank").addEventListener("change", (event) => change({ rerank: event.target.checked }));
  $("rerank-name").textContent = `Re-rank the first ${JUDGED}`;
  const exclude = later(() => change({ exclude: $("exclude").value.trim() }, "replace"), 400);
  $("exclude").addEventListener("input", exclude);
  $("exclude").addEventListener("change", exclude);
}

/** Turn before and after on or off; the frozen view alone has no after. */
export function compare(on = !state.compare) {
  if (!canCompare()) return;
  const patch = { compare: on };
  if (on && activeView() === FROZEN) {
    const adapted = [collection.default_view, ...views()].find((name) => name !== FROZEN);
    patch.view = adapted === collection.default_view ? "" : adapted;
  }
  change(patch);
}

/** Fit the controls to a collection. `adapters`: what /adapters says. */
export function fit(given, adapters) {
  collection = given;
  share = (name) => adapters.find((one) => one.name === name && one.collections.includes(given.name))?.share;
  $("model").hidden = given.views.length < 2;
  $("second").hidden = !given.rerank;
  $("views").replaceChildren(...given.views.map(choice));
  render();
}

function choice(view) {
  const frozen = view.name === FROZEN;
  const part = share(view.name);
  const about = frozen ? "The model without an adapter" :
    [view.method, view.trained && `${short(view.trained)} trained${part ? ` (${percent(part, 2)})` : ""}`].filter(Boolean).join(" · ");
  const input = h("input", { type: "radio", name: "view", value: view.name });
  input.addEventListener("change", () => {
    const patch = { view: view.name === collection.default_view ? "" : view.name };
    if (frozen) patch.compare = false;
    change(patch);
  });
  return h("label", { class: frozen ? "view frozen" : "view" }, input, h("strong", {}, viewName(view.name)), h("span", {}, about));
}

function showStrength(value) {
  $("strength-value").textContent = percent(value);
  $("strength").setAttribute("aria-valuetext", `${percent(value)} of the adapter`);
}

export function render() {
  if (!collection) return;
  for (const input of $("views").querySelectorAll("input")) input.checked = input.value === activeView();
  const off = activeView() === FROZEN;
  $("strength-row").hidden = !canCompare();
  $("strength-row").classList.toggle("off", off);
  $("strength").disabled = off;
  if (document.activeElement !== $("strength")) $("strength").value = state.strength;
  showStrength(off ? 0 : state.strength);
  $("compare-row").hidden = !canCompare();
  $("compare").checked = comparing();
  if (document.activeElement !== $("exclude")) $("exclude").value = state.exclude;
  const why = obstacle();
  $("rerank").disabled = why !== "";
  $("rerank-row").classList.toggle("off", why !== "");
  $("rerank").checked = state.rerank && !why;
  $("rerank-about").textContent = why || "The model judges each of them together with the words. Slower.";
}
