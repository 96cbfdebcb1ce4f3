// The list of circuits: each target latent as a sum of sources.

import { choice, column, figure, h, quoted, table } from "./dom.js";
import { formula } from "./edges.js";
import { count, digits } from "./format.js";
import { numberOf, readIndex } from "./names.js";
import { head } from "./pieces.js";
import { go, place, route } from "./route.js";
import { matchingTargets, ofLogic, ordered } from "./search.js";

const ROWS = 50;

const SORTS = [
  ["fvu", "best predicted"],
  ["edges", "fewest edges"],
  ["active", "most active"],
  ["outlier", "outliers first"],
  ["number", "number"],
];

// What the list shows, from the words of the route.
function wishes() {
  const { words } = route;
  return { q: (words.get("q") || "").trim(), logic: words.get("logic") || "", sort: words.get("sort") || "fvu" };
}

function choices(index, fit, wished) {
  const change = (changes) => go("circuits", undefined, { ...wished, ...changes });
  const fits = head.fits.map((f, i) => [
    i,
    `${digits(f.l1_alpha)} (FVU ${digits(f.metrics.fvu)}, ${count(f.metrics.n_edges)} edges)`,
  ]);
  const logics = [...new Set(fit.word.filter((word) => word))].sort();
  const number = (logic) => fit.word.filter((word) => word === logic).length;
  const offered = [
    ["", "any"],
    ...logics.map((logic) => [logic, `${logic} (${number(logic)})`]),
    ["outlier", "outlier"],
  ];
  const sorts = [...SORTS, ...index.gains.map((g, i) => ["gain" + i, `non-linear: gained by ${g.name}`])];
  return [
    fits.length > 1 ? choice("l1_alpha", "fit", fits, route.fit, (chosen) => change({ fit: Number(chosen) })) : null,
    choice("logic", "logic", offered, wished.logic, (logic) => change({ logic })),
    choice("sort", "sort", sorts, wished.sort, (sort) => change({ sort })),
  ];
}

function circuitTable(rows, index, fit, sort) {
  const unsure = () => h("span", { class: "dim small", title: "not all of its edges are confirmed" }, " (not confirmed)");
  const flag = (i) => (index.outlier[i] ? h("span", { class: "flag" }, " outlier") : null);
  const columns = [
    column("target", (i) => [h("a", { href: place("target", i) }, `OF${i}`), " ", quoted(index.token[i])]),
    column("=", (i) => formula(fit.formula[i], fit.n_edges[i], head.direct, index)),
    figure("FVU", (i) => digits(fit.fvu[i], 2)),
    figure("edges", (i) => count(fit.n_edges[i])),
    column("logic", (i) => [fit.word[i], fit.confirmed[i] === false ? unsure() : null, flag(i)]),
  ];
  const gained = index.gains.find((_, i) => sort === "gain" + i);
  if (gained) columns.push(figure("gain", (i) => digits(gained.gain[i], 2), "FVU here less FVU there"));
  return table(columns, rows);
}

export async function circuits(page) {
  const index = await readIndex();
  const fit = index.fits[route.fit];
  const wished = wishes();
  const { q: query, logic, sort } = wished;
  const matching = ofLogic(matchingTargets(query, index, fit, head.direct, numberOf), logic, index, fit);
  const numbers = ordered(matching, sort, index, fit);
  const from = Number(route.words.get("from")) || 0;
  const rows = numbers.slice(from, from + ROWS);
  const link = (changes, text) => h("a", { href: place("circuits", undefined, { ...wished, ...changes }) }, text);
  const all = query ? [" for ", quoted(query), " ", link({ q: "" }, "all")] : null;
  const shown = numbers.length ? `${from + 1} to ${from + rows.length}` : "none";
  page.append(
    h("h1", {}, "Circuits"),
    h(
      "p",
      { class: "dim small" },
      "Each target latent as a sum of sources with their weights: first the edges that ablating the source in the model confirms, then others with their verdict, each part from the strongest on. Logic is read from which sources are active when the target fires on test documents, not from the signs of the weights, and names no source whose edge has no effect in the model or the opposite one.",
    ),
    h(
      "div",
      { class: "pager" },
      choices(index, fit, wished),
      h("span", { class: "dim" }, `${count(numbers.length)} targets`, all),
    ),
    circuitTable(rows, index, fit, sort),
    h(
      "div",
      { class: "pager" },
      from > 0 ? link({ from: Math.max(from - ROWS, 0) }, "← previous") : null,
      h("span", { class: "dim" }, shown),
      from + ROWS < numbers.length ? link({ from: from + ROWS }, "next →") : null,
    ),
  );
}
