// The page: shows the view of the hash, and another when the hash changes.

import { circuits } from "./circuits.js";
import { compare } from "./compare.js";
import { h, nowhere } from "./dom.js";
import { experiment, experiments } from "./experiments.js";
import { headList, headPage } from "./heads.js";
import { returnTo, startHistory } from "./history.js";
import { startKeys } from "./keys.js";
import { hidden, source, target } from "./latent.js";
import { outliers, sources, units } from "./lists.js";
import { readIndex } from "./names.js";
import { overview } from "./overview.js";
import { head, SCHEMA } from "./pieces.js";
import { place, read, route } from "./route.js";
import { showQuery, startSearch } from "./suggest.js";

const VIEWS = { "": overview, circuits, sources, units, outliers, experiments, experiment, target, source, hidden, compare, heads: headList, head: headPage };

// The entry of the menu to which a latent's card belongs.
const ABOVE = { target: "circuits", source: "sources", hidden: "units", experiment: "experiments", compare: "circuits", head: "heads" };

function menu() {
  const entries = [
    ["", "Overview"],
    ["circuits", "Circuits"],
    ["sources", "Sources"],
  ];
  if (head.has_hidden) entries.push(["units", "Hidden units"]);
  if (head.heads) entries.push(["heads", "Heads"]);
  entries.push(["outliers", "Outliers"]);
  if (head.experiments.length) entries.push(["experiments", "Experiments"]);
  const current = ABOVE[route.view] ?? route.view;
  const link = ([view, text]) =>
    h("a", { id: `menu-${view}`, href: place(view), "aria-current": view === current ? "page" : null }, text);
  document.getElementById("nav").replaceChildren(...entries.map(link));
}

let shown = 0;
async function show() {
  const before = `${route.view}/${route.number}`;
  read(location.hash, head.fits.length);
  const own = ++shown;
  const focused = document.activeElement;
  menu();
  showQuery();
  const page = h("div");
  const later = []; // what needs the page to be in its place: plots
  try {
    await (VIEWS[route.view] ?? nowhere)(page, later);
  } catch (error) {
    page.append(h("p", { class: "flag" }, `This part of the page can't be read: ${error.message}`));
    console.error(error);
  }
  if (own !== shown) return; // another view was asked for meanwhile
  document.getElementById("main").replaceChildren(page);
  const name = page.querySelector("h1")?.textContent.trim();
  document.title = [name === head.title ? null : name, head.title, "saelink"].filter(Boolean).join(" · ");
  await returnTo(page, focused, before === `${route.view}/${route.number}`);
  for (const job of later) {
    if (own !== shown) return;
    await job();
  }
}

function start() {
  if (head.schema !== SCHEMA) {
    const text = `This page's data have schema ${head.schema ?? "none"}, its script reads schema ${SCHEMA}: make the report again.`;
    document.getElementById("main").replaceChildren(h("p", { class: "flag" }, text));
    return;
  }
  readIndex(); // most views wait for it
  startSearch();
  startKeys(ABOVE);
  startHistory();
  window.addEventListener("hashchange", show);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
}

start();
