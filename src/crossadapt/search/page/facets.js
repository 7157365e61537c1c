// Filters: values with counts to tick, ranges of numbers, and an expression for everything else.

import { get } from "./api.js";
import { $, h, icon, later } from "./dom.js";
import { count, value as shown } from "./format.js";
import { expression, filtersInUse } from "./filter.js";
import { change, state } from "./state.js";

const FEW = 8;
const LISTED = 50; // what the server lists at most; above, a column is no list of choices
const open = new Set();
// Columns that were worth a list once: a filter that leaves one value must not make them vanish.
let listed = { collection: "", names: new Set() };
let controller = new AbortController();
// What is typed into range fields and not applied yet: counts that arrive meanwhile redraw them.
const drafts = new Map();

export function wire() {
  const typed = later(() => change({ expression: $("expression").value.trim() }), 500);
  $("expression").addEventListener("input", typed);
  $("clear-filters").addEventListener("click", clearAll);
}

export const clearAll = () => change({ facets: {}, ranges: {}, expression: "" });

/** Ask for the counts and draw them; stays quiet when stopped or when the search says the error. */
export async function refresh(collection) {
  controller.abort();
  controller = new AbortController();
  const { signal } = controller;
  if (listed.collection !== collection.name) listed = { collection: collection.name, names: new Set() };
  const path = (filter) => `/collections/${encodeURIComponent(collection.name)}/facets?${new URLSearchParams({ filter })}`;
  const chosen = Object.keys(state.facets).filter((name) => state.facets[name].length);
  try {
    // The values of a column are counted without its own ticks, else the others would all be 0.
    const [all, ...own] = await Promise.all([
      get(path(expression(state)), { signal }),
      ...chosen.map((name) => get(path(expression(state, name)), { signal })),
    ]);
    const facets = { ...all.facets };
    chosen.forEach((name, index) => {
      facets[name] = own[index].facets[name] ?? [];
    });
    draw(collection, facets);
    $("expression").removeAttribute("aria-invalid");
  } catch (error) {
    if (error.name === "AbortError") return;
    // The search says what is wrong with the filter.
    if (error.status !== 422) return;
    if (state.expression) $("expression").setAttribute("aria-invalid", "true");
    const all = await get(path(""), { signal }).catch(() => null);
    if (all) draw(collection, all.facets);
  }
}

function draw(collection, facets) {
  const parts = [];
  const focused = document.activeElement?.id;
  const number = (name) => ["int", "float", "int64", "float64"].includes(collection.attributes[name]);
  // A range in use stays one, however few values it leaves: its fields may be being typed into.
  const ranged = (name) => number(name) && (name in state.ranges || !ticked(name, facets[name]));
  for (const name of Object.keys(collection.attributes)) {
    if (ranged(name)) parts.push(range(name, facets[name]));
  }
  for (const [name, values] of Object.entries(facets)) {
    if (ranged(name)) continue;
    if (useful(values)) listed.names.add(name);
    if (!state.facets[name]?.length && !listed.names.has(name)) continue;
    parts.push(facet(name, values));
  }
  parts.sort((a, b) => Number(a.dataset.range ?? 0) - Number(b.dataset.range ?? 0));
  $("facets").replaceChildren(...parts);
  if (!parts.length) {
    const why = filtersInUse(state) ? "Nothing passes these filters." : "The items have no attributes; their names and sizes can be used below.";
    $("facets").append(h("p", { class: "small" }, why));
  }
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  const names = [...Object.keys(collection.attributes), "kind", "width", "height", "bytes"];
  $("expression-help").textContent = `Columns: ${names.join(", ")}. Operators: = != < <= > >= in like is null, and or not.`;
}

/** Whether the numbers of a column are few enough to tick, and not simply different everywhere. */
function ticked(name, values) {
  if (!values?.length || values.length > 12) return false;
  return values.length <= FEW || useful(values) || listed.names.has(name);
}

/** A column where every item has its own value, or all the same one, is not worth a list. */
function useful(values) {
  if (values.length < 2) return false;
  // What is cut off at LISTED goes on like this; a shorter list is all there is.
  const own = values.length >= LISTED ? 2 : 1;
  return !(values.length > FEW && values.every((one) => one.count <= own));
}

