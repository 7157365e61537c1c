// One hit as a card of the grid or a row of a ranked list. Each is a link, so that it can be opened
// in another tab; one of each group can be reached with Tab, the others with the arrow keys.

import { h, icon } from "./dom.js";
import { cosine, count, duration, percent, title } from "./format.js";
import { show } from "./pictures.js";
import { address, state } from "./state.js";

const link = (hit) => address({ ...state, item: hit.id });

function frame(hit) {
  const image = h("img", { alt: "", decoding: "async" });
  const ratio = hit.width && hit.height ? hit.width / hit.height : 1;
  // A picture that is nearly square fills its tile; of a panorama nothing may be cut off.
  if (ratio > 1.6 || ratio < 0.625) image.classList.add("whole");
  image.addEventListener("load", () => image.classList.add("ready"));
  const box = h("span", { class: "frame" }, image);
  image.addEventListener("error", () => {
    image.remove();
    box.classList.add("broken");
  });
  show(image, hit.thumbnail, { lazy: true });
  if (hit.kind === "video") {
    const length = hit.duration ? duration(hit.duration) : "video";
    box.append(h("span", { class: "badge" }, icon("play"), length));
  }
  return box;
}

function caption(hit) {
  return h("span", { class: hit.texts.length ? "caption" : "caption nameless" }, title(hit));
}

function scores(hit) {
  const parts = [];
  if (hit.calibrated !== null) {
    const meter = h("span", { class: "meter" });
    meter.style.setProperty("--value", hit.calibrated);
    parts.push(meter, h("span", {}, percent(hit.calibrated)));
  }
  parts.push(h("span", { class: "cosine" }, cosine(hit.cosine)));
  return h("span", { class: "scores", title: "Calibrated score, and cosine. The ⓘ button explains them." }, ...parts);
}

function spoken(hit, moved) {
  const parts = [`${hit.rank}. ${title(hit)}`];
  if (hit.kind === "video") parts.push(`video, ${duration(hit.duration)}`);
  if (hit.start) parts.push(`found at ${duration(hit.start)}`);
  if (hit.calibrated !== null) parts.push(`score ${percent(hit.calibrated)}`);
  parts.push(`cosine ${cosine(hit.cosine)}`);
  if (moved) parts.push(moved.spoken);
  return parts.join(", ");
}

/** A tile of the grid. */
export function card(hit) {
  const anchor = h("a", { class: "card", href: link(hit), "aria-label": spoken(hit), tabindex: "-1" },
    frame(hit), caption(hit), scores(hit));
  return h("li", { class: "cell", "data-id": hit.id }, anchor);
}

/** A row of a ranked list, with how it moved. */
export function row(hit, moved) {
  const anchor = h("a", { class: `row ${moved.kind}`, href: link(hit), "aria-label": spoken(hit, moved), tabindex: "-1" },
    h("span", { class: "rank" }, String(hit.rank)), frame(hit),
    h("span", { class: "text" }, caption(hit), scores(hit)),
    h("span", { class: `move ${moved.kind}`, title: moved.spoken }, moved.sign, moved.note && h("small", {}, moved.note)));
  return h("li", { class: "cell", "data-id": hit.id }, anchor);
}

/** How an adapted hit stands against the frozen model's ranks. */
export function movedFrom(hit, inFrozen) {
  const before = hit.frozen_rank;
  if (!inFrozen) {
    const was = before ? `was ${count(before)}` : "";
    return { kind: "new", sign: "new", note: was, spoken: before ? `new in the list, was ${count(before)}` : "new in the list" };
  }
  const by = before - hit.rank;
  if (by > 0) return { kind: "up", sign: `▲ ${by}`, note: `was ${before}`, spoken: `up ${by}, was ${before}` };
  if (by < 0) return { kind: "down", sign: `▼ ${-by}`, note: `was ${before}`, spoken: `down ${-by}, was ${before}` };
  return { kind: "same", sign: "=", note: "", spoken: "same rank as before" };
}

/** Where a frozen hit went. */
export function movedTo(rank) {
  if (rank) return { kind: "same", sign: `→ ${rank}`, note: "", spoken: `now at ${rank}` };
  return { kind: "left", sign: "gone", note: "", spoken: "no longer in the list" };
}

/** A small card of the item dialog. */
export function neighbour(hit) {
  return h("li", { class: "cell", "data-id": hit.id },
    h("a", { class: "card", href: link(hit), "aria-label": `${title(hit)}, cosine ${cosine(hit.cosine)}` }, frame(hit), caption(hit)));
}

export function bones(number) {
  const one = () => h("li", { class: "cell" },
    h("span", { class: "bone square" }), h("div", { class: "bone line" }), h("div", { class: "bone line short" }));
  return h("ul", { class: "grid", "aria-hidden": "true" }, ...Array.from({ length: number }, one));
}
