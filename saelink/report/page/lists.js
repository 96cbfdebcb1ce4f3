// Lists of latents: sources, hidden units, outliers.

import { column, commas, figure, h, nowhere, quoted, table } from "./dom.js";
import { count, digits, percent } from "./format.js";
import { nameLink, readIndex } from "./names.js";
import { head } from "./pieces.js";
import { place, route } from "./route.js";
import { matchingSources } from "./search.js";

const SOURCES = 300;
const OUTLIERS = 200;

export async function sources(page) {
  const index = await readIndex();
  const query = (route.words.get("q") || "").trim().toLowerCase();
  const from = Number(route.words.get("from")) || 0;
  const numbers = matchingSources(query, index);
  const link = (words, text) => h("a", { href: place("sources", undefined, words) }, text);
  const chip = (i) =>
    h("a", { class: "chip", href: place("source", i) }, index.source_name[i], " ", quoted(index.source_token[i]));
  page.append(
    h("h1", {}, "Source latents"),
    h(
      "p",
      { class: "dim" },
      `${count(numbers.length)} of ${count(head.d.source)}`,
      query ? [" for ", quoted(query), " ", link({}, "all")] : null,
    ),
    h("div", { class: "chips" }, numbers.slice(from, from + SOURCES).map(chip)),
    h(
      "div",
      { class: "pager" },
      from > 0 ? link({ q: query, from: Math.max(from - SOURCES, 0) }, "← previous") : null,
      from + SOURCES < numbers.length ? link({ q: query, from: from + SOURCES }, "next →") : null,
    ),
  );
}

export function units(page) {
  if (!head.hidden_units) return nowhere(page);
  const { counts, units: rows } = head.hidden_units;
  page.append(
    h("h1", {}, "Hidden units"),
    h(
      "p",
      { class: "dim" },
      `The ${rows.length} with the largest activations. Nearly dead: fires on under 1 in 10,000 held-out tokens. Outlier: first positions, first delimiters or massive activations carry it. Monosemantic: one token carries half of its activation and of its strongest examples, or one cluster of inputs three quarters of its tokens. Polysemantic: the rest.`,
    ),
    table(
      Object.keys(counts).map((kind) => figure(kind, (c) => c[kind])),
      [counts],
    ),
    h("h2", {}, "Units"),
    table(
      [
        column("unit", (u) => [nameLink(`H${u.unit}`), " ", quoted(u.token)]),
        column("class", (u) => u.kind),
        column("logic", (u) => u.word),
        figure("largest", (u) => digits(u.largest)),
        figure("fires on", (u) => percent(u.rate)),
        figure("purity", (u) => percent(u.purity)),
        figure("of strongest", (u) => percent(u.purity_top)),
        figure("clusters", (u) => (u.clusters === null ? "–" : u.clusters)),
        figure("first positions", (u) => percent(u.outlier.first_positions)),
        figure("massive", (u) => percent(u.outlier.massive)),
      ],
      rows,
    ),
  );
}

function outlierTable(fvu) {
  const columns = [
    column("target", (o) => [nameLink(`OF${o.latent}`), " ", quoted(o.token)]),
    figure("mean", (o) => digits(o.mean), "mean active value, in the SAE's mean"),
    figure("fires on", (o) => count(o.fires)),
    figure("first positions", (o) => percent(o.first_positions)),
    figure("first delimiter", (o) => percent(o.first_delimiter)),
    figure("massive", (o) => percent(o.massive)),
    figure("FVU", (o) => digits(fvu[o.latent], 2)),
  ];
  if (head.outliers.some((o) => o.w2_above !== undefined)) {
    columns.push(figure("large W2 weights, + / −", (o) => `${count(o.w2_above)} / ${count(o.w2_below)}`));
  }
  return table(columns, head.outliers.slice(0, OUTLIERS));
}

function medianWeights({ limit, above, below }) {
  const text = `W2 weights above ${digits(limit)} and below −${digits(limit)} into the median target: ${count(above)} / ${count(below)}.`;
  return h("p", { class: "dim small" }, text);
}

function gained(gains) {
  if (!gains.length) {
    const command = h("code", {}, `saelink evaluate layer=${head.layer} connector=nonlinear`);
    const fit = "Fit another connector on the same latents to see which latents gain, for example ";
    return h("p", { class: "dim" }, fit, command, ", and make the report again.");
  }
  const link = (g, i) => h("a", { href: place("circuits", undefined, { sort: "gain" + i }) }, g.name);
  return h("p", {}, "Latents that another connector predicts better than this one: ", commas(gains, link));
}

export async function outliers(page) {
  const index = await readIndex();
  page.append(
    h("h1", {}, "Outlier latents"),
    h(
      "p",
      { class: "dim" },
      "Targets of whose activation on test documents at least half falls on the first three positions of a sequence, its first delimiter, or tokens with massive activations; those with most activation first.",
    ),
    outlierTable(index.fits[route.fit].fvu),
  );
  if (!head.outliers.length) page.append(h("p", {}, "None."));
  if (head.w2_median) page.append(medianWeights(head.w2_median));
  page.append(h("h2", {}, "Non-linear latents"), gained(index.gains));
}
