// The picture of a circuit: a target, its sources, what else these feed.

import { diagram } from "./diagram.js";
import { VERDICTS } from "./edges.js";
import { given, percent, visible, weight } from "./format.js";
import { labelOf } from "./labels.js";
import { numberOf, readIndex } from "./names.js";
import { head } from "./pieces.js";
import { place, route } from "./route.js";
import { readEdges, readFeeds } from "./stored.js";
import { h } from "./dom.js";

const SOURCES = 8;
const FED = 5; // latents that one more box brings in
const FIRST_FED = 2; // of each of the strongest sources at first
const ROW = 44;
const COLUMN = 300;

const MARKS = { confirmed: "✓", weaker: "~", "no effect": "✗", opposite: "⇄", unclear: "?", faint: "·" };

const kindOf = (name) => ({ O: "target", I: "source", h: "source", H: "hidden" })[name[0]]; // h3.IF7: a source as a head moves it

const clipped = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

// Latents and edges that are in the picture.
class Circuit {
  constructor(own) {
    this.own = own;
    this.units = new Map();
    this.edges = new Map();
    this.expanded = new Set([own]);
    this.opened = new Set(); // by the reader: their weights are written beside the links
    this.brought = new Map(); // by expanded unit what came with it
  }

  add(name, token, number, by) {
    if (!this.units.has(name)) {
      this.units.set(name, { name, token, number, kind: kindOf(name) });
      if (by) this.brought.set(by, [...(this.brought.get(by) ?? []), name]);
    }
  }

  join(from, to, edge) {
    this.edges.set(`${from} ${to}`, { ...edge, from, to });
  }

  // Takes away what came with a unit, and what came with that.
  collapse(name) {
    this.expanded.delete(name);
    for (const other of this.brought.get(name) ?? []) {
      if (this.expanded.has(other)) this.collapse(other);
      this.units.delete(other);
      for (const [key, edge] of this.edges) if (edge.from === other || edge.to === other) this.edges.delete(key);
    }
    this.brought.delete(name);
  }
}

function addInputs(circuit, name, edges, most) {
  for (const edge of edges.slice(0, most)) {
    circuit.add(edge.name, edge.token, edge.input, name);
    circuit.join(edge.name, name, edge);
    for (const inner of edge.edges ?? []) {
      circuit.add(inner.name, inner.token, numberOf(inner.name), name);
      circuit.join(inner.name, edge.name, inner);
    }
  }
}

async function addFed(circuit, unit, most) {
  const others = (await readFeeds(route.fit, numberOf(unit.name))).filter((edge) => edge.name !== circuit.own);
  for (const edge of others.slice(0, most)) {
    circuit.add(edge.name, edge.token, numberOf(edge.name), unit.name);
    circuit.join(unit.name, edge.name, edge);
  }
}

async function grow(circuit, name) {
  circuit.expanded.add(name);
  const unit = circuit.units.get(name);
  if (unit.kind === "source") return addFed(circuit, unit, FED);
  if (unit.kind === "target") {
    const found = await readEdges(route.fit, numberOf(name));
    if (found) addInputs(circuit, name, found, FED);
  }
  return undefined;
}

const said = (edge, from, to) =>
  `${from} to ${to}: ${edge.weight < 0 ? "−" : "+"}${weight(Math.abs(edge.weight))}, ${edge.verdict ?? "unverified"}` +
  (given(edge.effect) ? `, ${percent(Math.abs(edge.effect))} of the target in the model` : "");

function describedName(unit) {
  const label = labelOf(unit.name);
  return `${unit.name}${given(unit.token) ? ` "${visible(unit.token).trim()}"` : ""}${label ? ` (${label})` : ""}`;
}

