// Keys: / to search, j and k through a list or from card to card, Esc out of where one is.

import { recent } from "./listing.js";
import { go, place, route } from "./route.js";

const typing = (element) => element?.closest?.("input, select, textarea, [contenteditable]");

function walk(step) {
  const rows = [...document.querySelectorAll("main .listing tbody tr")];
  if (!rows.length) {
    document.getElementById(step > 0 ? "next" : "previous")?.click();
    return;
  }
  const at = rows.findIndex((row) => row.contains(document.activeElement));
  const next = rows[Math.max(0, Math.min(rows.length - 1, at < 0 ? 0 : at + step))];
  if (at >= 0 && next === rows[at]) {
    document.getElementById(step > 0 ? "next-page" : "previous-page")?.click();
    return;
  }
  next.querySelector("a")?.focus();
  next.scrollIntoView({ block: "nearest" });
}

// From a card to its list, as one left it where one came from there; from a list that is filtered to all of it.
function leave(above) {
  if (above[route.view]) {
    if (recent.kind === route.view && recent.hash) location.hash = recent.hash;
    else go(above[route.view]);
  } else if ([...route.words.keys()].some((word) => word !== "fit")) {
    location.hash = place(route.view).slice(1);
  }
}

export function startKeys(above) {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (typing(event.target)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.key === "/") document.getElementById("query").focus();
    else if (event.key === "j") walk(1);
    else if (event.key === "k") walk(-1);
    else if (event.key === "Escape") leave(above);
    else return;
    event.preventDefault();
  });
}
