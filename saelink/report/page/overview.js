// The first view: what was found in a picture and figures, where to start, the connectors side by side, what was run.

import { missingFits } from "./compare.js";
import { choice, column, figure, h, quoted, table } from "./dom.js";
import { VERDICTS } from "./edges.js";
import { experimentParts } from "./experiments.js";
import { count, digits, given, percent } from "./format.js";
import { OUTLIERS } from "./meaning.js";
import { fitName, readIndex } from "./names.js";
import { head, piece } from "./pieces.js";
import { frontierPlot, lossPlot } from "./plots.js";
import { remarksFile } from "./remarks.js";
import { go, place, route } from "./route.js";
import { verification } from "./verification.js";
import { describe, WHY } from "./why.js";

const KINDS = [
  ["or", "OR", "any of several sources alone makes the target fire"],
  ["and not", "AND NOT", "a source makes it fire unless another is active"],
  ["and", "AND", "two sources only together"],
  ["copy", "Copy", "one source does it"],
  ["outlier", "Outlier", "fires on first tokens, first delimiters or massive activations"],
];

const ELBOW = "the penalty from which on less sparsity gains little error: kneedle on (log L1, validation MSE)";

const LOGICS = ["copy", "or", "and", "and not", "dense", "unclear"];

function title(page) {
  const { metrics } = head.fits[route.fit];
  const fits = head.fits.map((_, i) => [i, fitName(i)]);
  page.append(
    h("h1", {}, head.title),
    h(
      "p",
      {},
      "How the latents at ",
      h("code", {}, head.link.target),
      " are made from those at ",
      h("code", {}, head.link.sources.join(" + ")),
      `, by a ${head.connector} connector, on ${count(metrics.n_tokens)} tokens of test documents that nothing was fitted on.`,
    ),
    fits.length > 1 ? h("div", { class: "pager" }, choice("connector", "fit", fits, route.fit, (fit) => go("", undefined, { fit: Number(fit) }))) : "",
  );
}

// Parts of a whole as a bar with its figures: name, number, class of its colour, where it leads.
function partsBar(name, parts, total) {
  const shown = parts.filter(([, n]) => n > 0);
  const text = shown.map(([word, n]) => `${word} ${count(n)}`).join(", ");
  const stretch = ([word, n, style]) =>
    h("span", { class: `part ${style}`, style: `flex-grow: ${n}`, title: `${word}: ${count(n)}, ${percent(n / total)}` });
  const legend = ([word, n, style, href, meaning]) =>
    h("li", { title: meaning }, h("span", { class: `dot ${style}`, "aria-hidden": "true" }), " ", href ? h("a", { href }, word) : word, ` ${count(n)} `, h("span", { class: "dim" }, percent(n / Math.max(total, 1))));
  return [
    h("div", { class: "bar", role: "img", "aria-label": `${name}: ${text}` }, shown.map(stretch)),
    h("ul", { class: "legend small" }, parts.map(legend)),
  ];
}

const explained = (heading, pairs) =>
  h("details", { class: "small" }, h("summary", {}, heading), h("dl", {}, pairs.map(([word, text]) => [h("dt", {}, word), h("dd", {}, text)])));

const dashed = (word) => word.replaceAll(" ", "-");

function logicBar(fit) {
  const named = fit.word.filter((word) => word).length;
  const number = (logic) => fit.word.filter((word) => word === logic).length;
  const link = (logic) => place("circuits", undefined, { logic });
  return partsBar("Targets by logic", LOGICS.map((logic) => [logic, number(logic), `l-${dashed(logic)}`, link(logic)]), named);
}

function verdictBar(fit) {
  const sums = Object.keys(VERDICTS).map((verdict, v) => [verdict, fit.verdicts.reduce((sum, counts) => sum + (counts?.[v] ?? 0), 0)]);
  const total = sums.reduce((sum, [, n]) => sum + n, 0);
  const link = (verdict) => place("circuits", undefined, { verdict });
  return partsBar("Edges by verdict", sums.map(([verdict, n]) => [verdict, n, `w-${dashed(verdict)}`, link(verdict), VERDICTS[verdict]]), total);
}

