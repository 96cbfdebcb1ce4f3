// The page: shows the view of the hash, and another when the hash changes.

import { circuits } from "./circuits.js";
import { h, nowhere } from "./dom.js";
import { experiment, experiments } from "./experiments.js";
import { hidden, source, target } from "./latent.js";
import { outliers, sources, units } from "./lists.js";
import { numberOf, readIndex } from "./names.js";
import { overview } from "./overview.js";
import { head, SCHEMA } from "./pieces.js";
import { go, place, read, route } from "./route.js";
import { destination } from "./search.js";

const VIEWS = { "": overview, circuits, sources, units, outliers, experiments, experiment, target, source, hidden };

// The entry of the menu to which a latent's card belongs.
const ABOVE = { target: "circuits", source: "sources", hidden: "units", experiment: "experiments" };

function menu() {
  const entries = [
    ["", "Overview"],
    ["circuits", "Circuits"],
    ["sources", "Sources"],
  ];
  if (head.has_hidden) entries.push(["units", "Hidden units"]);
  entries.push(["outliers", "Outliers"]);
  if (head.experiments.length) entries.push(["experiments", "Experiments"]);
  const current = ABOVE[route.view] ?? route.view;
  const link = ([view, text]) => h("a", { href: place(view), "aria-current": view === current ? "page" : null }, text);
  document.getElementById("nav").replaceChildren(...entries.map(link));
}

let shown = 0;
async function show() {
  read(location.hash, head.fits.length);
  const own = ++shown;
  menu();
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
  window.scrollTo(0, 0);
  for (const job of later) await job();
}

function search(event) {
  event.preventDefault();
  const query = document.getElementById("query").value;
  go(...destination(query, route.view, head.d, numberOf));
}

function start() {
  if (head.schema !== SCHEMA) {
    const text = `This page's data have schema ${head.schema ?? "none"}, its script reads schema ${SCHEMA}: make the report again.`;
    document.getElementById("main").replaceChildren(h("p", { class: "flag" }, text));
    return;
  }
  readIndex(); // most views wait for it
  document.getElementById("search").addEventListener("submit", search);
  window.addEventListener("hashchange", show);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
}

start();
