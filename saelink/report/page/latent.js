// The card of one latent: a target, a source or a hidden unit.

import { choice, h, nowhere, quoted } from "./dom.js";
import { edgeTable, formula, missedTable } from "./edges.js";
import { examplesSection, firingColumns } from "./examples.js";
import { count, digits, percent, told } from "./format.js";
import { circuitPicture } from "./graph.js";
import { lazily } from "./history.js";
import { recent } from "./listing.js";
import { inputsSection, logicParts } from "./logic.js";
import { firesOn, meaningSection } from "./meaning.js";
import { headLink, movedSection } from "./moved.js";
import { fitName, readIndex } from "./names.js";
import { head, piece } from "./pieces.js";
import { remarksForm } from "./remarks.js";
import { go, place, route } from "./route.js";
import { besideOf, readCard, readCircuit, readEdges, readFeeds } from "./stored.js";

const TERMS = 8; // of a formula at the head of a card

// To the latents before and behind it: in the list it was chosen from, otherwise by number.
export function neighbours(kind, number, d) {
  const at = recent.kind === kind ? recent.numbers.indexOf(number) : -1;
  const listed = at >= 0 && recent.numbers.length > 1;
  const [before, behind] = listed ? [recent.numbers[at - 1], recent.numbers[at + 1]] : [number - 1, number + 1];
  const link = (id, to, text) => (to >= 0 && to < d ? h("a", { id, href: place(kind, to) }, text) : null);
  const fits = head.fits.map((_, i) => [i, fitName(i)]);
  const chosen = (fit) => go(kind, number, { fit: Number(fit) });
  return h(
    "div",
    { class: "pager small" },
    link("previous", before, "← previous"),
    link("next", behind, "next →"),
    listed ? h("a", { href: recent.hash }, `${count(at + 1)} of ${count(recent.numbers.length)} in the list`) : null,
    fits.length > 1 && kind === "target" ? choice("connector", "fit", fits, route.fit, chosen) : null,
    fits.length > 1 && kind === "target" ? h("a", { href: place("compare", number) }, "compare connectors") : null,
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

// All edges of a target, unpacked when they are asked for.
function everyEdge(number, circuit, inputs) {
  const few = circuit.edges.length;
  if (circuit.n_edges <= few) return null;
  const details = h("details", { id: "all-edges" }, h("summary", {}, `All ${count(circuit.n_edges)} edges`));
  return lazily(details, async () => {
    const found = await readEdges(route.fit, number);
    return found ? [edgeTable(found, inputs)] : [];
  });
}

// How the connector makes a target: formula, logic, edges, what it misses.
async function circuitParts(number, circuit, index, later) {
  const { edges, missed } = circuit;
  const fit = head.fits[route.fit];
  const terms = told(edges.map((e) => [e.input, e.weight, e.verdict])).slice(0, TERMS);
  const linear = circuit.linear === undefined ? "" : `, ${percent(circuit.linear)} of what is explained linear`;
  const inputs = fit.direct ? (fit.hidden ? "source or hidden unit" : "source") : "hidden unit";
  const why = index.fits[route.fit].why[number];
  const parts = [
    h("p", {}, `OF${number} = `, formula(terms, circuit.n_edges, fit.direct, index)),
    h(
      "p",
      { class: "dim" },
      `FVU ${digits(circuit.fvu)} on test documents${linear}, fires on ${count(circuit.fired)} of their tokens`,
    ),
    ...logicParts(circuit, why),
  ];
  if (edges.length) {
    parts.push(await circuitPicture(number, circuit));
    parts.push(h("h2", {}, "Edges"), edgeTable(edges, inputs), everyEdge(number, circuit, inputs));
  }
  if (missed?.length) {
    parts.push(h("h3", {}, "Missed: strong effects in the model without an edge"), missedTable(missed));
  }
  const together = inputsSection(circuit, later);
  return [parts.filter(Boolean), together];
}

export async function target(page, later) {
  const index = await readIndex();
  const n = route.number;
  if (!(n >= 0 && n < head.d.target)) return nowhere(page);
  const [card, circuit, ablated, moved] = await Promise.all([
    readCard("target", n),
    readCircuit(route.fit, n),
    piece("ablations/target"),
    movedSection(n),
  ]);
  const flag = index.outlier[n] ? h("span", { class: "flag small" }, " outlier") : null;
  page.append(
    neighbours("target", n, head.d.target),
    h("h1", {}, `OF${n} `, quoted(card.token), flag),
    h("p", {}, firesOn(card, index.outlier[n])),
    remarksForm(`OF${n}`),
  );
  if (card.page) page.append(neuronpedia(card));
  page.append(...outlierNote(n));
  const [parts, together] = circuit
    ? await circuitParts(n, circuit, index, later)
    : [[h("p", { class: "dim" }, "The connector does not explain this latent (targets.*).")], null];
  page.append(...parts, ...moved, ...meaningSection(card, "target", index), ...firing(card, later, besideOf(circuit?.beside, card.examples), ablated?.[n]));
  if (together) page.append(together);
}

export async function source(page, later) {
  const index = await readIndex();
  const n = route.number;
  if (!(n >= 0 && n < head.d.source)) return nowhere(page);
  const [card, feeds, ablated] = await Promise.all([
    readCard("source", n),
    readFeeds(route.fit, n),
    piece("ablations/source"),
  ]);
  const outputs = head.fits[route.fit].hidden ? (head.fits[route.fit].direct ? "target or hidden unit" : "hidden unit") : "target";
  page.append(
    neighbours("source", n, head.d.source),
    h("h1", {}, `${card.name} `, quoted(card.token)),
    h("p", {}, firesOn(card, 0), h("span", { class: "dim" }, " At ", h("code", {}, card.hook), ".")),
    remarksForm(card.name),
  );
  if (card.page) page.append(neuronpedia(card));
  const width = head.heads?.d_source;
  if (width) page.append(h("p", {}, "Moved by ", headLink(Math.floor(n / width)), "."));
  if (feeds && feeds.length) page.append(h("h2", {}, "Feeds"), edgeTable(feeds, outputs));
  else page.append(h("p", { class: "dim" }, "No edge leads from it."));
  page.append(...meaningSection(card, "source", index), ...firing(card, later, null, ablated?.[n]));
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
  const card = await readCard("hidden", n);
  page.append(neighbours("hidden", n, head.d.hidden), h("h1", {}, `H${n} `, quoted(card.token)), h("p", {}, firesOn(card, 0)));
  if (card.classed) page.append(classNote(card.classed));
  page.append(...logicParts(card));
  if (card.edges.length) page.append(h("h2", {}, "Inputs"), edgeTable(card.edges, "source"));
  if (card.feeds.length) page.append(h("h2", {}, "Feeds"), edgeTable(card.feeds, "target"));
  const together = inputsSection(card, later);
  if (together) page.append(together);
  if (card.active) page.append(...firing(card, later));
}
