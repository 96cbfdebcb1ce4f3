// Lists of latents: sources, hidden units, outliers.

import { choice, column, commas, figure, h, nowhere, quoted, table } from "./dom.js";
import { count, digits, percent } from "./format.js";
import { labelOf, starred } from "./labels.js";
import { changed, listing } from "./listing.js";
import { OUTLIERS } from "./meaning.js";
import { nameLink, readIndex } from "./names.js";
import { head } from "./pieces.js";
import { go, place, route } from "./route.js";
import { matchingSources } from "./search.js";

export async function sources(page) {
  const index = await readIndex();
  const query = (route.words.get("q") || "").trim();
  const mine = route.words.get("mine") || "";
  const name = (i) => index.source_name[i];
  const kept = (i) => (mine !== "star" || starred(name(i))) && (mine !== "label" || labelOf(name(i)));
  const rows = matchingSources(query, index, labelOf).filter(kept);
  const own = (i) => (labelOf(name(i)) ? ` ${labelOf(name(i))}` : null);
  const star = (i) => (starred(name(i)) ? "★ " : null);
  const link = (i) => [star(i), h("a", { href: place("source", i) }, name(i)), " ", quoted(index.source_token[i]), own(i)];
  const feeds = index.fits[route.fit].feeds;
  const columns = [
    { ...column("source", link), key: "number", value: (i) => i, csv: name },
    { ...column("token", (i) => quoted(index.source_token[i])), key: "token", value: (i) => index.source_token[i] },
    { ...figure("fires on", (i) => count(index.source_active[i]), "tokens"), key: "active", value: (i) => index.source_active[i], falling: true },
    { ...figure("feeds", (i) => count(feeds[i]), "edges that lead from it"), key: "feeds", value: (i) => feeds[i], falling: true },
    { ...column("label", () => null), key: "label", csv: (i) => labelOf(name(i)), hidden: true },
  ];
  const offered = [["", "all"], ["star", "starred"], ["label", "labelled"]];
  const all = query ? [" for ", quoted(query), " ", h("a", { href: place("sources") }, "all")] : null;
  page.append(
    h("h1", {}, "Source latents"),
    listing({
      name: "sources",
      kind: "source",
      columns,
      rows,
      standing: query ? "" : "number",
      filters: choice("mine", "mine", offered, mine, (chosen) => go("sources", undefined, changed({ mine: chosen }))),
      aside: h("span", { class: "dim", role: "status" }, `${count(rows.length)} of ${count(head.d.source)}`, all),
    }),
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
    listing({
      name: "hidden units",
      kind: "hidden",
      columns: unitColumns(new Map(rows.map((u) => [u.unit, u]))),
      rows: rows.map((u) => u.unit),
      standing: "",
    }),
  );
}

function unitColumns(known) {
  const unit = (n) => known.get(n);
  const text = (key, cell, value) => ({ ...column(key, (n) => cell(unit(n))), key, value: (n) => value(unit(n)) });
  const number = (key, shown, value) => ({ ...figure(key, (n) => shown(value(unit(n)))), key, value: (n) => value(unit(n)), falling: true });
  return [
    text("unit", (u) => [nameLink(`H${u.unit}`), " ", quoted(u.token)], (u) => u.unit),
    text("class", (u) => u.kind, (u) => u.kind),
    text("logic", (u) => u.word, (u) => u.word),
    number("largest", digits, (u) => u.largest),
    number("fires on", percent, (u) => u.rate),
    number("purity", percent, (u) => u.purity),
    number("of strongest", percent, (u) => u.purity_top),
    number("clusters", count, (u) => u.clusters),
    number("first positions", percent, (u) => u.outlier.first_positions),
    number("massive", percent, (u) => u.outlier.massive),
  ];
}

function outlierListing(fvu, index) {
  const known = new Map(head.outliers.map((o) => [o.latent, o]));
  const number = (key, shown, value, title) => ({ ...figure(key, (n) => shown(value(known.get(n))), title), key, value: (n) => value(known.get(n)), falling: true });
  const does = (n) => OUTLIERS[index.outlier[n]];
  const columns = [
    { ...column("target", (n) => [nameLink(`OF${n}`, n), " ", h("span", { class: "dim" }, quoted(index.token[n]))]), key: "number", value: (n) => n },
    { ...column("fires on", does), key: "does", value: does },
    number("mean", digits, (o) => o.mean, "mean active value, in the SAE's mean"),
    number("tokens", count, (o) => o.fires, "test tokens on which it fires"),
    number("first positions", percent, (o) => o.first_positions),
    number("first delimiter", percent, (o) => o.first_delimiter),
    number("massive", percent, (o) => o.massive),
    number("FVU", (value) => digits(value, 2), (o) => fvu[o.latent]),
  ];
  if (head.outliers.some((o) => o.w2_above !== undefined)) {
    columns.push(figure("large W2 weights, + / −", (n) => `${count(known.get(n).w2_above)} / ${count(known.get(n).w2_below)}`));
  }
  return listing({ name: "outliers", kind: "target", columns, rows: [...known.keys()], standing: "" });
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
    outlierListing(index.fits[route.fit].fvu, index),
  );
  if (!head.outliers.length) page.append(h("p", {}, "None."));
  if (head.w2_median) page.append(medianWeights(head.w2_median));
  page.append(h("h2", {}, "Non-linear latents"), gained(index.gains));
}
