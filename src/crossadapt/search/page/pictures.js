// Pictures of items. An <img> cannot send a token, so with one they are fetched and shown as blobs.

import { authorised, hasToken } from "./api.js";

const held = new WeakMap();
const waiting = new WeakMap();
// Only what comes near the screen is fetched, as loading="lazy" does for plain addresses.
const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    near.unobserve(entry.target);
    waiting.get(entry.target)?.();
  }
}, { rootMargin: "400px" });

/** Show an address in an image or video element; "error" is dispatched when it cannot be had. */
export function show(element, address, { lazy = false } = {}) {
  drop(element);
  if (!hasToken()) {
    if (lazy) element.loading = "lazy";
    element.src = address;
    return;
  }
  const load = () => fetchInto(element, address);
  if (!lazy) {
    load();
    return;
  }
  waiting.set(element, load);
  near.observe(element);
}

async function fetchInto(element, address) {
  try {
    const response = await fetch(address, { headers: authorised() });
    if (!response.ok) throw new Error(`${response.status}`);
    const url = URL.createObjectURL(await response.blob());
    held.set(element, url);
    element.src = url;
  } catch {
    element.dispatchEvent(new Event("error"));
  }
}

/** Let go of what an element shows. */
export function drop(element) {
  const url = held.get(element);
  if (url) URL.revokeObjectURL(url);
  held.delete(element);
  near.unobserve(element);
}

/** Let go of everything shown inside an element. */
export function dropAll(container) {
  for (const element of container.querySelectorAll("img, video")) drop(element);
}
