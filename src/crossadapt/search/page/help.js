// Shortcuts, and what the numbers mean.

import { $, h, sheetHead, showSheet } from "./dom.js";

const KEYS = [
  [["/"], "search box"],
  [["↓"], "from the search box to the results"],
  [["←", "↑", "↓", "→"], "move through the results"],
  [["Home", "End"], "first and last result"],
  [["Enter"], "open the item"],
  [["m"], "more like the chosen item"],
  [["c"], "before and after"],
  [["Esc"], "close; leave the search box"],
  [["t"], "theme: system, light, dark"],
  [["?"], "this help"],
];

export function open(part = "help") {
  const dialog = $("help");
  const keys = KEYS.map(([names, what]) => h("li", {}, what, h("span", {}, ...names.map((name) => h("kbd", {}, name)))));
  const scores = h("h3", { tabindex: "-1" }, "What the scores mean");
  dialog.replaceChildren(
    sheetHead(dialog, "help-title", "Help"),
    h("div", { class: "sheet-body" },
      h("h3", {}, "Keyboard"), h("ul", { class: "keys", role: "list" }, ...keys),
      scores,
      h("p", {}, h("strong", {}, "Percent and bar: the calibrated score. "),
        "Many queries that have nothing to do with the collection were searched too. The score is the share of them that find nothing as striking as this hit. ",
        "99 % stands out; 50 % could be chance. It can be compared between queries."),
      h("p", {}, h("strong", {}, "Last number: the cosine "),
        "between the query and the item, from −1 to 1. It orders the hits of one query, and says little across queries: ",
        "0.3 is much for one model and nothing for another."),
      h("p", {}, h("strong", {}, "With re-ranking "),
        "the first hits stand in the order of a second judgement, the match in an item’s facts, and not of the cosine. Only some models can give it; where the switch is missing, this one cannot."),
      h("h3", {}, "Before and after"),
      h("p", {}, "On the left, what the frozen model finds; on the right, what it finds with the adapter. ▲ 12 has moved up by 12 places, ▼ 3 down by 3; “new” was not in the frozen list, “gone” is no longer in the adapted one. ",
        "The strength slider blends both: 0 % is the frozen model."),
      h("h3", {}, "Pictures"),
      h("p", {}, "Drop a picture anywhere, paste it, or choose a file. Add words to it and set how much they count. A picture is not part of the link of a search. Drag a result onto the page to find more like it.")));
  showSheet(dialog);
  if (part === "scores") {
    scores.focus({ preventScroll: true });
    scores.scrollIntoView({ block: "start" });
    dialog.scrollTop -= 80; // below the head, which stays on top
  }
}
