// The states without results: start, nothing found, slow, failed, server gone.

import { alive, get, pause } from "./api.js";
import { $, h, icon } from "./dom.js";
import { plural } from "./format.js";
import { show } from "./pictures.js";
import { clear, credit } from "./results.js";
import { change } from "./state.js";

const SLOW = 2000;
let slowTimer;

export function clearNotice() {
  $("notice").replaceChildren();
}

function button(text, action, look = "quiet bordered") {
  const made = h("button", { type: "button", class: look }, text);
  made.addEventListener("click", action);
  return made;
}

/** What, where, fix, and what to do about it. */
export function failure(error, actions = []) {
  const where = error.where && h("p", {}, "Where: ", h("code", {}, error.where));
  const fix = error.fix && h("p", {}, `To fix it: ${error.fix}`);
  const buttons = actions.map(([text, action]) => button(text, action));
  $("notice").replaceChildren(h("div", { class: "notice" }, icon("warning"),
    h("h3", {}, sentence(error.what)), where || null, fix || null,
    buttons.length ? h("div", { class: "actions" }, ...buttons) : null));
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** Nobody answers: say so, and go on by itself when the server is back. */
export async function gone(signal, again, uploading) {
  if (uploading && (await alive())) {
    failure({ what: "the connection broke while the picture was sent",
      fix: "it may be larger than the server accepts; try a smaller one" }, [["Try again", again]]);
    return;
  }
  const text = h("p", {}, "Is it still running? Start it with ", h("code", {}, "crossadapt serve"),
    "; this page goes on by itself as soon as it answers.");
  $("notice").replaceChildren(h("div", { class: "notice" }, icon("plug"),
    h("h3", {}, "The server does not answer"), text,
    h("div", { class: "actions" }, button("Try now", again))));
  try {
    for (let wait = 1500; ; wait = Math.min(10000, wait * 1.4)) {
      await pause(wait, signal);
      if (await alive()) break;
    }
    signal.throwIfAborted();
    again();
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  }
}

/** After two seconds of waiting, say that it goes on. `stop` gives up. */
export function startClock(stop) {
  stopClock();
  const began = Date.now();
  slowTimer = setTimeout(() => {
    slowTimer = setInterval(tick, 1000);
    tick();
  }, SLOW);
  function tick() {
    const seconds = Math.round((Date.now() - began) / 1000);
    $("slow").hidden = false;
    // The clock is for the eye; a screen reader is told once.
    $("slow").replaceChildren("Still searching.", h("span", { "aria-hidden": "true" }, `${seconds} s`), button("Stop", stop, "link"));
  }
}

export function stopClock() {
  clearTimeout(slowTimer);
  clearInterval(slowTimer);
  $("slow").hidden = true;
}

/** The server is busy and named a time: the countdown. */
export function waiting(seconds) {
  if (!seconds) return;
  stopClock();
  $("slow").hidden = false;
  $("slow").replaceChildren(`The server is busy; trying again in ${seconds} s.`);
}

/** Nothing passed the filters, or the collection is empty. */
export function nothing(collection, filtered) {
  const what = filtered ? "Nothing passes these filters" : `The collection ${collection.name} is empty`;
  const fix = filtered ? "Take one away, or clear them all." : "Fill it with: crossadapt index PATH --collection ";
  const act = filtered ? h("div", { class: "actions" }, button("Clear all filters", () => change({ facets: {}, ranges: {}, expression: "" }))) : null;
  clear(h("div", { class: "notice calm" }, icon("none"), h("h3", {}, what), h("p", {}, fix, filtered ? null : h("code", {}, collection.name)), act));
}

/** Before anything is asked: example queries with what they find. */
export async function start(collection, signal) {
  const samples = collection.examples.slice(0, 6).map(sample);
  clear(h("div", { class: "start" },
    h("h1", {}, `Search ${plural(collection.rows, "item")}`),
    h("p", {}, "Describe what you are looking for, or drop, paste or choose a picture. ",
      collection.views.length > 1 ? "Turn on “before and after” to see what the adapter changed." : ""),
    h("div", { class: "samples" }, ...samples.map((one) => one.element))));
  for (const { text, frames } of samples) {
    const query = new URLSearchParams({ collection: collection.name, q: text, k: frames.length });
    try {
      // One after the other: a visitor's own search must not wait behind them.
      const { hits } = await get(`/search?${query}`, { signal });
      hits.forEach((hit, index) => fill(frames[index], hit));
      credit(hits);
    } catch (error) {
      if (error.name === "AbortError") return;
      // Decoration only: a real search says what is wrong.
      return;
    }
  }
}

function sample(text) {
  const frames = Array.from({ length: 4 }, () => h("span", { class: "frame bone" }));
  const element = h("button", { type: "button", class: "sample" }, h("span", { class: "four", "aria-hidden": "true" }, ...frames), h("b", {}, text));
  element.addEventListener("click", () => change({ q: text }));
  return { element, frames, text };
}

function fill(frame, hit) {
  const image = h("img", { alt: "" });
  image.addEventListener("load", () => image.classList.add("ready"));
  frame.classList.remove("bone");
  frame.append(image);
  show(image, hit.thumbnail, { lazy: true });
}
