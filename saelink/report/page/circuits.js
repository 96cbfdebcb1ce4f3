// The list of circuits: each target latent as a sum of sources.

import { choice, column, figure, h, quoted, signed } from "./dom.js";
import { formula, VERDICTS } from "./edges.js";
import { count, digits, percent } from "./format.js";
import { labelOf, starred } from "./labels.js";
import { changed, listing } from "./listing.js";
import { numberOf, readIndex } from "./names.js";
import { head } from "./pieces.js";
import { go, place, route } from "./route.js";
import { filtered, matchingTargets, ordered, suggestions } from "./search.js";
import { describe, WHY } from "./why.js";

const words = () => Object.fromEntries(["q", "logic", "verdict", "why", "fvu", "effect", "owes", "mine"].map((w) => [w, route.words.get(w) || ""]));

const FVUS = [".1", ".2", ".5", ".8", "1"];
const OWES = [
  ["", "any"],
  ["50", "of those with half of it"],
  ["90", "of those with 90% of it"],
  ["helps", "helps by two standard errors"],
  ["harms", "harms by two standard errors"],
];
const EFFECTS = [".05", ".1", ".2", ".5"];

function choices(index, fit, wished) {
  const change = (changes) => go("circuits", undefined, changed(changes));
  const fits = head.fits.map((f, i) => [
    i,
    `${f.name} ${digits(f.l1_alpha)} (FVU ${digits(f.metrics.fvu)}, ${count(f.metrics.n_edges)} edges)`,
  ]);
  const number = (logic) => fit.word.filter((word) => word === logic).length;
  const logics = [...new Set(fit.word.filter((word) => word))].sort();
  const offered = [
    ["", "any"],
    ...logics.map((logic) => [logic, `${logic} (${count(number(logic))})`]),
    ["outlier", `outlier (${count(index.outlier.filter((flag) => flag).length)})`],
  ];
  const judged = fit.verdicts.some((counts) => counts);
  const verdicts = [
    ["", "any"],
    ["sure", "all that the logic names confirmed"],
    ...Object.keys(VERDICTS).map((v) => [v, `an edge ${v}`]),
    ["none", "no edge confirmed"],
  ];
  const reasons = [["", "any"], ...Object.entries(WHY).map(([code, [short]]) => [code, short])];
  const below = [["", "any"], ...FVUS.map((v) => [v, `below ${v}`])];
  const above = [["", "any"], ...EFFECTS.map((v) => [v, `${percent(Number(v))} or more`])];
  const mine = [["", "all"], ["star", "starred"], ["label", "labelled"]];
  return [
    fits.length > 1 ? choice("connector", "fit", fits, route.fit, (chosen) => change({ fit: Number(chosen) })) : null,
    choice("logic", "logic", offered, wished.logic, (logic) => change({ logic, why: "" })),
    wished.logic === "unclear" ? choice("because", "why", reasons, wished.why, (why) => change({ why })) : null,
    judged ? choice("verdict", "verdict", verdicts, wished.verdict, (verdict) => change({ verdict })) : null,
    choice("FVU", "fvu", below, wished.fvu, (fvu) => change({ fvu })),
    judged ? choice("effect", "effect", above, wished.effect, (effect) => change({ effect })) : null,
    fit.effectiveness ? choice("effectiveness", "owes", OWES, wished.owes, (owes) => change({ owes })) : null,
    choice("mine", "mine", mine, wished.mine, (chosen) => change({ mine: chosen })),
  ];
}

// What the model's output owes to a target's edges.
function owedColumns(fit) {
  const owes = "sums over its edges, nats a token";
  const helps = (i) => (fit.helpfulness_error[i] ? signed(fit.helpfulness[i], digits(fit.helpfulness[i], 2)) : "–");
  return [
    {
      ...figure("effectiveness", (i) => (fit.effectiveness[i] ? digits(fit.effectiveness[i], 2) : "–"), `divergence of the model's prediction without what an edge writes: ${owes}`),
      key: "effectiveness",
      value: (i) => fit.effectiveness[i],
      falling: true,
    },
    {
      ...figure("helpfulness", helps, `rise of the loss without it: ${owes}; below 0 they harm`),
      key: "helpfulness",
      value: (i) => fit.helpfulness[i],
      falling: true,
    },
    { ...column("error of helpfulness", () => null), key: "helpfulness_error", csv: (i) => fit.helpfulness_error[i], hidden: true },
  ];
}