function boxesOf(circuit) {
  const units = [...circuit.units.values()];
  const hidden = units.some((unit) => unit.kind === "hidden");
  const columns = { source: 0, hidden: 1, target: hidden ? 3 : 2 };
  const byColumn = new Map();
  for (const unit of units) {
    const column = columns[unit.kind] - (unit.name === circuit.own ? 1 : 0);
    byColumn.set(column, [...(byColumn.get(column) ?? []), unit]);
  }
  const tallest = Math.max(...[...byColumn.values()].map((all) => all.length));
  const boxes = [];
  for (const [column, all] of byColumn) {
    all.forEach((unit, i) => {
      const label = labelOf(unit.name) ?? (given(unit.token) ? `"${visible(unit.token).trim()}"` : "");
      const linked = unit.kind !== "hidden" || (head.has_hidden && route.fit === 0);
      boxes.push({
        id: unit.name,
        x: column * COLUMN,
        y: (i + (tallest - all.length) / 2) * ROW,
        wide: 150,
        high: 36,
        lines: [unit.name, clipped(label, 17)].filter(Boolean),
        says: describedName(unit),
        href: linked && unit.name !== circuit.own ? place(unit.kind, numberOf(unit.name)) : null,
        own: unit.name === circuit.own,
        class: unit.kind,
        expands: unit.name !== circuit.own && unit.kind !== "hidden",
        expanded: circuit.expanded.has(unit.name),
      });
    });
  }
  return boxes;
}

function linksOf(circuit) {
  const edges = [...circuit.edges.values()];
  const most = Math.max(...edges.map((edge) => Math.abs(edge.weight)), 1e-9);
  const into = (edge) => edge.to === circuit.own;
  edges.sort((a, b) => into(a) - into(b) || Math.abs(a.weight) - Math.abs(b.weight)); // the own ones on top
  return edges.map((edge) => {
    const value = `${edge.weight < 0 ? "−" : "+"}${weight(Math.abs(edge.weight))}`;
    const mark = edge.verdict ? ` ${MARKS[edge.verdict]}` : "";
    return {
      from: edge.from,
      to: edge.to,
      width: 1 + 5 * Math.sqrt(Math.abs(edge.weight) / most),
      class: `${edge.weight < 0 ? "takes" : "adds"} ${into(edge) ? "" : "other"} d-${(edge.verdict ?? "unverified").replace(" ", "-")}`,
      says: said(edge, describedName(circuit.units.get(edge.from)), describedName(circuit.units.get(edge.to))),
      label: into(edge) || circuit.opened.has(edge.from) || circuit.opened.has(edge.to) ? value + mark : null,
      labelAt: into(edge) ? null : 0.86,
    };
  });
}

// What marks and lines mean; verdicts only where there are some.
function legend(edges) {
  const used = Object.keys(MARKS).filter((verdict) => edges.some((edge) => edge.verdict === verdict));
  const item = (verdict) => h("span", { title: VERDICTS[verdict] }, `${MARKS[verdict]} ${verdict} · `);
  return h(
    "figcaption",
    { class: "dim small legend" },
    h("span", { class: "plus" }, "green adds"),
    ", ",
    h("span", { class: "minus" }, "red takes away"),
    "; the wider, the larger the weight · ",
    used.length ? used.map(item) : "edges are not verified · ",
    "a box opens its card, + brings in what it is joined to.",
  );
}

export async function circuitPicture(number, circuit) {
  const index = await readIndex();
  const own = `OF${number}`;
  const shown = new Circuit(own);
  shown.add(own, index.token[number], number);
  addInputs(shown, own, circuit.edges, SOURCES);
  shown.brought.delete(own);
  const sources = [...shown.units.values()].filter((unit) => unit.kind === "source");
  for (const unit of sources.slice(0, 4)) await addFed(shown, unit, FIRST_FED);
  const picture = diagram({ label: `The circuit of ${own}`, name: own, expand: change });
  const show = () => {
    const links = linksOf(shown);
    picture.draw({ boxes: boxesOf(shown), links, lines: [...links].reverse().map((link) => link.says) });
  };
  async function change(name) {
    if (shown.expanded.has(name)) {
      shown.collapse(name);
      shown.opened.delete(name);
    } else {
      shown.opened.add(name);
      shown.collapse(name);
      await grow(shown, name);
    }
    show();
  }
  show();
  picture.element.append(legend([...shown.edges.values()]));
  return picture.element;
}
