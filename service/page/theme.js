// Before anything is painted: the theme that was chosen here, else the system's.
"use strict";
(() => {
  try {
    const theme = localStorage.getItem("laminar-theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // Storage may be forbidden; the system's theme then.
  }
})();
