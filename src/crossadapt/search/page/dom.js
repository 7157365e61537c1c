// Elements without a framework. Texts from the data only ever become text nodes, never markup.

export const $ = (id) => document.getElementById(id);

/** An element: `h("p", {class: "note", onclick: f}, "text", child, null)`. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value === "boolean") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** An icon of icons.svg; decoration only, so it has no name of its own. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const use = document.createElementNS(space, "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `/page/icons.svg#${name}`);
  svg.append(use);
  return svg;
}

/** Whether keys typed now belong to a field. */
export function typing(target) {
  if (target.closest?.("textarea, select, [contenteditable]")) return true;
  return target.tagName === "INPUT" && !["checkbox", "radio", "button"].includes(target.type);
}

/** `action` at most once per `wait` milliseconds of quiet; `.cancel()` forgets a waiting call. */
export function later(action, wait) {
  let timer;
  const call = (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), wait);
  };
  call.cancel = () => clearTimeout(timer);
  return call;
}

/** Head of a dialog: title and close button. */
export function sheetHead(dialog, id, title, ...buttons) {
  const close = h("button", { type: "button", class: "quiet icon", "aria-label": "Close" }, icon("close"));
  close.addEventListener("click", () => dialog.close());
  return h("div", { class: "sheet-head" }, h("h2", { id }, title), ...buttons, close);
}

/** Show a modal dialog that a click beside it closes. */
export function showSheet(dialog) {
  if (!dialog.dataset.wired) {
    dialog.dataset.wired = "yes";
    dialog.addEventListener("mousedown", (event) => {
      // The backdrop belongs to the dialog; what is inside the dialog is a child of it.
      if (event.target !== dialog) return;
      const box = dialog.getBoundingClientRect();
      const inside = event.clientX >= box.left && event.clientX <= box.right
        && event.clientY >= box.top && event.clientY <= box.bottom;
      if (!inside) dialog.close();
    });
  }
  if (!dialog.open) dialog.showModal();
}
