// The search field: latents are offered as one types, and chosen with the arrow keys or a click.

import { h, quoted } from "./dom.js";
import { labelOf } from "./labels.js";
import { numberOf, readIndex } from "./names.js";
import { head } from "./pieces.js";
import { go, route } from "./route.js";
import { destination, suggestions } from "./search.js";

const OFFERED = 14;

const field = () => document.getElementById("query");
const box = () => document.getElementById("offers");

let chosen = -1;

function close() {
  chosen = -1;
  box().hidden = true;
  field().setAttribute("aria-expanded", "false");
  field().removeAttribute("aria-activedescendant");
}

function choose(number) {
  const options = [...box().children].filter((child) => child.getAttribute("role") === "option");
  if (!options.length) return;
  chosen = (number + options.length) % options.length;
  options.forEach((option, i) => option.setAttribute("aria-selected", String(i === chosen)));
  options[chosen].scrollIntoView({ block: "nearest" });
  field().setAttribute("aria-activedescendant", options[chosen].id);
}

function visit({ kind, number }) {
  close();
  field().value = "";
  field().blur();
  go(kind, number);
}

let offers = [];

async function offer() {
  const query = field().value;
  const index = await readIndex();
  if (query !== field().value) return; // typed on meanwhile
  offers = suggestions(query, index, OFFERED, labelOf);
  chosen = -1;
  field().removeAttribute("aria-activedescendant");
  const option = (o, i) => {
    const label = labelOf(o.name);
    const attributes = {
      id: `offer${i}`,
      role: "option",
      "aria-selected": "false",
      onmousedown: (event) => event.preventDefault(), // the field keeps its focus until the click is done
      onclick: () => visit(o),
    };
    const kind = h("span", { class: "dim small" }, o.kind === "target" ? "target" : "source");
    return h("li", attributes, h("b", {}, o.name), " ", quoted(o.token), label ? ` ${label}` : null, " ", kind);
  };
  box().replaceChildren(...offers.map(option));
  box().hidden = !offers.length;
  field().setAttribute("aria-expanded", String(offers.length > 0));
}

function pressed(event) {
  if (event.key === "Escape") {
    if (box().hidden) field().blur();
    else close();
    event.stopPropagation();
  } else if (box().hidden) return;
  else if (event.key === "ArrowDown") choose(chosen + 1);
  else if (event.key === "ArrowUp") choose(chosen < 0 ? -1 : chosen - 1);
  else if (event.key === "Enter" && chosen >= 0) visit(offers[chosen]);
  else return;
  event.preventDefault();
}

function submitted(event) {
  event.preventDefault();
  const query = field().value;
  close();
  go(...destination(query, route.view, head.d, numberOf));
}

// What the field holds is that of the list that is shown.
export function showQuery() {
  close();
  field().value = route.words.get("q") || "";
}

export function startSearch() {
  const form = document.getElementById("search");
  form.addEventListener("submit", submitted);
  field().addEventListener("input", offer);
  field().addEventListener("focus", () => field().select());
  field().addEventListener("keydown", pressed);
  form.addEventListener("focusout", (event) => {
    if (!form.contains(event.relatedTarget)) close();
  });
}
