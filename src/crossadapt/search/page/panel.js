// The options: beside the results on a wide screen, a modal drawer on a narrow one.

import { $ } from "./dom.js";

const wide = matchMedia("(min-width: 60rem)");

export function wire() {
  const panel = $("panel");
  const fit = () => {
    if (panel.open) panel.close();
    // Not show(): that would move the focus into it.
    if (wide.matches) panel.setAttribute("open", "");
    panel.setAttribute("role", wide.matches ? "complementary" : "dialog");
  };
  wide.addEventListener("change", fit);
  fit();
  $("panel-open").addEventListener("click", () => panel.showModal());
  $("panel-close").addEventListener("click", () => panel.close());
  panel.addEventListener("click", (event) => {
    if (event.target === panel && event.clientX < panel.getBoundingClientRect().left) panel.close();
  });
}
