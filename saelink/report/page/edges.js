// Edges: as a formula, and as a table with what is known of each.

import { column, figure, h, quoted, signed, table } from "./dom.js";
import { count, digits, percent, rise, share, sign, told, weight } from "./format.js";
import { nameLink } from "./names.js";
import { head } from "./pieces.js";

export const VERDICTS = {
  confirmed: "ablating the source in the model has at least half the claimed effect",
  weaker: "less than half of it",
  "no effect": "less than a tenth of it",
  opposite: "the other sign",
  unclear: `the sign differs between halves of the documents, or the source was ablated on fewer than ${head.min_ablated} tokens`,
  faint: "claims under 1% of the target's mean activation",
};

const verdictClass = (verdict) => (verdict ? "v-" + verdict.replace(" ", "-") : "");

// A verdict as a word in its colour; nothing where there is none.
export const verdictMark = (verdict) =>
  verdict ? h("span", { class: verdictClass(verdict), title: VERDICTS[verdict] }, verdict) : null;

// What stands beside a term that is not confirmed.
const mark = (verdict) => (verdict && verdict !== "confirmed" ? h("span", { class: "dim small" }, ` (${verdict})`) : null);

// The sum of [input, weight, verdict]; inputs below `direct` are sources, the others hidden units. Terms that are not
// confirmed say so, and where no term has a verdict the whole says that.
export function formula(all, edges, direct, index) {
  const terms = told(all || []);
  if (!terms.length) return h("span", { class: "dim" }, edges > 0 ? "no edge of .005 or more" : "no edge");
  const more = edges - terms.length;
  const term = ([input, value, verdict], i) => {
    const source = input < direct;
    const name = source ? index.source_name[input] : `H${input - direct}`;
    const attributes = {
      class: (value < 0 ? "minus " : "plus ") + verdictClass(verdict),
      title: verdict ? `${verdict}: ${VERDICTS[verdict]}` : null,
    };
    return [
      sign(value, i === 0),
      h("span", attributes, weight(Math.abs(value))),
      " ",
      nameLink(name, input),
      " ",
      quoted(source ? index.source_token[input] : null),
      mark(verdict),
    ];
  };
  const judged = terms.some(([, , verdict]) => verdict);
  return h(
    "span",
    {},
    terms.map(term),
    more > 0 ? h("span", { class: "dim" }, ` … ${more} more`) : null,
    judged ? null : h("span", { class: "dim small" }, " (unverified)"),
  );
}

// What the verdicts of these edges mean; nothing where there are none.
export function verdictsMean(edges) {
  const used = Object.keys(VERDICTS).filter((verdict) => edges.some((e) => e.verdict === verdict));
  const text = used.map((verdict) => `${verdict}: ${VERDICTS[verdict]}`).join("; ");
  return text ? h("p", { class: "dim small" }, text + ".") : null;
}

export function edgeTable(edges, title) {
  const columns = [
    column(title, (e) => [nameLink(e.name, e.input), " ", quoted(e.token)]),
    figure("weight", (e) => signed(e.weight, weight(e.weight))),
    figure(
      "FVU without it",
      (e) => rise(e.rise),
      "rise of the target's FVU on test documents when this edge alone is taken out; the rises don't add up",
    ),
  ];
  if (edges.some((e) => e.verdict)) {
    columns.push(
      figure(
        "claims",
        (e) => share(e.claim),
        "what the connector says the target loses where the source is active and is taken out, of the target's mean activation",
      ),
      figure("in the model", (e) => share(e.effect), "what it does lose when the source is ablated in the model"),
      column("verdict", (e) => verdictMark(e.verdict) ?? "–"),
    );
  }
  if (edges.some((e) => e.chosen !== undefined)) {
    columns.push(
      figure(
        "chosen again",
        (e) => (e.chosen === undefined ? "–" : percent(e.chosen)),
        "share of 24 fits on halves of the documents at neighbouring penalties in which the edge is there with its sign",
      ),
    );
  }
  if (edges.some((e) => e.effectiveness !== undefined)) {
    columns.push(
      figure(
        "effectiveness",
        (e) => (e.helpfulness_error ? digits(e.effectiveness, 2) : "–"),
        "divergence of the model's prediction without what the edge writes, second order, nats a token; – where it was never active",
      ),
      figure(
        "helpfulness",
        (e) => (!e.helpfulness_error ? "–" : signed(e.helpfulness, digits(e.helpfulness, 2))),
        "rise of the loss without it, first order, nats a token; below 0 the edge harms",
      ),
    );
  }
  if (edges.some((e) => e.both !== undefined)) columns.push(figure("both active", (e) => count(e.both), "test tokens"));
  return h("div", {}, table(columns, edges), verdictsMean(edges));
}

// Strong effects in the model that no edge stands for.
export function missedTable(missed) {
  return table(
    [
      column("source", (e) => [nameLink(e.name, e.input), " ", quoted(e.token)]),
      figure(
        "in the model",
        (e) => signed(e.effect, share(e.effect)),
        "what the target loses when the source is ablated where it is active, of the target's mean activation",
      ),
    ],
    missed,
  );
}