function columnsOf(index, fit) {
  const unsure = () => h("span", { class: "dim small", title: "not all of its edges are confirmed" }, " (not confirmed)");
  const flag = (i) => (index.outlier[i] ? h("span", { class: "flag" }, " outlier") : null);
  const reason = (i) => (fit.why[i] ? h("span", { class: "dim small" }, ` (${describe(fit.why[i])[0]})`) : null);
  const star = (i) => (starred(`OF${i}`) ? "★ " : null);
  const name = (i) => [star(i), h("a", { href: place("target", i) }, `OF${i}`), " ", quoted(index.token[i])];
  const text = (i) => (fit.formula[i] || []).map(([input, w]) => `${w} ${index.source_name[input] ?? "H" + (input - fit.direct)}`).join(" + ");
  const own = (i) => (labelOf(`OF${i}`) ? h("div", { class: "small" }, labelOf(`OF${i}`)) : null);
  return [
    { ...column("target", (i) => [name(i), own(i)]), key: "number", value: (i) => i, csvName: "target" },
    { ...column("token", () => null), key: "token", csv: (i) => index.token[i], hidden: true },
    { ...column("label", () => null), key: "label", csv: (i) => labelOf(`OF${i}`), hidden: true },
    { ...column("=", (i) => formula(fit.formula[i], fit.n_edges[i], fit.direct, index)), csv: text, csvName: "formula" },
    { ...figure("FVU", (i) => digits(fit.fvu[i], 2), "squared error over variance on test documents"), key: "fvu", value: (i) => fit.fvu[i] },
    { ...figure("edges", (i) => count(fit.n_edges[i])), key: "edges", value: (i) => fit.n_edges[i] },
    {
      ...figure("confirmed", (i) => (fit.verdicts[i] ? count(fit.verdicts[i][0]) : "–"), "edges that ablation in the model confirms"),
      key: "confirmed",
      value: (i) => fit.verdicts[i]?.[0] ?? null,
      falling: true,
    },
    {
      ...figure("effect", (i) => percent(fit.effect[i]), "largest effect of a confirmed edge, of the target's mean activation"),
      key: "effect",
      value: (i) => fit.effect[i],
      falling: true,
    },
    ...(fit.effectiveness ? owedColumns(fit) : []),
    { ...figure("fires on", (i) => count(index.active[i]), "tokens"), key: "active", value: (i) => index.active[i], falling: true },
    {
      ...column("logic", (i) => [fit.word[i], reason(i), fit.confirmed[i] === false ? unsure() : null, flag(i)]),
      key: "logic",
      value: (i) => fit.word[i],
    },
    { ...column("why unclear", () => null), key: "why", csv: (i) => (fit.why[i] ? describe(fit.why[i])[0] : null), hidden: true },
  ];
}

export async function circuits(page) {
  const index = await readIndex();
  const fit = { ...index.fits[route.fit], direct: head.fits[route.fit].direct };
  const wished = words();
  const sort = route.words.get("sort") || (wished.q ? "match" : "fvu");
  const mine = (i) => wished.mine !== "label" || labelOf(`OF${i}`);
  const star = (i) => wished.mine !== "star" || starred(`OF${i}`);
  const matching = matchingTargets(wished.q, index, fit, fit.direct, numberOf, labelOf);
  const rows = filtered(matching, wished, index, fit).filter((i) => mine(i) && star(i));
  const columns = columnsOf(index, fit);
  const judged = fit.verdicts.some((counts) => counts);
  const gained = index.gains.find((_, i) => sort.endsWith("gain" + i));
  if (gained) columns.push({ ...figure("gain", (i) => digits(gained.gain[i], 2), "FVU here less FVU there"), value: (i) => gained.gain[i], key: sort.replace(/^-/, "") });
  const all = wished.q
    ? [" for ", quoted(wished.q), " ", h("a", { href: place("circuits", undefined, changed({ q: "" })) }, "all")]
    : null;
  const sources = suggestions(wished.q, index, 40, labelOf).filter((o) => o.kind === "source" && o.rank <= 1);
  const chip = ({ name, number, token }) => h("a", { class: "chip", href: place("source", number) }, name, " ", quoted(token));
  page.append(
    h("h1", {}, "Circuits"),
    sources.length ? h("div", { class: "chips" }, h("span", { class: "dim" }, "Sources"), sources.map(chip)) : "",
    h(
      "details",
      { class: "small" },
      h("summary", {}, "Each target latent as a sum of sources with their weights. How to read it"),
      h(
        "p",
        { class: "dim" },
        "First the edges that ablating the source in the model confirms, then others with their verdict, each part from the strongest on. Logic is read from which sources are active when the target fires on test documents, not from the signs of the weights, and names no source whose edge has no effect in the model or the opposite one.",
      ),
    ),
    listing({
      name: "circuits",
      kind: "target",
      columns: columns.filter((c) => judged || !["confirmed", "effect"].includes(c.key)),
      rows: ordered(rows, sort.replace(/^-/, ""), index, fit, wished.q),
      standing: sort,
      filters: choices(index, fit, wished),
      aside: h("span", { class: "dim", role: "status" }, `${count(rows.length)} targets`, all),
    }),
  );
}