function whyList(fit) {
  const unclear = fit.why.filter((why) => why);
  if (!unclear.length) return null;
  const number = (code) => unclear.filter((why) => why.split(" ").includes(code)).length;
  const item = (code) => {
    const link = h("a", { href: place("circuits", undefined, { logic: "unclear", why: code }) }, WHY[code][0]);
    return h("li", {}, link, ` ${count(number(code))}: ${describe(code)[1]}.`);
  };
  const codes = Object.keys(WHY).filter((code) => number(code));
  return h("details", { class: "small" }, h("summary", {}, `Why ${count(unclear.length)} are unclear (some for several reasons)`), h("ul", {}, codes.map(item)));
}

// The answer in figures: what is predicted, what is confirmed.
function found(page, index) {
  const fit = index.fits[route.fit];
  const { metrics } = head.fits[route.fit];
  const judged = fit.verdicts.some((counts) => counts);
  const sure = fit.confirmed.filter((confirmed) => confirmed === true).length;
  const tile = (value, text, href) => h("div", { class: "tile" }, h(href ? "a" : "span", { class: "big", href }, value), h("span", { class: "dim small" }, text));
  const well = fit.fvu.filter((fvu) => fvu !== null && fvu < 0.5).length;
  page.append(
    h(
      "div",
      { class: "tiles" },
      tile(count(metrics.n_targets), "target latents"),
      tile(count(well), "predicted with FVU below .5", place("circuits", undefined, { fvu: ".5" })),
      tile(digits(metrics.fvu, 2), "FVU over all: 0 is perfect, 1 predicts the mean"),
      judged ? tile(count(sure), "with a logic whose every source is confirmed in the model", place("circuits", undefined, { verdict: "sure" })) : null,
    ),
    h("section", {}, h("h2", {}, "What targets compute"), ...logicBar(fit), whyList(fit)),
    h(
      "section",
      {},
      h("h2", {}, "Which edges hold in the model"),
      ...(judged ? [...verdictBar(fit), explained("What the verdicts mean", Object.entries(VERDICTS))] : [h("p", { class: "dim" }, "Not measured: see below.")]),
    ),
  );
}

function highlights(page, index) {
  page.append(h("h2", {}, "Start here"));
  const chosen = "Best predicted first, and only where ablating every source that the logic names confirms its edge.";
  if (head.verified.length) page.append(h("p", { class: "dim small" }, chosen, route.fit ? ` Of ${fitName(0)}, which these links show.` : ""));
  const text = (kind, latent, token) => (kind === "outlier" ? OUTLIERS[index.outlier[latent]] : quoted(token));
  const chip = (kind) => ({ latent, token }) =>
    h("a", { class: "chip", href: place("target", latent, { fit: 0 }) }, `OF${latent} `, text(kind, latent, token));
  for (const [kind, word, meaning] of KINDS) {
    const latents = head.highlights[kind];
    if (!latents || !latents.length) continue;
    const label = h("span", { class: "dim", title: meaning }, word);
    page.append(h("div", { class: "chips" }, label, latents.map(chip(kind))));
  }
  const words = KINDS.filter(([kind]) => head.highlights[kind]?.length);
  const told = words.map(([, word, meaning]) => [word, meaning]);
  const elbow = head.frontier.find((point) => point.elbow && point.fit !== null);
  page.append(explained("What these words mean", elbow ? [...told, ["Frontier's elbow", ELBOW]] : told));
  if (!elbow) return;
  const label = h("span", { class: "dim", title: ELBOW }, "Frontier's elbow");
  const point = `l1_alpha ${digits(elbow.l1_alpha)}: FVU ${digits(elbow.fvu)}, ${count(elbow.n_edges)} edges`;
  const link = h("a", { class: "chip", href: place("circuits", undefined, { fit: elbow.fit }) }, point);
  page.append(h("div", { class: "chips" }, label, link));
}

