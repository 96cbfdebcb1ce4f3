// The connectors' claims beside what ablating sources and edges does in the model.

import { column, figure, h, quoted, signed, table } from "./dom.js";
import { VERDICTS } from "./edges.js";
import { count, digits, given, percent } from "./format.js";
import { fitName, nameLink } from "./names.js";
import { head } from "./pieces.js";
import { place } from "./route.js";

// A figure with its 95% interval.
function interval(figures, name) {
  if (!given(figures[name])) return "–";
  const [low, high] = [figures[name + "_low"], figures[name + "_high"]];
  const range = given(low) && given(high) ? ` ${digits(low, 2)} to ${digits(high, 2)}` : null;
  return h("span", {}, digits(figures[name], 2), h("span", { class: "dim small" }, range));
}

// The connectors, each followed by its null models.
function verifiedTable() {
  const link = (fit) => h("a", { href: place("circuits", undefined, { fit }) }, fitName(fit));
  const rows = head.verified.flatMap((v) => [
    { own: true, figures: v.figures, stable: v.stable, name: link(v.fit) },
    ...Object.entries(v.nulls || {}).map(([name, figures]) => ({ figures, name: h("span", { class: "dim" }, name) })),
  ]);
  const fraction = ({ figures }, verdict) =>
    percent(figures["edges_" + verdict.replace(" ", "_")] / Math.max(figures.edges, 1));
  return table(
    [
      column("edges of", (r) => r.name),
      figure("edges", (r) => count(r.figures.edges)),
      ...Object.keys(VERDICTS).map((verdict) => figure(verdict, (r) => fraction(r, verdict), VERDICTS[verdict])),
      figure("stable", (r) => percent(r.stable), "chosen in 90% of the fits on halves of the documents"),
      figure(
        "missed",
        (r) => `${count(r.figures.missed)}, ${count(r.figures.missed_suppressive)} −`,
        "strong effects without an edge, and how many of them suppressive",
      ),
      figure(
        "precision",
        (r) => interval(r.figures, "precision_1x"),
        "of the strongest claims, as many as there are sources: strong in the model, with that sign",
      ),
      figure(
        "found + / −",
        (r) => [interval(r.figures, "recall_positive_10x"), " / ", interval(r.figures, "recall_suppressive_10x")],
        "of strong positive and of strong suppressive effects, among ten times as many claims",
      ),
      figure("slope", (r) => interval(r.figures, "slope_1x"), "of effects on claims; below 1 the claims overstate"),
      figure("r²", (r) => interval(r.figures, "r2_1x")),
      figure(
        "Spearman",
        (r) => interval(r.figures, "spearman"),
        "of claims and effects over all pairs of latents, most of which nothing is claimed of",
      ),
      figure("AUROC", (r) => interval(r.figures, "auroc"), "strong effects told from all other pairs by the claim's size"),
    ],
    rows,
  );
}

// Recall and precision by target and by source at three quantiles.
function byLatent(figures) {
  const quantiles = (side, measure) =>
    [10, 50, 90].map((q) => digits(figures[`${measure}_10x_by_${side}_${q}`], 2)).join(" / ");
  return ["target", "source"]
    .flatMap((side) => ["recall", "precision"].map((measure) => `${measure} by ${side} ${quantiles(side, measure)}`))
    .join("; ");
}

// What the model's next token loses without an edge, its target, or an outlier latent.
function consequences(rows) {
  if (!rows.length) return [];
  const kinds = { edge: "edge", target: "whole latent", outlier: "outlier" };
  const most = Math.max(...rows.map((r) => r.tokens));
  const error = (r) => (r.logp_error === null ? "" : `standard error ${digits(r.logp_error, 2)}`);
  const source = (r) => [nameLink(r.source_name, r.source), " ", quoted(r.source_token)];
  return [
    h("h3", {}, "What the next token loses without it"),
    h(
      "p",
      { class: "dim" },
      `Taken out of the model at one of up to ${most} test tokens, of an edge only what its source does to its target. Nats; beside it an equal step along another latent's direction.`,
    ),
    table(
      [
        column("", (r) => h("span", { class: "dim" }, kinds[r.kind])),
        column("target", (r) => [nameLink(`OF${r.target}`, r.target), " ", quoted(r.target_token)]),
        column("source", (r) => (r.source === null ? "" : source(r))),
        figure("log-probability", (r) => signed(r.logp, digits(r.logp, 2), error(r)), "of the actual next token"),
        figure("KL", (r) => digits(r.kl, 2), "of the clean prediction from the one without it"),
        figure("KL, other", (r) => digits(r.kl_null, 2), "of an equal step along another latent"),
      ],
      rows,
    ),
  ];
}

export function verification() {
  if (!head.verify) return [h("p", { class: "dim" }, "The effects of single edges can't be measured for this link.")];
  if (!head.verified.length) {
    const command = head.command ? head.command.replace("saelink report", "saelink verify") : head.verify;
    const after = " ablates every source in the model; make the report again after it.";
    return [h("p", { class: "dim" }, "Not asked yet: ", h("code", {}, command), after)];
  }
  const figures = head.verified[0].figures;
  const suppressive = percent(figures.strong_suppressive / Math.max(figures.strong, 1));
  const ablated = Object.values(head.verified[0].nulls || {}).map((each) => each.sources_ablated);
  const sampled = Math.min(...ablated) < Math.max(...ablated);
  const sample = sampled
    ? ` Those of permuted decoders and random weights were measured on ${count(Math.min(...ablated))} of ${count(Math.max(...ablated))} sources.`
    : "";
  return [
    h(
      "p",
      {},
      `An edge claims what the target loses when its source goes. Taken out of the model itself, ${count(figures.strong)} source-target pairs have a strong effect (verify.strong, of the target's mean activation), ${suppressive} of them suppressive. Below the connectors the same claims against effects they should not agree with.${sample} Beside a figure its 95% interval.`,
    ),
    verifiedTable(),
    ...(head.verified[0].saturated || []).map((line) => h("p", { class: "dim" }, `${line[0].toUpperCase()}${line.slice(1)}.`)),
    h(
      "p",
      {},
      `Pooled figures flatter: ${percent(figures.strong_in_first_tenth_of_sources)} of the strong effects come from a tenth of the sources. One by one, among ten times as many claims as sources, 10% / median / 90%: `,
      byLatent(figures) + ".",
    ),
    ...consequences(head.verified[0].consequences || []),
  ];
}
