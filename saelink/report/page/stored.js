// Cards and circuits as views want them, out of what the page stores: see stored.py.

import { riseAt, shareAt, spread, weightsAt } from "./levels.js";
import { readIndex } from "./names.js";
import { entry, head, piece } from "./pieces.js";

const SHOWN = 12; // edges of a card

// Where each latent's rows are in the columns of a piece.
const places = new WeakMap();
function placeOf(columns, number) {
  if (!places.has(columns)) {
    const begins = new Map();
    let [row, few] = [0, 0];
    columns.latent.forEach((latent, i) => {
      begins.set(latent, { row, few, n: columns.n[i] });
      row += columns.n[i];
      few += Math.min(columns.n[i], columns.shown);
    });
    places.set(columns, begins);
  }
  return places.get(columns).get(number);
}

// The edges of one latent with the number of their other end; null where the columns have no such latent.
export function rows(columns, number, verdicts) {
  const at = placeOf(columns, number);
  if (!at) return null;
  const part = (values) => values.slice(at.row, at.row + at.n);
  const [numbers, weights, rises] = [part(columns.number), weightsAt(part(columns.weight)), part(columns.rise)];
  const told = columns.verdict ? ["verdict", "claim", "effect"].map((name) => part(columns[name])) : null;
  const few = Object.entries(columns.few);
  return numbers.map((to, i) => {
    const edge = { number: to, weight: weights[i], rise: riseAt(rises[i]) };
    if (told && told[0][i] !== null) {
      Object.assign(edge, { verdict: verdicts[told[0][i]], claim: shareAt(told[1][i]), effect: shareAt(told[2][i]) });
    }
    for (const [name, values] of i < columns.shown ? few : []) {
      if (values[at.few + i] !== null) edge[name] = values[at.few + i];
    }
    return edge;
  });
}

async function edges(kind, fit, number) {
  const columns = await piece(`${kind}${fit}/${Math.floor(number / head.piece)}`);
  return columns ? rows(columns, number, head.verdicts) : null;
}

// Every edge into a target; null where the connector does not explain it.
export async function readEdges(fit, number) {
  const [index, found] = await Promise.all([readIndex(), edges("edges", fit, number)]);
  const { direct } = head.fits[fit];
  return (
    found?.map(({ number: input, token = null, ...edge }) => ({
      ...edge,
      input,
      name: input < direct ? index.source_name[input] : `H${input - direct}`,
      token: input < direct ? index.source_token[input] : token,
    })) ?? null
  );
}

// What a source feeds most.
export async function readFeeds(fit, number) {
  const [index, found] = await Promise.all([readIndex(), edges("feeds", fit, number)]);
  return (found ?? []).map(({ number: to, token = null, ...edge }) => ({
    ...edge,
    name: to < 0 ? `H${-1 - to}` : `OF${to}`,
    token: to < 0 ? token : index.token[to],
  }));
}

// What predicts a target, with its strongest edges; undefined where the connector does not explain it.
export async function readCircuit(fit, number) {
  const [found, all] = await Promise.all([entry(`circuit${fit}`, number), readEdges(fit, number)]);
  return found && { ...found, edges: (all ?? []).slice(0, SHOWN) };
}

// An example's place taken apart, and the text around it out of its sequence's stretches.
export function textAt(place, stretches, { context, sequences, window }) {
  let sequence = Math.floor(place / context);
  const position = place - sequence * context;
  let own = null;
  for (const [split, n] of sequences) {
    own ??= sequence < n ? split : null;
    sequence -= n;
  }
  const stretch = stretches.find((s) => s.at <= position && position < s.at + s.tokens.length);
  const here = position - stretch.at;
  const first = Math.max(here - window, 0);
  const [, document] = stretch.documents.findLast(([begin]) => begin <= here);
  return { split: own, place, position, document, at: here - first, tokens: stretch.tokens.slice(first, here + window + 1) };
}

async function example(stored, i) {
  const sequence = Math.floor(stored.place[i] / head.context);
  const texts = await piece(`text/${Math.floor(sequence / head.text_piece)}`);
  const text = textAt(stored.place[i], texts[sequence], head);
  const values = spread(stored.values[i], text.tokens.length);
  return { ...text, kind: stored.kind[i], value: stored.value[i], values };
}

// What a latent fires on, with its examples: kind is target, source or hidden.
export async function readCard(kind, number) {
  const found = await entry(kind, number);
  const examples = await Promise.all(found.examples.place.map((_, i) => example(found.examples, i)));
  return { ...found, examples };
}

// What was predicted under each of a card's examples, and its inputs there; undefined where the page keeps none.
export function besideOf(stored, examples) {
  return stored?.rows.map(([predicted, ...inputs], i) => {
    const n = examples[i].tokens.length;
    const named = inputs.map((values, j) => ({ name: stored.names[j], values: spread(values, n) }));
    return { predicted: spread(predicted, n), inputs: named };
  });
}