function facet(name, values) {
  const chosen = state.facets[name] ?? [];
  // What is ticked stays in sight, with 0, when nothing has it any more.
  const missing = chosen.filter((value) => !values.some((one) => one.value === value));
  const all = [...values, ...missing.map((value) => ({ value, count: 0 }))];
  const first = all.filter((one, index) => index < FEW || chosen.includes(one.value));
  const list = open.has(name) ? all : first;
  const rows = list.map((one) => option(name, one, chosen.includes(one.value)));
  const box = h("fieldset", { class: "facet" }, h("legend", {}, name), h("ul", { role: "list", class: open.has(name) ? "all" : null }, ...rows));
  if (all.length > first.length || open.has(name)) {
    const button = h("button", { type: "button", class: "link" }, open.has(name) ? "Show fewer" : `Show all ${all.length}`);
    button.addEventListener("click", () => {
      open[open.has(name) ? "delete" : "add"](name);
      box.replaceWith(facet(name, values));
    });
    box.append(button);
  }
  return box;
}

function option(name, { value, count: number }, ticked) {
  const id = `facet ${name} ${JSON.stringify(value)}`.replaceAll(" ", "-");
  const input = h("input", { type: "checkbox", id, checked: ticked });
  input.addEventListener("change", () => toggle(name, value, input.checked));
  return h("li", {}, h("label", { title: shown(value) }, input,
    h("span", { class: "value" }, shown(value)), h("span", { class: "number" }, count(number), h("span", { class: "sr" }, " items"))));
}

export function toggle(name, value, on) {
  const rest = (state.facets[name] ?? []).filter((one) => one !== value);
  const facets = { ...state.facets, [name]: on ? [...rest, value] : rest };
  if (!facets[name].length) delete facets[name];
  change({ facets });
}

function range(name, values = []) {
  const numbers = values.map((one) => one.value).filter((value) => typeof value === "number");
  // The bounds are only hints, and only known when all values are listed.
  const known = numbers.length && numbers.length < LISTED;
  const ends = [known ? Math.min(...numbers) : "from", known ? Math.max(...numbers) : "to"];
  const now = state.ranges[name] ?? [null, null];
  const inputs = ends.map((end, index) => {
    const id = `range-${name}-${index}`;
    return h("input", {
      class: "field", type: "number", step: "any", id, placeholder: String(end), value: drafts.get(id) ?? now[index],
      "aria-label": `${name}, ${index ? "at most" : "at least"}`,
    });
  });
  const apply = () => {
    for (const input of inputs) drafts.delete(input.id);
    const given = inputs.map((one) => (one.value === "" ? null : one.valueAsNumber));
    const before = state.ranges[name] ?? [null, null];
    if (given.every((end, index) => end === before[index])) return;
    const ranges = { ...state.ranges, [name]: given };
    if (given.every((end) => end === null)) delete ranges[name];
    change({ ranges });
  };
  for (const input of inputs) {
    input.addEventListener("input", () => drafts.set(input.id, input.value));
    // A redrawn field has no edit of its own to report as a change; leaving it applies what it holds.
    for (const kind of ["change", "blur"]) input.addEventListener(kind, () => input.isConnected && apply());
  }
  return h("div", { class: "facet", role: "group", "aria-label": name, "data-range": "1" },
    h("p", { class: "facet-name" }, name), h("div", { class: "range" }, inputs[0], "to", inputs[1]));
}

/** What is filtered by, above the results, each with a button that takes it away. */
export function renderChips() {
  const chips = [];
  for (const [name, values] of Object.entries(state.facets)) {
    for (const value of values) chips.push(chip(`${name}: ${shown(value)}`, () => toggle(name, value, false)));
  }
  for (const [name, [low, high]] of Object.entries(state.ranges)) {
    const text = low === null ? `${name} ≤ ${high}` : high === null ? `${name} ≥ ${low}` : `${name} ${low}–${high}`;
    chips.push(chip(text, () => change({ ranges: Object.fromEntries(Object.entries(state.ranges).filter(([one]) => one !== name)) })));
  }
  if (state.expression) chips.push(chip(state.expression, () => change({ expression: "" })));
  if (state.exclude) chips.push(chip(`without: ${state.exclude}`, () => change({ exclude: "" })));
  $("chips").replaceChildren(...chips);
  $("chips").hidden = !chips.length;
  const used = filtersInUse(state);
  $("clear-filters").hidden = !used;
  $("panel-count").hidden = !used;
  $("panel-count").textContent = used || "";
  if (document.activeElement !== $("expression")) $("expression").value = state.expression;
  if (state.expression) $("advanced").open = true;
}

function chip(text, remove) {
  const button = h("button", { type: "button", class: "chip", "aria-label": `Remove the filter ${text}` }, text, icon("close"));
  button.addEventListener("click", remove);
  return button;
}
