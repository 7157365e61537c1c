// What the page shows, and its address: everything but an uploaded picture is in the URL, so that
// a link can be shared and the back button works.

export const PAGE = 24;
const START = {
  collection: "", q: "", like: "", exclude: "", weight: 0.5, view: "", strength: 1, compare: false,
  rerank: false, k: PAGE, facets: {}, ranges: {}, expression: "", item: "",
};

export const state = { ...structuredClone(START), picture: null };

// Pictures of this visit by number, so that going back finds the one that was searched with.
const pictures = new Map();
let pictureNumber = 0;
const listeners = [];

/** `listener(changed, how)` runs after every change; `changed` is the set of names. */
export const onChange = (listener) => listeners.push(listener);

/**
 * Change the state; false when there is nothing to change.
 * how: "push" a new entry of the history, or "replace" the current one.
 */
export function change(patch, how = "push") {
  const changed = assign(patch);
  if (!changed.size) return false;
  if (changed.has("picture") && state.picture && !state.picture.number) {
    pictureNumber += 1;
    state.picture.number = pictureNumber;
    pictures.set(pictureNumber, state.picture);
  }
  const entry = { picture: state.picture?.number ?? 0, opened: changed.has("item") && Boolean(state.item) && how === "push" };
  if (how === "replace") entry.opened = history.state?.opened ?? false;
  history[how === "push" ? "pushState" : "replaceState"](entry, "", address(state));
  tell(changed, how);
  return true;
}

/** Ask the same again. */
export const repeat = () => tell(new Set(["q"]), "replace");

/** Another collection keeps the question, and nothing that belongs to the old one. */
export function startOver(patch) {
  change({ ...structuredClone(START), picture: null, ...patch });
}

/** Take over what the URL says. */
export function readAddress() {
  const found = parse(new URLSearchParams(location.search));
  const picture = pictures.get(history.state?.picture) ?? null;
  tell(assign({ ...found, picture }), "address");
}

function assign(patch) {
  const changed = new Set();
  for (const [name, value] of Object.entries(patch)) {
    const same = name === "picture" ? state.picture === value : JSON.stringify(state[name]) === JSON.stringify(value);
    if (!same) {
      state[name] = value;
      changed.add(name);
    }
  }
  return changed;
}

function tell(changed, how) {
  for (const listener of listeners) listener(changed, how);
}

/** The address of the page in a state; what is as usual is left out. */
export function address(given) {
  const query = new URLSearchParams();
  const put = (name, value, usual) => value !== usual && query.set(name, value);
  put("c", given.collection, "");
  put("q", given.q, "");
  put("like", given.like, "");
  put("not", given.exclude, "");
  put("w", given.weight, START.weight);
  put("view", given.view, "");
  put("s", given.strength, START.strength);
  put("compare", given.compare ? "1" : "", "");
  put("rerank", given.rerank ? "1" : "", "");
  put("k", given.k, PAGE);
  put("filter", given.expression, "");
  for (const [name, values] of Object.entries(given.facets)) {
    // JSON keeps true, 1 and "1" apart.
    for (const value of values) query.append(`f.${name}`, JSON.stringify(value));
  }
  for (const [name, [low, high]] of Object.entries(given.ranges)) query.set(`r.${name}`, `${low ?? ""}..${high ?? ""}`);
  put("item", given.item, "");
  const text = query.toString();
  return text ? `/?${text}` : "/";
}

function parse(query) {
  const found = structuredClone(START);
  const number = (name, usual, low, high) => {
    const value = Number.parseFloat(query.get(name) ?? "");
    return Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : usual;
  };
  found.collection = query.get("c") ?? "";
  found.q = query.get("q") ?? "";
  found.like = query.get("like") ?? "";
  found.exclude = query.get("not") ?? "";
  found.weight = number("w", START.weight, 0, 1);
  found.view = query.get("view") ?? "";
  found.strength = number("s", 1, 0, 1);
  found.compare = query.get("compare") === "1";
  found.rerank = query.get("rerank") === "1";
  found.k = Math.round(number("k", PAGE, 1, 1000));
  found.expression = query.get("filter") ?? "";
  found.item = query.get("item") ?? "";
  for (const [name, value] of query) {
    if (name.startsWith("f.")) {
      try {
        (found.facets[name.slice(2)] ??= []).push(JSON.parse(value));
      } catch {
        // Typed by hand and not a value: there is no such choice to restore.
      }
    } else if (name.startsWith("r.")) {
      const ends = value.split("..").map((end) => (end === "" || Number.isNaN(Number(end)) ? null : Number(end)));
      if (ends.some((end) => end !== null)) found.ranges[name.slice(2)] = [ends[0] ?? null, ends[1] ?? null];
    }
  }
  return found;
}

/** Whether anything is asked. */
export const asked = () => Boolean(state.q || state.like || state.picture);
