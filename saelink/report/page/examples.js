// What a latent fires on: its tokens, how strongly, and examples with what the connector predicts there.

import { column, figure, h, quoted, table } from "./dom.js";
import { count, digits, given, percent, shade, visible, weight } from "./format.js";
import { lazily } from "./history.js";
import { nameLink } from "./names.js";
import { head } from "./pieces.js";
import { sizesPlot } from "./plots.js";

const KINDS = { top: "strongest", size: "of its size", random: "at random" };
const BEFORE = 10; // tokens before the example's own that an ablation covers

// Values that round to nothing are left empty.
const above = (values, least) => values.map((v) => (Math.abs(v) < least ? 0 : v));

// A row under an example's tokens: values with their shade, where `most` is the darkest.
function valueRow(example, label, values, most, unit) {
  const cell = (value, i) => {
    const attributes = {
      class: i === example.at ? "at" : null,
      style: value ? shade(value, most) : null,
      title: given(value) ? `${digits(value)} ${unit}` : null,
    };
    return h("td", attributes, value ? weight(value) : "");
  };
  return h("tr", { class: "small" }, label, values.map(cell));
}

const rowName = (text, title) => h("th", { scope: "row", title }, text);

function tokenRow(example, most) {
  const cell = (token, i) => {
    const attributes = {
      class: i === example.at ? "at" : null,
      style: shade(example.values[i], most),
      title: `${digits(example.values[i])} of its SAE's mean`,
    };
    return h("td", attributes, visible(token) || " ");
  };
  return h("tr", { class: "text" }, rowName(digits(example.value)), example.tokens.map(cell));
}

// What the connector predicts on the example's tokens, and its strongest inputs there.
function predictionRows(example, most, beside) {
  const input = ({ name, values }) => valueRow(example, rowName(nameLink(name)), values, Math.max(...values, 1), name);
  return [
    valueRow(example, rowName("predicted"), above(beside.predicted, 0.05 * most), most, "predicted"),
    ...beside.inputs.map(input),
  ];
}

// What the model loses on the example's tokens without the latent, and the latent without each token.
function ablationRows(example, ablated) {
  const shift = BEFORE - example.at;
  const part = (values) => values.slice(shift, shift + example.tokens.length);
  const change = part(ablated.tokens).map((v) => v ?? 0);
  const context = part(ablated.context).map((v) => (given(v) ? v - 1 : 0));
  return [
    valueRow(
      example,
      rowName("Δ log p", "change of each token's log-probability in nats when the latent's contribution is taken away"),
      above(change, 0.005),
      1,
      "nats",
    ),
    valueRow(
      example,
      rowName(
        "without it",
        "change of the latent's activation on the marked token when this one is left out, as a share",
      ),
      above(context, 0.02),
      1,
      "of the activation",
    ),
  ];
}

// The example as text that flows, its tokens shaded; the marked one is set off.
function flowing(example, most) {
  const token = (text, i) =>
    h(
      i === example.at ? "mark" : "span",
      {
        class: "tok",
        style: shade(example.values[i], most),
        title: example.values[i] ? `${digits(example.values[i])} of its SAE's mean` : null,
      },
      visible(text),
    );
  return h("p", { class: "flowing" }, example.tokens.map(token));
}

function exampleRows(example, most, beside, ablated) {
  const rows = [tokenRow(example, most), valueRow(example, rowName("activation"), example.values, most, "of its SAE's mean")];
  if (beside) rows.push(...predictionRows(example, most, beside));
  if (ablated) rows.push(...ablationRows(example, ablated));
  const scrolled = { class: "scroll", tabindex: "0", role: "region", "aria-label": "values token by token" };
  return h("div", scrolled, h("table", { class: "grid" }, h("tbody", {}, rows)));
}

function exampleParts(example, most, beside, ablated) {
  const where = `${KINDS[example.kind]} ${digits(example.value)} · ${example.split} document ${count(example.document)}, position ${example.position}`;
  const tokens = ablated?.needs === 1 ? "token" : "tokens";
  const needs = ablated ? ` · needs ${count(ablated.needs)} ${tokens} for half its activation` : null;
  const predicted = beside ? ` · predicted ${digits(beside.predicted[example.at], 2)}` : null;
  const details = h("details", { class: "rows" }, h("summary", { class: "dim small" }, where, predicted, needs));
  lazily(details, () => exampleRows(example, most, beside, ablated));
  return h("div", { class: "example" }, flowing(example, most), details);
}

export function firingColumns(card, later) {
  const half = digits(card.quantiles["0.5"], 2);
  const where = h("div", { class: "plot low", role: "img", "aria-label": `Histogram of the sizes of its activations, half below ${half}` });
  const unit = card.name.startsWith("H") ? "activation, in the units' mean" : "activation, in the SAE's mean";
  later.push(() => sizesPlot(where, card.histogram, unit));
  const quantile = (q) => digits(card.quantiles[q], 2);
  const rate = percent(card.active / Math.max(card.tokens_seen, 1));
  return h(
    "div",
    { class: "columns" },
    h(
      "section",
      {},
      h("h3", {}, "Tokens"),
      table(
        [
          column("token", (t) => quoted(t.token)),
          figure("share of its activation", (t) => percent(t.share)),
          figure("fires on", (t) => `${count(t.fires)} of ${count(t.occurs)}`),
        ],
        card.tokens,
      ),
    ),
    h(
      "section",
      {},
      h("h3", {}, "Sizes"),
      h(
        "p",
        { class: "dim small" },
        `fires on ${count(card.active)} of ${count(card.tokens_seen)} tokens (${rate}); half below ${quantile("0.5")}, 90% below ${quantile("0.9")}, 99% below ${quantile("0.99")}`,
      ),
      where,
    ),
  );
}

// Where this page keeps no examples of a latent, the command that prints them.
function elsewhere(name) {
  const side = name.startsWith("OF") ? "target" : "source";
  const kept = `This page keeps examples of ${count(head.cards)} latents on each side (report.cards); `;
  return h("p", { class: "dim" }, kept, h("code", {}, `saelink show ${side} ${name.slice(2)}`), " prints this one's.");
}

// `beside`: predictions, one for each example; `ablated`: ablations, one for each of the strongest in order.
export function examplesSection(card, beside, ablated) {
  if (!card.examples.length) return elsewhere(card.name);
  const most = Math.max(...card.examples.map((e) => e.value), 1e-9);
  const strongest = card.examples.filter((e) => e.kind === "top");
  const shown = (e, i) => exampleParts(e, most, beside?.[i], e.kind === "top" ? ablated?.[strongest.indexOf(e)] : null);
  return h(
    "section",
    {},
    h("h2", {}, "Examples"),
    h(
      "p",
      { class: "dim small" },
      "Tokens shaded by the latent's activation; the marked token is the one that was chosen. Open a line to see every value",
      beside ? ", what the connector predicted and its strongest inputs on the same tokens" : "",
      ablated ? ", and where measured what the text loses without the latent, and the latent without each token" : "",
      ".",
    ),
    card.examples.map(shown),
  );
}