function connectors(page) {
  const name = (r) => (r.own ? h("a", { href: place("circuits", undefined, { fit: r.fit }) }, r.name) : r.name);
  page.append(
    h("h2", {}, "Connectors"),
    h(
      "p",
      { class: "dim small" },
      "All on the same test tokens and targets. FVU: squared error over variance, 0 is perfect, 1 predicts the mean. Oracle: the true computation between the SAEs; no connector has to beat it. Shaded: the connectors whose circuits are on this page.",
    ),
    table(
      [
        column("connector", name),
        figure("l1_alpha", (r) => (r.l1_alpha === undefined ? "" : digits(r.l1_alpha))),
        figure("MSE", (r) => digits(r.mse)),
        figure("FVU", (r) => digits(r.fvu)),
        figure("median latent", (r) => digits(r.fvu_median_latent, 2), "median FVU over target latents"),
        figure("FVU < .5", (r) => percent(r.fraction_predicted), "target latents with FVU below .5"),
        figure("L1", (r) => digits(r.l1)),
        figure("edges", (r) => count(r.n_edges)),
        figure("CE recovered", (r) => digits(r.ce_loss_recovered)),
        figure("KL", (r) => digits(r.ce_kl), "of the spliced prediction from the model's own, nats"),
        figure("top-1", (r) => percent(r.ce_top1), "the likeliest next token is the model's own"),
        column("key", (r) => h("code", {}, r.key || "")),
      ],
      head.table.map((r) => ({ ...r, own: given(r.fit) })),
    ),
  );
  const more = missingFits();
  if (more) page.append(more);
  if (head.table.some((r) => given(r.ce_loss_recovered))) return;
  const command = h("code", {}, `${head.command || "saelink report"} eval.ce=true`);
  page.append(h("p", { class: "dim small" }, "CE recovered: ", command, " measures it."));
}

function plots(page, later) {
  const columns = h("div", { class: "columns" });
  page.append(columns);
  const section = (heading, note, where) =>
    columns.append(h("section", {}, h("h2", {}, heading), h("p", { class: "dim small" }, note), where));
  if (head.frontier.length > 1) {
    const text = head.frontier.map((p) => `${p.name} at ${digits(p.l1_alpha)}: FVU ${digits(p.fvu)}, L1 ${digits(p.l1)}`).join("; ");
    const where = h("div", { class: "plot", id: "frontier", role: "img", "aria-label": `Error against sparsity. ${text}` });
    const note = "Large points have their circuits on this page: click one and they follow it. Rings: elbows. The table above has the same figures and links.";
    section("Error against sparsity", note, where);
    later.push(() => frontierPlot(where, head.frontier));
  }
  if (head.curves.length) {
    const text = head.curves.map((c) => `${c.name} from ${digits(c.mse[0])} to ${digits(c.mse.at(-1))}`).join("; ");
    const where = h("div", { class: "plot", role: "img", "aria-label": `Validation MSE while training: ${text}` });
    section("Loss while training", "Validation documents. An exact fit has no curve.", where);
    later.push(() => lossPlot(where, head.curves));
  }
}

function percentLinear(page, later) {
  page.append(h("h2", {}, "Percent linear"));
  if (head.experiments.some((e) => e.name === "percent_linear")) {
    const box = h("div");
    page.append(box);
    later.push(async () => box.append(...experimentParts(await piece("experiment/percent_linear"))));
    return;
  }
  const command = h("code", {}, `saelink run experiment=percent_linear layer=${head.layer}`);
  page.append(
    h("p", { class: "dim" }, "Not measured on these latents yet: ", command, ", then make the report again."),
  );
}

function origin(page) {
  const tokens = Object.entries(head.tokens).map(([split, n]) => `${count(n)} ${split}`);
  const sae = (s) =>
    `SAE with ${count(s.d_sae)} latents, ${digits(s.l0)} active a token, FVU ${digits(s.fvu)}, ${count(s.dead)} dead; latents in units of ${digits(s.scale)}; `;
  const facts = [
    ["model", head.model],
    ["text", `${head.data}: ${tokens.join(", ")} tokens, packed to ${head.context}`],
    ["link", `${head.link.name}: ${head.link.sources.join(" + ")} → ${head.link.target}`],
    ...head.saes.map((s) => [s.hook, sae(s), h("code", {}, s.key)]),
    ["connectors", head.fits.map((f) => [h("code", {}, f.key), ` (l1_alpha ${digits(f.l1_alpha)}) `])],
  ];
  if (head.command) facts.push(["command", h("code", {}, head.command)]);
  page.append(
    h("h2", {}, "What was run"),
    h(
      "dl",
      {},
      facts.map(([name, ...value]) => [h("dt", {}, name), h("dd", {}, value)]),
    ),
  );
}

export async function overview(page, later) {
  const index = await readIndex();
  title(page);
  found(page, index);
  highlights(page, index);
  page.append(remarksFile());
  connectors(page);
  plots(page, later);
  page.append(h("h2", {}, "Claims against ablations"), ...verification());
  percentLinear(page, later);
  origin(page);
}
