// Start, and what happens when the state changes: the search, its errors, and who draws what.

import { Failed, get, Gone, onToken } from "./api.js";
import * as ask from "./ask.js";
import { $, h } from "./dom.js";
import * as facets from "./facets.js";
import { expression, filtersInUse } from "./filter.js";
import { title } from "./format.js";
import * as health from "./health.js";
import * as help from "./help.js";
import * as item from "./item.js";
import * as keys from "./keys.js";
import * as notices from "./notices.js";
import * as options from "./options.js";
import * as panel from "./panel.js";
import * as results from "./results.js";
import { asked, change, onChange, PAGE, readAddress, startOver, state } from "./state.js";
import * as themes from "./themes.js";

const SEARCHED = ["collection", "q", "like", "picture", "exclude", "weight", "view", "strength", "compare", "rerank", "k", "facets", "ranges", "expression"];
const FILTERS = ["collection", "facets", "ranges", "expression"];
let collections = [];
let adapters = [];
let controller = new AbortController();
let answer = null;

const collection = () => collections.find((one) => one.name === state.collection) ?? collections[0];

function wire() {
  themes.wire();
  panel.wire();
  options.wire();
  facets.wire();
  item.wire();
  ask.wire((error) => notices.failure(error, [["Dismiss", notices.clearNotice]]));
  keys.wire((id) => [...(answer?.hits ?? []), ...(answer?.frozen_hits ?? [])].find((hit) => hit.id === id));
  $("help-button").addEventListener("click", () => help.open());
  $("scores-button").addEventListener("click", () => help.open("scores"));
  $("health-button").addEventListener("click", showHealth);
  $("collection").addEventListener("change", (event) => startOver({ collection: event.target.value, q: state.q }));
  $("home").addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    startOver({ collection: state.collection });
  });
  document.addEventListener("click", openLinked);
  window.addEventListener("popstate", readAddress);
  onChange(changed);
  onToken(askToken);
}

/** A click on a card shows the item here; with a modifier key it is a link like any other. */
function openLinked(event) {
  const link = event.target.closest?.(".cell > a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  // From item to item is one step back.
  change({ item: link.parentElement.dataset.id }, state.item ? "replace" : "push");
}

async function boot() {
  stop();
  const { signal } = controller;
  results.loading();
  notices.startClock(stop);
  try {
    [collections, adapters] = await Promise.all([get("/collections", { signal }), get("/adapters", { signal })]);
  } catch (error) {
    fail(error, signal, boot);
    return;
  }
  finished();
  $("collection").replaceChildren(...collections.map((one) => h("option", { value: one.name }, one.name)));
  $("collection").disabled = collections.length < 2;
  fitted = false;
  readAddress();
}

/** The one place where a change of the state becomes work. */
function changed(names, how) {
  if (!collections.length) return;
  const has = (list) => list.some((name) => names.has(name));
  const fresh = names.has("collection") || !fitted;
  if (fresh) fit();
  options.render();
  ask.render(names);
  facets.renderChips();
  if (fresh || has(FILTERS)) facets.refresh(collection());
  if (fresh || has(SEARCHED)) {
    // Further pages belong to one search only.
    if (!fresh && how === "push" && state.k !== PAGE && !names.has("k")) change({ k: PAGE }, "replace");
    else search();
  }
  item.render(collection());
}

let fitted = false;
function fit() {
  fitted = true;
  const known = collections.some((one) => one.name === state.collection);
  if (state.collection && !known) {
    notices.failure({ what: `there is no collection ${state.collection} here`, fix: "choose one of those above" }, [["Dismiss", notices.clearNotice]]);
  }
  $("collection").value = collection().name;
  options.fit(collection(), adapters);
  ask.fit(collection());
  health.renderLamp(collection());
}

/** Search for what the state says; an earlier search that is still under way is dropped. */
async function search() {
  stop();
  const { signal } = controller;
  document.title = state.q ? `${state.q} · crossadapt` : "crossadapt search";
  if (!asked()) {
    answer = null;
    item.among(null);
    notices.clearNotice();
    $("status").textContent = "";
    $("notes").replaceChildren();
    notices.start(collection(), signal);
    return;
  }
  results.loading();
  notices.startClock(() => {
    stop();
    $("status").textContent = "Stopped.";
    if (!answer) results.clear();
  });
  try {
    const found = await get(...request(signal));
    finished();
    notices.clearNotice();
    show(found);
  } catch (error) {
    fail(error, signal, search);
  }
}

function request(signal) {
  const fields = new URLSearchParams({ collection: collection().name, k: state.k });
  const put = (name, value) => value && fields.set(name, value);
  put("q", state.q);
  put("like", state.like);
  put("exclude", state.exclude);
  put("filter", expression(state));
  put("view", state.view);
  if (state.q && (state.like || state.picture)) fields.set("weight", state.weight);
  if (options.strengthInUse() !== 1) fields.set("strength", options.strengthInUse());
  if (options.comparing()) fields.set("compare", "true");
  put("rerank", options.judging());
  const waiting = notices.waiting;
  if (!state.picture) return [`/search?${fields}`, { signal, waiting }];
  const body = new FormData();
  for (const [name, value] of fields) body.set(name, value);
  body.set("image", state.picture.file, state.picture.name);
  return ["/search", { signal, waiting, body }];
}

function show(found) {
  answer = found;
  item.among(found);
  if (found.hits.length) {
    results.render(found, collection().rows);
  } else {
    $("status").textContent = "No hits";
    $("notes").replaceChildren();
    notices.nothing(collection(), filtersInUse(state) > 0);
  }
  if (state.like) nameLiked();
}

/** The box says what the liked item is called; after a reload only its id is known. */
async function nameLiked() {
  const id = state.like;
  try {
    const liked = await get(`/items/${encodeURIComponent(id)}?${new URLSearchParams({ collection: collection().name, neighbours: 0 })}`);
    if (state.like === id) ask.nameLiked(title(liked));
  } catch {
    // Only a name: "like this item" stays.
  }
}

function stop() {
  controller.abort();
  controller = new AbortController();
  finished();
}

function finished() {
  notices.stopClock();
  results.settled();
}

function fail(error, signal, again) {
  if (error.name === "AbortError" || signal.aborted) return;
  finished();
  $("status").textContent = "";
  if (error instanceof Gone) {
    notices.gone(signal, again, state.picture !== null && collections.length > 0);
    if (!answer) results.clear();
    return;
  }
  if (!(error instanceof Failed)) {
    notices.failure({ what: "the page made a mistake", where: String(error), fix: "reload it; if it stays, report it" });
    throw error;
  }
  const actions = [["Try again", again]];
  if (error.where === "filter" || error.status === 422 && filtersInUse(state)) actions.push(["Clear all filters", facets.clearAll]);
  notices.failure(error, actions);
  // What is shown would be taken for the answer to what was asked.
  answer = null;
  item.among(null);
  results.clear();
}

async function showHealth() {
  try {
    collections = await get("/collections");
    health.renderLamp(collection());
  } catch {
    // The numbers of before are still true of what is shown.
  }
  health.open(collection(), adapters);
}

function askToken(wrong) {
  const dialog = $("token");
  $("token-text").textContent = wrong ? "That token is not right. Try again." : "Ask whoever started it; it is kept in this tab only.";
  $("token-value").value = "";
  notices.stopClock();
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve($("token-value").value.trim() || null), { once: true });
  });
}

wire();
boot();
