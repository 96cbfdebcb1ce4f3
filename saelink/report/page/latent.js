// The card of one latent: a target, a source or a hidden unit.

import { choice, h, nowhere, quoted } from "./dom.js";
import { edgeTable, formula, missedTable } from "./edges.js";
import { examplesSection, firingColumns } from "./examples.js";
import { count, digits, percent, told } from "./format.js";
import { inputsSection, logicParts } from "./logic.js";
import { readIndex } from "./names.js";
import { entry, head, piece } from "./pieces.js";
import { go, place, route } from "./route.js";

const TERMS = 8; // of a formula at the head of a card

function neighbours(kind, number, d) {
  const link = (to, text) => h("a", { href: place(kind, to) }, text);
  const fits = head.fits.map((f, i) => [i, digits(f.l1_alpha)]);
  const chosen = (fit) => go(kind, number, { fit: Number(fit) });
  return h(
    "div",
    { class: "pager small" },
    number > 0 ? link(number - 1, "← previous") : null,
    number + 1 < d ? link(number + 1, "next →") : null,
    fits.length > 1 && kind === "target" ? choice("l1_alpha", null, fits, route.fit, chosen) : null,
  );
}

// Where Neuronpedia shows the latent, if it does: nothing is fetched from there, it is only a link.
function neuronpedia(card) {
  const link = { href: card.page, target: "_blank", rel: "noopener noreferrer" };
  return h("p", { class: "small" }, h("a", link, "on Neuronpedia"));
}

function firing(card, later, beside, ablated) {
  if (!card.active) return [h("p", { class: "dim" }, "It never fires on this text.")];
  return [firingColumns(card, later), examplesSection(card, beside, ablated)];
}

function outlierNote(latent) {
  const outlier = head.outliers.find((o) => o.latent === latent);
  if (!outlier) return [];
  return [
    h(
      "p",
      { class: "small" },
      `Outlier: of its activation on test documents ${percent(outlier.first_positions)} is on the first three positions of a sequence, ${percent(outlier.first_delimiter)} on its first delimiter, ${percent(outlier.massive)} on tokens with massive activations.`,
    ),
  ];
}

// How the connector makes a target: formula, logic, edges, what it misses.
function circuitParts(number, circuit, index, later) {
  const { edges, missed } = circuit;
  const terms = told(edges.map((e) => [e.input, e.weight, e.verdict])).slice(0, TERMS);
  const linear = circuit.linear === undefined ? "" : `, ${percent(circuit.linear)} of what is explained linear`;
  const inputs = head.direct ? (head.has_hidden ? "source or hidden unit" : "source") : "hidden unit";
  const parts = [
    h("p", {}, `OF${number} = `, formula(terms, circuit.n_edges, head.direct, index)),
    h(
      "p",
      { class: "dim" },
      `FVU ${digits(circuit.fvu)} on test documents${linear}, fires on ${count(circuit.fired)} of their tokens`,
    ),
    ...logicParts(circuit),
  ];
  if (edges.length) parts.push(h("h3", {}, "Edges"), edgeTable(edges, inputs));
  if (missed?.length) {
    parts.push(h("h3", {}, "Missed: strong effects in the model without an edge"), missedTable(missed));
  }
  const together = inputsSection(circuit, later);
  return together ? [...parts, together] : parts;
}

export async function target(page, later) {
  const index = await readIndex();
  const n = route.number;
  if (!(n >= 0 && n < head.d.target)) return nowhere(page);
  const [card, circuit, ablated] = await Promise.all([
    entry("target", n),
    entry(`circuit${route.fit}`, n),
    piece("ablations/target"),
  ]);
  const flag = index.outlier[n] ? h("span", { class: "flag small" }, " outlier") : null;
  page.append(neighbours("target", n, head.d.target), h("h1", {}, `OF${n} `, quoted(card.token), flag));
  if (card.page) page.append(neuronpedia(card));
  page.append(...outlierNote(n));
  if (circuit) page.append(...circuitParts(n, circuit, index, later));
  else page.append(h("p", { class: "dim" }, "The connector does not explain this latent (targets.*)."));
  page.append(...firing(card, later, circuit?.beside, ablated?.[n]));
}

export async function source(page, later) {
  await readIndex();
  const n = route.number;
  if (!(n >= 0 && n < head.d.source)) return nowhere(page);
  const [card, feeds, ablated] = await Promise.all([
    entry("source", n),
    entry(`feeds${route.fit}`, n),
    piece("ablations/source"),
  ]);
  const outputs = head.has_hidden ? (head.direct ? "target or hidden unit" : "hidden unit") : "target";
  page.append(
    neighbours("source", n, head.d.source),
    h("h1", {}, `${card.name} `, quoted(card.token)),
    h("p", { class: "dim" }, h("code", {}, card.hook)),
  );
  if (card.page) page.append(neuronpedia(card));
  if (feeds && feeds.length) page.append(h("h3", {}, "Feeds"), edgeTable(feeds, outputs));
  else page.append(h("p", { class: "dim" }, "No edge leads from it."));
  page.append(...firing(card, later, null, ablated?.[n]));
}

// Why a hidden unit is in its class.
function classNote({ kind, purity, purity_top, clusters, largest_cluster, rate }) {
  const inputs =
    clusters === null
      ? "too few inputs to cluster"
      : `${clusters} clusters of inputs, the largest ${percent(largest_cluster)}`;
  const text = `: its heaviest token carries ${percent(purity)} of its activation and is ${percent(purity_top)} of its strongest examples; ${inputs}; fires on ${percent(rate)} of held-out tokens`;
  return h("p", {}, h("b", {}, kind), h("span", { class: "dim" }, text));
}

export async function hidden(page, later) {
  await readIndex();
  const n = route.number;
  if (!(n >= 0 && n < head.d.hidden)) return nowhere(page);
  const card = await entry("hidden", n);
  page.append(neighbours("hidden", n, head.d.hidden), h("h1", {}, `H${n} `, quoted(card.token)));
  if (card.classed) page.append(classNote(card.classed));
  page.append(...logicParts(card));
  if (card.edges.length) page.append(h("h3", {}, "Inputs"), edgeTable(card.edges, "source"));
  if (card.feeds.length) page.append(h("h3", {}, "Feeds"), edgeTable(card.feeds, "target"));
  const together = inputsSection(card, later);
  if (together) page.append(together);
  if (card.active) page.append(...firing(card, later));
}
