// The first view: what was measured, where to start, the connectors side by side, what was run.

import { column, figure, h, quoted, table } from "./dom.js";
import { experimentParts } from "./experiments.js";
import { count, digits, given, percent } from "./format.js";
import { head, piece } from "./pieces.js";
import { frontierPlot, lossPlot } from "./plots.js";
import { place, route } from "./route.js";
import { verification } from "./verification.js";

const KINDS = [
  ["or", "OR", "any of several sources alone makes the target fire"],
  ["and not", "AND NOT", "a source makes it fire unless another is active"],
  ["and", "AND", "two sources only together"],
  ["copy", "Copy", "one source does it"],
  ["outlier", "Outlier", "fires on first tokens, first delimiters or massive activations"],
];

function title(page) {
  const { metrics } = head.fits[route.fit];
  page.append(
    h("h1", {}, head.title),
    h(
      "p",
      {},
      `How ${count(metrics.n_targets)} target latents at `,
      h("code", {}, head.link.target),
      ` follow from ${count(head.d.source)} source latents at `,
      h("code", {}, head.link.sources.join(" + ")),
      `: a ${head.connector} connector, measured on ${count(metrics.n_tokens)} tokens of test documents that nothing was fitted on.`,
    ),
  );
}

function highlights(page) {
  page.append(h("h2", {}, "Start here"));
  const chosen = "Best predicted first, and only where ablating every source that the logic names confirms its edge.";
  if (head.verified.length) page.append(h("p", { class: "dim small" }, chosen));
  const chip = ({ latent, token }) =>
    h("a", { class: "chip", href: place("target", latent) }, `OF${latent} `, quoted(token));
  for (const [kind, text, meaning] of KINDS) {
    const latents = head.highlights[kind];
    if (!latents || !latents.length) continue;
    const label = h("span", { class: "dim", title: meaning }, text);
    page.append(h("div", { class: "chips" }, label, latents.map(chip)));
  }
  const elbow = head.frontier.find((point) => point.elbow && point.fit !== null);
  if (!elbow) return;
  const label = h("span", { class: "dim", title: "kneedle on (log L1, validation MSE)" }, "Frontier's elbow");
  const text = `l1_alpha ${digits(elbow.l1_alpha)}: FVU ${digits(elbow.fvu)}, ${count(elbow.n_edges)} edges`;
  const link = h("a", { class: "chip", href: place("circuits", undefined, { fit: elbow.fit }) }, text);
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
        column("key", (r) => h("code", {}, r.key || "")),
      ],
      head.table.map((r) => ({ ...r, own: given(r.fit) })),
    ),
  );
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
    const where = h("div", { class: "plot", id: "frontier" });
    const note = "Large points have their circuits on this page: click one and they follow it. Rings: elbows.";
    section("Error against sparsity", note, where);
    later.push(() => frontierPlot(where, head.frontier));
  }
  if (head.curves.length) {
    const where = h("div", { class: "plot" });
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

export function overview(page, later) {
  title(page);
  highlights(page);
  connectors(page);
  plots(page, later);
  page.append(h("h2", {}, "Which edges are real"), ...verification());
  percentLinear(page, later);
  origin(page);
}
