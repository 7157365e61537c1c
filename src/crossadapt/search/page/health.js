// How a collection is: rows, index, recall, fingerprints, ledger, model.

import { $, h, sheetHead, showSheet } from "./dom.js";
import { count, percent, plural, short, viewName } from "./format.js";

const indexed = (health) => !["exact", "none", ""].includes(health.index);

/** "good", "warn" or "bad", and why. */
export function judge(collection) {
  const { health } = collection;
  if (health.problem) return ["bad", "A newer version of it cannot be served"];
  if (indexed(health) && health.unindexed_rows) {
    return ["warn", `${plural(health.unindexed_rows, "row")} not in the index yet`];
  }
  if (health.ledger.count) return ["warn", `${plural(health.ledger.count, "input")} could not be read`];
  return ["good", "Everything is in order"];
}

/** The light of the button in the header. */
export function renderLamp(collection) {
  const [kind, why] = judge(collection);
  $("lamp").className = `lamp ${kind}`;
  $("health-button").disabled = false;
  $("health-button").title = why;
}

export function open(collection, adapters) {
  const dialog = $("health");
  const { health } = collection;
  const [, why] = judge(collection);
  const approximate = indexed(health);
  const tiles = [
    [count(collection.rows), "rows"],
    [count(collection.dim), "numbers per vector"],
    [approximate ? health.index : "exact", "search"],
    [health.recall === null ? "not measured" : percent(health.recall, 1), "recall against exact search"],
  ];
  dialog.replaceChildren(
    sheetHead(dialog, "health-title", `Collection ${collection.name}`),
    h("div", { class: "sheet-body" },
      h("p", {}, `${why}.`, health.problem ? ` ${health.problem}` : ""),
      h("div", { class: "tiles" }, ...tiles.map(([big, small]) => h("div", { class: "tile" }, h("b", {}, big), h("span", {}, small)))),
      h("h3", {}, "Embeddings"), viewTable(collection, adapters),
      h("h3", {}, "Model and storage"),
      list([
        ["backbone", health.backbone],
        ["fingerprint", h("span", { class: "mono" }, health.fingerprint)],
        ["version", count(health.version)],
        ["in the index", approximate ? plural(health.indexed_rows, "row") : "no index: every row is compared"],
        ["not in the index", approximate ? plural(health.unindexed_rows, "row") : null],
      ]),
      h("h3", {}, "Ledger"), ...ledger(health.ledger, collection.name),
      ...health.notes.map((note) => h("p", { class: "small" }, note))));
  showSheet(dialog);
}

const list = (pairs) => h("dl", { class: "facts" }, ...pairs.filter(([, given]) => given !== null)
  .flatMap(([name, given]) => [h("dt", {}, name), h("dd", {}, given)]));

function viewTable(collection, adapters) {
  const head = h("tr", {}, ...["View", "Method", "Trained", "Fingerprint"].map((name) => h("th", { scope: "col" }, name)));
  const rows = collection.views.map((view) => {
    const share = adapters.find((one) => one.name === view.name && one.fingerprint === view.fingerprint)?.share;
    const trained = view.trained ? `${short(view.trained)}${share ? ` (${percent(share, 2)})` : ""}` : "nothing";
    const name = view.name === collection.default_view ? `${viewName(view.name)} (default)` : viewName(view.name);
    return h("tr", {}, h("td", {}, name), h("td", {}, view.method || "no adapter"), h("td", {}, trained),
      h("td", { class: "mono", title: view.fingerprint }, view.fingerprint.slice(0, 16)));
  });
  return h("div", { class: "table-wrap" }, h("table", {}, h("thead", {}, head), h("tbody", {}, ...rows)));
}

function ledger({ count: number, reasons }, name) {
  if (!number) return [h("p", { class: "small" }, "Every input could be read.")];
  const rows = Object.entries(reasons).map(([reason, n]) => h("tr", {}, h("td", {}, reason), h("td", { class: "number" }, count(n))));
  return [
    h("p", { class: "small" }, `${plural(number, "input")} left out; ${name}.ledger.jsonl in the store names each.`),
    h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Reason"), h("th", { scope: "col" }, "Inputs"))), h("tbody", {}, ...rows)),
  ];
}
