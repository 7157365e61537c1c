// Sets the theme before the first paint: the choice of before, or that of the system.
(() => {
  let theme = "";
  try {
    theme = localStorage.getItem("crossadapt-theme") ?? "";
  } catch {
    // Storage can be switched off; the system's choice then holds.
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
