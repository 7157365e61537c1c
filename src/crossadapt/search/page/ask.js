// The search box: words, a picture (chosen, pasted or dropped), an item, and their mixture.

import { $, h, later } from "./dom.js";
import { percent, title } from "./format.js";
import { drop, show } from "./pictures.js";
import { change, repeat, state } from "./state.js";

const OWN = "application/x-crossadapt-item";
let say = () => {};
let collectionName = "";
let likeTitle = "";
let shownPicture = null;
let pictureUrl = "";

/** `complain(error)` shows what is wrong with something that was dropped. */
export function wire(complain) {
  say = complain;
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    typed.cancel();
    if (!change({ q: $("q").value.trim() })) repeat();
    // On a phone the keyboard covers what was found.
    if (matchMedia("(pointer: coarse)").matches) $("q").blur();
  });
  const typed = later(() => change({ q: $("q").value.trim() }), 450);
  $("q").addEventListener("input", () => {
    // Emptied by hand: go back to the start at once, as there is nothing to submit.
    if (!$("q").value.trim()) typed();
    else typed.cancel();
  });
  $("choose").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    take($("file").files[0]);
    $("file").value = "";
  });
  $("picture-remove").addEventListener("click", () => {
    change({ picture: null, like: "" });
    $("q").focus();
  });
  const weigh = later((value) => change({ weight: value }, "replace"), 80);
  $("weight").addEventListener("input", (event) => {
    showWeight(event.target.valueAsNumber);
    weigh(event.target.valueAsNumber);
  });
  document.addEventListener("paste", paste);
  wireDrop();
}

/** Search by a file. */
export function take(file) {
  if (!file) return;
  if (file.type && !file.type.startsWith("image/")) {
    say({ what: "that is not a picture", where: file.name, fix: "choose a JPEG, PNG, WebP or another picture" });
    return;
  }
  if (!file.size) {
    say({ what: "the file is empty", where: file.name, fix: "choose another one" });
    return;
  }
  change({ picture: { file, name: file.name || "pasted picture" }, like: "" });
}

/** More like an item of the collection. */
export function alike(hit) {
  likeTitle = title(hit);
  change({ like: hit.id, picture: null, q: "", item: "" });
  scrollTo({ top: 0 });
}

function paste(event) {
  const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
  if (!file || document.querySelector("dialog:modal")) return;
  event.preventDefault();
  take(file);
}

function wireDrop() {
  const wanted = (event) => {
    const types = [...(event.dataTransfer?.types ?? [])];
    return types.includes("Files") || types.includes(OWN) || types.includes("text/uri-list");
  };
  let depth = 0;
  const done = () => {
    depth = 0;
    $("drop").hidden = true;
  };
  document.addEventListener("dragstart", (event) => {
    const cell = event.target.closest?.(".cell");
    if (cell) event.dataTransfer.setData(OWN, cell.dataset.id);
  });
  document.addEventListener("dragenter", (event) => {
    if (!wanted(event)) return;
    event.preventDefault();
    depth += 1;
    $("drop").hidden = false;
  });
  document.addEventListener("dragover", (event) => wanted(event) && event.preventDefault());
  document.addEventListener("dragleave", () => {
    depth -= 1;
    if (depth <= 0) done();
  });
  document.addEventListener("dragend", done);
  document.addEventListener("drop", (event) => {
    if (!wanted(event)) return;
    event.preventDefault();
    done();
    const own = event.dataTransfer.getData(OWN);
    const [file] = event.dataTransfer.files;
    if (own) change({ like: own, picture: null, q: "" });
    else if (file) take(file);
    // An address is not fetched, here or on the server: that would make it a proxy.
    else say({ what: "pictures of other pages cannot be dropped", fix: "copy the picture there and paste it here, or save it and drop the file" });
  });
}

function showWeight(value) {
  $("weight-value").textContent = percent(value);
  $("weight").setAttribute("aria-valuetext", `${percent(value)} words, ${percent(1 - value)} picture`);
}

/** Fit the box to a collection. */
export function fit(collection) {
  collectionName = collection.name;
  $("examples").replaceChildren(...collection.examples.slice(0, 5).map((text) => {
    const chip = h("button", { type: "button", class: "chip" }, text);
    chip.addEventListener("click", () => change({ q: text }));
    return chip;
  }));
}

/** What an item is called, once it is known. */
export function nameLiked(text) {
  likeTitle = text;
  if (state.like) $("picture-name").textContent = `like ${text}`;
}

export function render(changed) {
  if (document.activeElement !== $("q") || changed.has("q") || changed.has("like")) $("q").value = state.q;
  const part = state.picture ?? (state.like ? state.like : null);
  $("picture").hidden = !part;
  $("mix").hidden = !(part && state.q);
  // The start page shows the same examples with pictures.
  $("examples").hidden = !(state.q || part) || !$("examples").children.length;
  $("q").placeholder = part ? "Add words (optional)" : "Describe what you are looking for";
  if (document.activeElement !== $("weight")) $("weight").value = state.weight;
  showWeight(state.weight);
  if (part !== shownPicture) preview(part);
}

function preview(part) {
  shownPicture = part;
  URL.revokeObjectURL(pictureUrl);
  pictureUrl = "";
  const image = $("picture-preview");
  drop(image);
  if (!part) {
    image.removeAttribute("src");
  } else if (typeof part === "string") {
    $("picture-name").textContent = likeTitle ? `like ${likeTitle}` : "like this item";
    show(image, `/thumbnail/${encodeURIComponent(part)}?${new URLSearchParams({ collection: collectionName })}`);
  } else {
    pictureUrl = URL.createObjectURL(part.file);
    image.src = pictureUrl;
    $("picture-name").textContent = part.name;
  }
}
