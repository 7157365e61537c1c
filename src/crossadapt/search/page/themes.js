// System, light, dark: the button and what is kept. theme.js sets it before the first paint.

import { $ } from "./dom.js";

const ALL = ["auto", "light", "dark"];
const root = document.documentElement;

export function wire() {
  $("theme").addEventListener("click", nextTheme);
  label();
}

export function nextTheme() {
  const next = ALL[(ALL.indexOf(current()) + 1) % ALL.length];
  if (next === "auto") delete root.dataset.theme;
  else root.dataset.theme = next;
  try {
    if (next === "auto") localStorage.removeItem("crossadapt-theme");
    else localStorage.setItem("crossadapt-theme", next);
  } catch {
    // Storage can be switched off; the choice then ends with the visit.
  }
  label();
}

const current = () => root.dataset.theme ?? "auto";

function label() {
  const name = current() === "auto" ? "as the system" : current();
  $("theme").setAttribute("aria-label", `Theme: ${name}`);
  $("theme").title = `Theme: ${name} (t)`;
  $("theme-icon").setAttribute("href", `/page/icons.svg#${current()}`);
}
