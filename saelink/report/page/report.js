"use strict";
// Everything is built with textContent: a token is text, whatever it holds.

const head = JSON.parse(document.getElementById("head").textContent);
const main = document.getElementById("main");
const parsed = new Promise((done) => {
  if (document.readyState !== "loading") done();
  else document.addEventListener("DOMContentLoaded", () => done());
});

// ------------------------------------------------------------------ pieces

const unpacked = new Map();

async function inflate(name) {
  await parsed;
  const element = document.getElementById("piece:" + name);
  if (!element) return null;
  const bytes = Uint8Array.from(atob(element.textContent), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

function piece(name) {
  if (!unpacked.has(name)) {
    if (unpacked.size > 200) unpacked.delete(unpacked.keys().next().value);
    unpacked.set(name, inflate(name).then((text) => (text === null ? null : JSON.parse(text))));
  }
  return unpacked.get(name);
}

async function entry(kind, number) {
  const found = await piece(`${kind}/${Math.floor(number / head.piece)}`);
  return found ? found[String(number)] : undefined;
}

let plotting = null;
function plotly() {
  plotting ??= inflate("plotly").then(
    (text) =>
      new Promise((done, fail) => {
        const script = document.createElement("script");
        script.src = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
        script.onload = () => done(window.Plotly);
        script.onerror = fail;
        document.head.append(script);
      }),
  );
  return plotting;
}

// ------------------------------------------------------------------ building blocks

function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") element.style.cssText = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const count = (n) => (n === null || n === undefined ? "–" : n.toLocaleString("en"));
const digits = (v, n = 3) =>
  v === null || v === undefined || Number.isNaN(v) ? "–" : v === 0 ? "0" : Math.abs(v) >= 1e-3 && Math.abs(v) < 1e5 ? String(+v.toPrecision(n)) : v.toExponential(n - 1);
const percent = (v) => (v === null || v === undefined ? "–" : (100 * v).toFixed(v && v < 0.1 ? 1 : 0) + "%");
const weight = (w) => {
  const size = Math.abs(w);
  const text = size === 0 ? "0" : size < 0.005 ? (size < 5e-5 ? size.toExponential(0) : String(+size.toPrecision(1))) : size.toFixed(2);
  return (w < 0 ? "−" : "") + text.replace(/^0\./, ".");
};

// What can't be seen, or would break a line, is spelt out.
const SPELT = { "\n": "⏎", "\t": "⇥", "\r": "␍", "\u00a0": "⍽" };
const visible = (token) =>
  token.replace(/[\n\t\r\u00a0]/g, (c) => SPELT[c]).replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
const quoted = (token) => (token === null || token === undefined ? "" : h("span", { class: "quote" }, `"${visible(token)}"`));

function place(kind, number, options = {}) {
  const words = new URLSearchParams();
  const fit = options.fit ?? route.fit;
  if (fit) words.set("fit", fit);
  for (const [name, value] of Object.entries(options)) if (name !== "fit" && value) words.set(name, value);
  const tail = words.toString();
  return `#/${kind}${number === undefined ? "" : "/" + number}${tail ? "?" + tail : ""}`;
}

function nameLink(name, number) {
  const kind = name.startsWith("OF") ? "target" : name.startsWith("H") ? "hidden" : "source";
  return h("a", { href: place(kind, number ?? numberOf(name)) }, name);
}

function named(name, number) {
  const token = name.startsWith("IF") ? index?.source_token[number ?? numberOf(name)] : null;
  return [nameLink(name, number), token ? [" ", quoted(token)] : null];
}

// The number of a name: sources of several hooks are numbered through.
function numberOf(name) {
  if (!name.includes(".")) return Number(name.replace(/^[A-Z]+/, ""));
  return sourceNumbers().get(name);
}
let byName = null;
function sourceNumbers() {
  byName ??= new Map((index?.source_name || []).map((name, i) => [name, i]));
  return byName;
}

function listTable(columns, rows, attributes = {}) {
  return h("div", { class: "scroll" }, h("table", attributes,
    h("thead", {}, h("tr", {}, columns.map((c) => h("th", { class: c.number ? "n" : null, scope: "col", title: c.title }, c.head)))),
    h("tbody", {}, rows.map((row) => h("tr", { class: row.own ? "own" : null }, columns.map((c) => h("td", { class: c.number ? "n" : null }, c.cell(row))))))));
}

async function plot(where, traces, layout, clicked) {
  const Plotly = await plotly();
  if (!where.isConnected) return;
  const axis = { gridcolor: color("--line"), zerolinecolor: color("--line"), automargin: true };
  const full = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: color("--ink"), size: 12 },
    margin: { l: 55, r: 12, t: 12, b: 42 }, hovermode: "closest", legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    colorway: ["#e07b00", "#2f7ed8", "#2aa05a", "#b14ecb", "#c7384a", "#7a8a99", "#b59a00"],
    ...layout, xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
  };
  if (traces.length > 6) where.style.height = `${300 + 12 * traces.length}px`; // the legend takes room
  await Plotly.react(where, traces, full, { displayModeBar: false, responsive: true });
  if (clicked) {
    where.removeAllListeners?.("plotly_click");
    where.on("plotly_click", (event) => clicked(event.points[0]));
  }
}

// ------------------------------------------------------------------ where we are

const route = { view: "", number: undefined, fit: 0, words: new URLSearchParams() };
let index = null;
const ready = piece("index").then((found) => (index = found));

const VIEWS = [
  ["", "Overview"], ["circuits", "Circuits"], ["sources", "Sources"],
  ...(head.has_hidden ? [["units", "Hidden units"]] : []), ["outliers", "Outliers"],
  ...(head.experiments.length ? [["experiments", "Experiments"]] : []),
];

function read() {
  const [path, tail] = location.hash.replace(/^#\/?/, "").split("?");
  const [view, number] = path.split("/");
  route.words = new URLSearchParams(tail || "");
  route.view = view;
  route.number = number === undefined ? undefined : Number(number);
  route.fit = Math.min(Number(route.words.get("fit")) || 0, head.fits.length - 1);
}

let drawn = 0;
async function show() {
  read();
  const mine = ++drawn;
  const nav = document.getElementById("nav");
  const own = { target: "circuits", source: "sources", hidden: "units", experiment: "experiments" }[route.view] ?? route.view;
  nav.replaceChildren(...VIEWS.map(([view, text]) => h("a", { href: place(view), "aria-current": view === own ? "page" : null }, text)));
  const view = { "": overview, circuits, sources, units, outliers, experiments, experiment, target, source, hidden }[route.view] ?? missing;
  const page = h("div");
  const later = [];
  try {
    await view(page, later);
  } catch (error) {
    page.append(h("p", { class: "flag" }, `This part of the page can't be read: ${error.message}`));
    console.error(error);
  }
  if (mine !== drawn) return; // the reader went on meanwhile
  main.replaceChildren(page);
  window.scrollTo(0, 0);
  for (const job of later) await job();
}

function missing(page) {
  page.append(h("h1", {}, "There is no such place on this page"), h("p", {}, h("a", { href: "#/" }, "To the overview")));
}

// ------------------------------------------------------------------ overview

function overview(page, later) {
  const first = head.fits[route.fit];
  page.append(h("h1", {}, head.title));
  page.append(h("p", {}, `How ${count(first.metrics.n_targets)} target latents at `, h("code", {}, head.link.target), ` follow from ${count(head.d.source)} source latents at `,
    h("code", {}, head.link.sources.join(" + ")), `: a ${head.connector} connector, measured on ${count(first.metrics.n_tokens)} tokens of test documents that nothing was fitted on.`));
  const shown = [
    ["or", "OR", "any of several sources alone makes the target fire"], ["and not", "AND NOT", "a source makes it fire unless another is active"],
    ["and", "AND", "two sources only together"], ["copy", "Copy", "one source does it"], ["outlier", "Outlier", "fires on first tokens, first delimiters or massive activations"],
  ];
  page.append(h("h2", {}, "Start here"));
  for (const [kind, text, title] of shown) {
    const found = head.highlights[kind];
    if (!found || !found.length) continue;
    page.append(h("div", { class: "chips" }, h("span", { class: "dim", title }, text),
      found.map((entry) => h("a", { class: "chip", href: place("target", entry.latent) }, `OF${entry.latent} `, quoted(entry.token)))));
  }
  const elbow = head.frontier.find((point) => point.elbow && point.fit !== null);
  if (elbow) page.append(h("div", { class: "chips" }, h("span", { class: "dim", title: "kneedle on (log L1, validation MSE)" }, "Frontier's elbow"),
    h("a", { class: "chip", href: place("circuits", undefined, { fit: elbow.fit }) }, `l1_alpha ${digits(elbow.l1_alpha)}: FVU ${digits(elbow.fvu)}, ${count(elbow.n_edges)} edges`)));

  page.append(h("h2", {}, "Connectors"), h("p", { class: "dim small" }, "All on the same test tokens and targets. FVU: squared error over variance, 0 is perfect, 1 predicts the mean. Oracle: the true computation between the SAEs; no connector has to beat it. Shaded: the connectors whose circuits are on this page."));
  page.append(listTable([
    { head: "connector", cell: (r) => (r.fit !== null && r.fit !== undefined ? h("a", { href: place("circuits", undefined, { fit: r.fit }) }, r.name) : r.name) },
    { head: "l1_alpha", number: true, cell: (r) => (r.l1_alpha === undefined ? "" : digits(r.l1_alpha)) },
    { head: "MSE", number: true, cell: (r) => digits(r.mse) }, { head: "FVU", number: true, cell: (r) => digits(r.fvu) },
    { head: "median latent", number: true, title: "median FVU over target latents", cell: (r) => digits(r.fvu_median_latent, 2) },
    { head: "FVU < .5", number: true, title: "target latents with FVU below .5", cell: (r) => percent(r.fraction_predicted) },
    { head: "L1", number: true, cell: (r) => digits(r.l1) }, { head: "edges", number: true, cell: (r) => count(r.n_edges) },
    { head: "CE recovered", number: true, cell: (r) => digits(r.ce_loss_recovered) }, { head: "key", cell: (r) => h("code", {}, r.key || "") },
  ], head.table.map((r) => ({ ...r, own: r.fit !== null && r.fit !== undefined }))));
  if (head.table.every((r) => r.ce_loss_recovered === null || r.ce_loss_recovered === undefined)) page.append(h("p", { class: "dim small" }, "CE recovered: run ", h("code", {}, "saelink evaluate eval.ce=true"), " and make the report again."));

  const columns = h("div", { class: "columns" });
  page.append(columns);
  if (head.frontier.length > 1) {
    const where = h("div", { class: "plot", id: "frontier" });
    columns.append(h("section", {}, h("h2", {}, "Error against sparsity"), h("p", { class: "dim small" }, "Large points have their circuits on this page: click one and they follow it. Rings: elbows."), where));
    later.push(() => frontier(where));
  }
  if (head.curves.length) {
    const where = h("div", { class: "plot" });
    columns.append(h("section", {}, h("h2", {}, "Loss while training"), h("p", { class: "dim small" }, "Validation documents. An exact fit has no curve."), where));
    later.push(() => plot(where, head.curves.map((c) => ({ x: c.tokens, y: c.mse, name: c.name, mode: "lines" })), { xaxis: { title: { text: "training tokens" } }, yaxis: { title: { text: "MSE" }, type: "log", dtick: "D1" } }));
  }
  page.append(h("h2", {}, "Which edges are real"), ...real());
  const linear = head.experiments.find((e) => e.name === "percent_linear");
  page.append(h("h2", {}, "Percent linear"));
  if (linear) {
    const box = h("div");
    page.append(box);
    later.push(async () => box.append(...experimentParts(await piece("experiment/percent_linear"))));
  } else page.append(h("p", { class: "dim" }, "Not measured on these latents yet: ", h("code", {}, `saelink run experiment=percent_linear layer=${head.layer}`), ", then make the report again."));

  page.append(h("h2", {}, "What was run"));
  const facts = [
    ["model", head.model], ["text", `${head.data}: ${Object.entries(head.tokens).map(([s, n]) => `${count(n)} ${s}`).join(", ")} tokens, packed to ${head.context}`],
    ["link", `${head.link.name}: ${head.link.sources.join(" + ")} → ${head.link.target}`],
    ...head.saes.map((s) => [s.hook, `SAE with ${count(s.d_sae)} latents, ${digits(s.l0)} active a token, FVU ${digits(s.fvu)}, ${count(s.dead)} dead; latents in units of ${digits(s.scale)}; `, h("code", {}, s.key)]),
    ["connectors", head.fits.map((f) => [h("code", {}, f.key), ` (l1_alpha ${digits(f.l1_alpha)}) `])], ...(head.command ? [["command", h("code", {}, head.command)]] : []),
  ];
  page.append(h("dl", {}, facts.map(([name, ...value]) => [h("dt", {}, name), h("dd", {}, value)])));
}

function real() {
  if (!head.verify) return [h("p", { class: "dim" }, "The effects of single edges can't be measured for this link.")];
  if (!head.verified.length) return [h("p", { class: "dim" }, "Not asked yet: ", h("code", {}, head.command ? head.command.replace("saelink report", "saelink verify") : head.verify), " ablates every source in the model; make the report again after it.")];
  const between = (f, name) => (f[name] === null || f[name] === undefined ? "–" : h("span", { title: `95%: ${digits(f[name + "_low"], 2)} to ${digits(f[name + "_high"], 2)}` }, digits(f[name], 2)));
  const of = (f, word) => percent(f["edges_" + word.replace(" ", "_")] / Math.max(f.edges, 1));
  const rows = head.verified.flatMap((v) => [
    { own: true, f: v.figures, stable: v.stable, name: h("a", { href: place("circuits", undefined, { fit: v.fit }) }, `l1_alpha ${digits(head.fits[v.fit].l1_alpha)}`) },
    ...Object.entries(v.nulls || {}).map(([name, f]) => ({ f, name: h("span", { class: "dim" }, name) })),
  ]);
  const f = head.verified[0].figures;
  return [
    h("p", {}, `An edge claims what the target loses when its source goes. Taken out of the model itself, ${count(f.strong)} source-target pairs have a strong effect (verify.strong, of the target's mean activation), ${percent(f.strong_suppressive / Math.max(f.strong, 1))} of them suppressive. Below the connectors the same claims against effects they should not agree with.`),
    listTable([
      { head: "edges of", cell: (r) => r.name }, { head: "edges", number: true, cell: (r) => count(r.f.edges) },
      ...Object.keys(VERDICTS).map((word) => ({ head: word, number: true, title: VERDICTS[word], cell: (r) => of(r.f, word) })),
      { head: "stable", number: true, title: "chosen in 90% of the fits on halves of the documents", cell: (r) => percent(r.stable) },
      { head: "missed", number: true, title: "strong effects without an edge, and how many of them suppressive", cell: (r) => `${count(r.f.missed)}, ${count(r.f.missed_suppressive)} −` },
      { head: "precision", number: true, title: "of the strongest claims, as many as there are sources: strong in the model, with that sign", cell: (r) => between(r.f, "precision_1x") },
      { head: "found + / −", number: true, title: "of strong positive and of strong suppressive effects, among ten times as many claims", cell: (r) => [between(r.f, "recall_positive_10x"), " / ", between(r.f, "recall_suppressive_10x")] },
      { head: "slope", number: true, title: "of effects on claims; below 1 the claims overstate", cell: (r) => between(r.f, "slope_1x") }, { head: "r²", number: true, cell: (r) => between(r.f, "r2_1x") },
    ], rows),
    h("p", {}, `Pooled figures flatter: ${percent(f.strong_in_first_tenth_of_sources)} of the strong effects come from a tenth of the sources. One by one, among ten times as many claims as sources, 10% / median / 90%: `,
      [["target", "recall"], ["target", "precision"], ["source", "recall"], ["source", "precision"]].map(([of, word]) => `${word} by ${of} ${[10, 50, 90].map((q) => digits(f[`${word}_10x_by_${of}_${q}`], 2)).join(" / ")}`).join("; ") + "."),
    ...consequences(head.verified[0].consequences || []),
  ];
}

// What the model's next token loses without an edge, its target, or an outlier latent.
function consequences(rows) {
  if (!rows.length) return [];
  const what = { edge: "edge", target: "whole latent", outlier: "outlier" };
  return [
    h("h3", {}, "What the next token loses without it"),
    h("p", { class: "dim" }, `Taken out of the model at one of up to ${Math.max(...rows.map((r) => r.tokens))} test tokens, of an edge only what its source does to its target. Nats; beside it an equal step along another latent's direction.`),
    listTable([
      { head: "", cell: (r) => h("span", { class: "dim" }, what[r.kind]) },
      { head: "target", cell: (r) => [nameLink(`OF${r.target}`, r.target), " ", quoted(r.target_token)] },
      { head: "source", cell: (r) => (r.source === null ? "" : [nameLink(r.source_name, r.source), " ", quoted(r.source_token)]) },
      { head: "log-probability", number: true, title: "of the actual next token", cell: (r) => h("span", { class: r.logp < 0 ? "minus" : "plus", title: r.logp_error === null ? "" : `standard error ${digits(r.logp_error, 2)}` }, digits(r.logp, 2)) },
      { head: "KL", number: true, title: "of the clean prediction from the one without it", cell: (r) => digits(r.kl, 2) },
      { head: "KL, other", number: true, title: "of an equal step along another latent", cell: (r) => digits(r.kl_null, 2) },
    ], rows),
  ];
}

function frontier(where) {
  const names = [...new Set(head.frontier.map((p) => p.name))];
  const traces = names.map((name) => {
    const points = head.frontier.filter((p) => p.name === name);
    return {
      x: points.map((p) => p.l1), y: points.map((p) => p.fvu), name, mode: "lines+markers", customdata: points.map((p) => p.fit),
      text: points.map((p) => `l1_alpha ${digits(p.l1_alpha)}<br>${count(p.n_edges)} edges<br>FVU ${digits(p.fvu)}${p.elbow ? "<br>elbow" : ""}`), hovertemplate: "%{text}",
      marker: { size: points.map((p) => (p.fit === null ? 6 : 12)), line: { color: color("--ink"), width: points.map((p) => (p.elbow ? 2.5 : 0)) } },
    };
  });
  return plot(where, traces, { xaxis: { type: "log", title: { text: "L1" } }, yaxis: { title: { text: "FVU, test documents" } }, showlegend: true }, (point) => {
    if (point.customdata !== null && point.customdata !== undefined) location.hash = place("circuits", undefined, { fit: point.customdata }).slice(1);
  });
}

// ------------------------------------------------------------------ circuits

const VERDICTS = {
  confirmed: "ablating the source in the model has at least half the claimed effect", weaker: "less than half of it", "no effect": "less than a tenth of it",
  opposite: "the other sign", unclear: "the sign differs between halves of the documents, or the source is rare", faint: "claims under 1% of the target's mean activation",
};
const judged = (verdict) => (verdict ? "v-" + verdict.replace(" ", "-") : "");
const share = (v) => (v === null || v === undefined ? "–" : (v < 0 ? "−" : "+") + (100 * Math.abs(v)).toFixed(Math.abs(v) < 0.1 ? 1 : 0) + "%");

function formula(terms, more) {
  if (!terms || !terms.length) return h("span", { class: "dim" }, "no edge");
  return h("span", {}, terms.map(([input, w, verdict], i) => {
    const direct = input < head.direct;
    const name = direct ? index.source_name[input] : `H${input - head.direct}`;
    const token = direct ? index.source_token[input] : null;
    const sign = i ? (w < 0 ? " − " : " + ") : w < 0 ? "−" : "";
    return [sign, h("span", { class: (w < 0 ? "minus " : "plus ") + judged(verdict), title: verdict ? `${verdict}: ${VERDICTS[verdict]}` : null }, weight(Math.abs(w))), " ", nameLink(name, input), " ", quoted(token)];
  }), more > 0 ? h("span", { class: "dim" }, ` … ${more} more`) : null);
}

const ROWS = 50;

async function circuits(page) {
  await ready;
  const fit = index.fits[route.fit];
  const query = (route.words.get("q") || "").trim();
  const word = route.words.get("logic") || "";
  const sort = route.words.get("sort") || "fvu";
  const from = Number(route.words.get("from")) || 0;
  const gains = index.gains.map((g, i) => ["gain" + i, g]);
  const numbers = matching(query, fit).filter((i) => fit.n_edges[i] !== null && (!word || fit.word[i] === word || (word === "outlier" && index.outlier[i])));
  const value = {
    fvu: (i) => fit.fvu[i] ?? Infinity, edges: (i) => fit.n_edges[i], active: (i) => -index.active[i], number: (i) => i,
    outlier: (i) => -index.outlier[i] + (fit.fvu[i] ?? 9) / 10, ...Object.fromEntries(gains.map(([name, g]) => [name, (i) => -(g.gain[i] ?? -Infinity)])),
  }[sort] ?? ((i) => i);
  numbers.sort((a, b) => value(a) - value(b) || a - b);
  const keep = { q: query, logic: word, sort };
  page.append(h("h1", {}, "Circuits"));
  page.append(h("p", { class: "dim small" }, "Each target latent as a sum of sources with their weights, strongest first. Logic is read from which sources are active when the target fires on test documents, not from the signs of the weights."));
  const go = (changes) => (location.hash = place("circuits", undefined, { ...keep, ...changes }).slice(1));
  const words = [...new Set(fit.word.filter((w) => w))].sort();
  page.append(h("div", { class: "pager" },
    head.fits.length > 1 ? h("label", {}, "l1_alpha ", h("select", { id: "fit", onchange: (e) => (location.hash = place("circuits", undefined, { ...keep, fit: Number(e.target.value) }).slice(1)) },
      head.fits.map((f, i) => h("option", { value: i, selected: i === route.fit }, `${digits(f.l1_alpha)} (FVU ${digits(f.metrics.fvu)}, ${count(f.metrics.n_edges)} edges)`)))) : null,
    h("label", {}, "logic ", h("select", { id: "logic", onchange: (e) => go({ logic: e.target.value }) },
      [["", "any"], ...words.map((w) => [w, `${w} (${fit.word.filter((x) => x === w).length})`]), ["outlier", "outlier"]].map(([w, text]) => h("option", { value: w, selected: w === word }, text)))),
    h("label", {}, "sort ", h("select", { id: "sort", onchange: (e) => go({ sort: e.target.value }) },
      [["fvu", "best predicted"], ["edges", "fewest edges"], ["active", "most active"], ["outlier", "outliers first"], ["number", "number"], ...gains.map(([name, g]) => [name, `non-linear: gained by ${g.name}`])].map(([s, text]) => h("option", { value: s, selected: s === sort }, text)))),
    h("span", { class: "dim" }, `${count(numbers.length)} targets`, query ? [" for ", quoted(query), " ", h("a", { href: place("circuits", undefined, { ...keep, q: "" }) }, "all")] : null)));
  const rows = numbers.slice(from, from + ROWS);
  page.append(listTable([
    { head: "target", cell: (i) => [h("a", { href: place("target", i) }, `OF${i}`), " ", quoted(index.token[i])] },
    { head: "=", cell: (i) => formula(fit.formula[i], fit.n_edges[i] - (fit.formula[i]?.length || 0)) },
    { head: "FVU", number: true, cell: (i) => digits(fit.fvu[i], 2) }, { head: "edges", number: true, cell: (i) => count(fit.n_edges[i]) },
    { head: "logic", cell: (i) => [fit.word[i], index.outlier[i] ? h("span", { class: "flag" }, " outlier") : null] },
    ...(sort.startsWith("gain") ? [{ head: "gain", number: true, title: "FVU here less FVU there", cell: (i) => digits(gains.find(([n]) => n === sort)[1].gain[i], 2) }] : []),
  ], rows));
  const step = (to, text) => h("a", { href: place("circuits", undefined, { ...keep, from: to }) }, text);
  page.append(h("div", { class: "pager" }, from > 0 ? step(Math.max(from - ROWS, 0), "← previous") : null,
    numbers.length ? h("span", { class: "dim" }, `${from + 1} to ${from + rows.length}`) : h("span", { class: "dim" }, "none"), from + ROWS < numbers.length ? step(from + ROWS, "next →") : null));
}

// Targets whose name, token or formula's tokens match; sources are reached through what they feed and by their own list.
function matching(query, fit) {
  const all = index.token.map((_, i) => i);
  if (!query) return all;
  const name = /^(?:OF)?(\d+)$/i.exec(query);
  if (name) return all.filter((i) => i === Number(name[1]));
  const wanted = query.toLowerCase();
  const source = /^I?F?(\d+(?:\.\d+)?)$/i.test(query) ? null : wanted;
  const holds = (token) => token !== null && token !== undefined && token.toLowerCase().includes(wanted);
  const feeds = source === null ? new Set([numberOf(query.toUpperCase())]) : new Set(index.source_token.flatMap((t, i) => (holds(t) ? [i] : [])));
  const exact = (i) => (index.token[i] || "").trim().toLowerCase() === wanted.trim();
  const found = all.filter((i) => holds(index.token[i]) || (fit.formula[i] || []).some(([input]) => input < head.direct && feeds.has(input)));
  return found.sort((a, b) => exact(b) - exact(a));
}

async function sources(page) {
  await ready;
  const query = (route.words.get("q") || "").trim().toLowerCase();
  const from = Number(route.words.get("from")) || 0;
  const numbers = index.source_name.map((_, i) => i).filter((i) => !query || index.source_name[i].toLowerCase() === query || (index.source_token[i] || "").toLowerCase().includes(query));
  page.append(h("h1", {}, "Source latents"), h("p", { class: "dim" }, `${count(numbers.length)} of ${count(head.d.source)}`, query ? [" for ", quoted(query), " ", h("a", { href: place("sources") }, "all")] : null));
  page.append(h("div", { class: "chips" }, numbers.slice(from, from + 300).map((i) => h("a", { class: "chip", href: place("source", i) }, index.source_name[i], " ", quoted(index.source_token[i])))));
  page.append(h("div", { class: "pager" }, from > 0 ? h("a", { href: place("sources", undefined, { q: query, from: Math.max(from - 300, 0) }) }, "← previous") : null,
    from + 300 < numbers.length ? h("a", { href: place("sources", undefined, { q: query, from: from + 300 }) }, "next →") : null));
}

// ------------------------------------------------------------------ a latent

function shade(value, most) {
  const share = most > 0 ? Math.min(Math.abs(value) / most, 1) : 0;
  const rgb = value < 0 ? "--minus" : "--fire";
  return share > 0 ? `background: rgba(var(${rgb}), ${(0.12 + 0.7 * share).toFixed(2)})` : "";
}

function exampleGrid(example, most, beside, ablated) {
  const cells = (values, scale, unit, classed) => values.map((v, i) =>
    h("td", { class: i === example.at ? "at" : null, style: v ? shade(v, scale) : null, title: v === null || v === undefined ? null : `${digits(v)} ${unit}` }, classed && v ? weight(v) : ""));
  const rows = [h("tr", { class: "text" }, h("th", { scope: "row" }, digits(example.value)),
    example.tokens.map((t, i) => h("td", { class: i === example.at ? "at" : null, style: shade(example.values[i], most), title: `${digits(example.values[i])} of its SAE's mean` }, visible(t) || " ")))];
  if (beside) {
    rows.push(h("tr", { class: "small" }, h("th", { scope: "row" }, "predicted"), cells(beside.predicted.map((v) => (Math.abs(v) < 0.05 * most ? 0 : v)), most, "predicted", true)));
    for (const input of beside.inputs) {
      const scale = Math.max(...input.values, 1e-9);
      rows.push(h("tr", { class: "small" }, h("th", { scope: "row" }, nameLink(input.name)), cells(input.values, Math.max(scale, 1), input.name, true)));
    }
  }
  if (ablated) {
    const shift = 10 - example.at;
    const line = ablated.tokens.slice(shift, shift + example.tokens.length).map((v) => v ?? 0);
    rows.push(h("tr", { class: "small" }, h("th", { scope: "row", title: "change of each token's log-probability in nats when the latent's contribution is taken away" }, "Δ log p"), cells(line.map((v) => (Math.abs(v) < 0.005 ? 0 : v)), 1, "nats", true)));
    const context = ablated.context.slice(shift, shift + example.tokens.length).map((v) => (v === null || v === undefined ? 0 : v - 1));
    rows.push(h("tr", { class: "small" }, h("th", { scope: "row", title: "change of the latent's activation on the marked token when this one is left out, as a share" }, "without it"), cells(context.map((v) => (Math.abs(v) < 0.02 ? 0 : v)), 1, "of the activation", true)));
  }
  return h("div", { class: "example" },
    h("div", { class: "dim small" }, `${{ top: "strongest", size: "of its size", random: "at random" }[example.kind]} · ${example.split} document ${count(example.document)}, position ${example.position}`,
      ablated ? ` · needs ${count(ablated.needs)} ${ablated.needs === 1 ? "token" : "tokens"} for half its activation` : null),
    h("div", { class: "scroll" }, h("table", { class: "grid" }, h("tbody", {}, rows))));
}

function firesOn(card, later) {
  const plotted = h("div", { class: "plot low" });
  const d = card.histogram.length;
  later.push(() => plot(plotted, [{ type: "bar", x: card.histogram.map((_, i) => 2 ** ((i + 0.5 - d / 2) / 4)), y: card.histogram, marker: { color: "#e07b00" }, hovertemplate: "%{x:.3g}: %{y}<extra></extra>", width: card.histogram.map((_, i) => 2 ** ((i + 1 - d / 2) / 4) - 2 ** ((i - d / 2) / 4)) }],
    { xaxis: { type: "log", title: { text: card.name.startsWith("H") ? "activation, in the units' mean" : "activation, in the SAE's mean" } }, yaxis: { title: { text: "tokens" } }, bargap: 0 }));
  const q = card.quantiles;
  return h("div", { class: "columns" },
    h("section", {}, h("h3", {}, "Tokens"), listTable([
      { head: "token", cell: (t) => quoted(t.token) }, { head: "share of its activation", number: true, cell: (t) => percent(t.share) },
      { head: "fires on", number: true, cell: (t) => `${count(t.fires)} of ${count(t.occurs)}` }], card.tokens)),
    h("section", {}, h("h3", {}, "Sizes"), h("p", { class: "dim small" }, `fires on ${count(card.active)} of ${count(card.tokens_seen)} tokens (${percent(card.active / Math.max(card.tokens_seen, 1))}); half below ${digits(q["0.5"], 2)}, 90% below ${digits(q["0.9"], 2)}, 99% below ${digits(q["0.99"], 2)}`), plotted));
}

function examplesOf(card, beside, ablated) {
  if (!card.examples.length) return h("p", { class: "dim" }, `This page keeps examples of ${count(head.cards)} latents on each side (report.cards); `, h("code", {}, `saelink show ${card.name.startsWith("OF") ? "target" : "source"} ${card.name.slice(2)}`), " prints this one's.");
  const most = Math.max(...card.examples.map((e) => e.value), 1e-9);
  let ablation = 0;
  return h("section", {}, h("h2", {}, "Examples"),
    h("p", { class: "dim small" }, "Tokens shaded by the latent's activation, value on hover; the marked token is the one that was chosen.",
      beside ? " Beneath: what the connector predicted and its strongest inputs on the same tokens." : "", ablated ? " Where measured: the change of each token's log-probability without the latent, and of the latent without each token before." : ""),
    card.examples.map((e, i) => exampleGrid(e, most, beside?.[i], e.kind === "top" && ablated ? ablated[ablation++] : null)));
}

function edgeTable(edges, title) {
  return listTable([
    { head: title, cell: (e) => [nameLink(e.name, e.input), " ", quoted(e.token)] },
    { head: "weight", number: true, cell: (e) => h("span", { class: e.weight < 0 ? "minus" : "plus" }, weight(e.weight)) },
    { head: "FVU without it", number: true, title: "rise of the target's FVU on test documents when this edge alone is taken out; the rises don't add up", cell: (e) => (e.rise === null || e.rise === undefined ? "–" : Math.abs(e.rise) < 5e-5 ? "0" : (e.rise >= 0 ? "+" : "−") + (Math.abs(e.rise) < 1e-3 ? Math.abs(e.rise).toFixed(4) : digits(Math.abs(e.rise), 2))) },
    ...(edges.some((e) => e.verdict) ? [
      { head: "claims", number: true, title: "what the connector says the target loses where the source is active and is taken out, of the target's mean activation", cell: (e) => share(e.claim) },
      { head: "in the model", number: true, title: "what it does lose when the source is ablated in the model", cell: (e) => share(e.effect) },
      { head: "verdict", cell: (e) => (e.verdict ? h("span", { class: judged(e.verdict), title: VERDICTS[e.verdict] }, e.verdict) : "–") },
    ] : []),
    ...(edges.some((e) => e.chosen !== undefined) ? [{ head: "chosen again", number: true, title: "share of 24 fits on halves of the documents at neighbouring penalties in which the edge is there with its sign", cell: (e) => percent(e.chosen) }] : []),
    ...(edges.some((e) => e.both !== undefined) ? [{ head: "both active", number: true, title: "test tokens", cell: (e) => count(e.both) }] : []),
  ], edges);
}

function logicOf(card) {
  const l = card.logic;
  const names = (list) => list.map((n, i) => [i ? ", " : "", named(n)]);
  const said = {
    copy: ["A copy of ", names(l.inputs), "."], or: ["A weighted OR of ", names(l.inputs), ": each alone makes it fire."],
    and: ["An AND of ", names(l.inputs), ": only together they make it fire."], "and not": [names(l.inputs.slice(0, 1)), " AND NOT ", names(l.inputs.slice(1)), "."],
    dense: ["Dense: too many inputs add to it for one word."], unclear: ["Unclear: the counts don't say."],
  }[l.word];
  return [h("p", {}, h("b", {}, said), l.inputs.length ? h("span", { class: "dim" }, ` Holds on ${percent(l.covered)} of the ${count(card.fired)} test tokens where it fires.`) : null),
    l.evidence.length ? h("ul", { class: "small dim" }, l.evidence.map((e) => h("li", {}, "where ", names(e.on), " active", e.off.length ? [" and not ", names(e.off)] : "", `: fires on ${count(e.fired)} of ${count(e.tokens)} tokens (${percent(e.fired / Math.max(e.tokens, 1))})`, e.texts.map(sentence)))) : null,
    card.silent ? h("div", { class: "small" }, h("p", {}, "Goes with its silence, where ", named(card.silent.leader), " is active:"),
      h("ul", { class: "dim" }, card.silent.inputs.map((e) => h("li", {}, named(e.name, e.input), `: active on ${percent(e.silent / card.silent.silent)} of the ${count(card.silent.silent)} tokens where this latent is silent, ${percent(e.fires / card.silent.fires)} of the ${count(card.silent.fires)} where it fires`)))) : null];
}

function sentence(text) {
  return h("div", { class: "tok small dim" }, text.tokens.map((word, i) => (i === text.at ? h("b", { style: "color: var(--ink)" }, visible(word)) : visible(word))));
}

function together(card, later) {
  if (card.scatter) {
    const s = card.scatter;
    const where = h("div", { class: "plot" });
    const part = (fires) => s.target.map((v, i) => ((v > 0) === fires ? i : -1)).filter((i) => i >= 0);
    const three = s.inputs.length > 2;
    const traces = [[true, "fires", "#e07b00"], [false, "silent", "#7a8a99"]].map(([fires, name, c]) => {
      const chosen = part(fires);
      const shared = { name, mode: "markers", x: chosen.map((i) => s.values[0][i]), y: chosen.map((i) => s.values[1][i]), text: chosen.map((i) => `target ${digits(s.target[i])}` + (three ? `, ${s.inputs[2]} ${digits(s.values[2][i])}` : "")) };
      return { ...shared, marker: { color: c, opacity: 0.75, symbol: fires ? "circle" : "x", size: chosen.map((i) => (three ? 5 + 4 * Math.min(s.values[2][i], 3) : 7)) } };
    });
    later.push(() => plot(where, traces, { xaxis: { title: { text: s.inputs[0] } }, yaxis: { title: { text: s.inputs[1] } } }));
    return h("section", {}, h("h2", {}, "Its strong inputs together"), h("p", { class: "dim small" }, "Test tokens, evenly spread, where one of them is active.", three ? ` The third, ${s.inputs[2]}, as size.` : ""), where);
  }
  if (card.clusters && card.clusters.clusters.length) {
    const c = card.clusters;
    return h("section", {}, h("h2", {}, `${c.clusters.length} kinds of tokens it fires on`), h("p", { class: "dim small" }, `${count(c.tokens)} test tokens on which it fires, clustered by which inputs make up the prediction (HDBSCAN), with what each adds on average; ${count(c.outside)} belong to none.`),
      c.clusters.map((k) => h("div", { class: "example" }, h("div", {}, `${count(k.tokens)} tokens: `, k.inputs.map(([name, w], i) => [i ? ", " : "", named(name), ` adds ${weight(w)}`])),
        k.texts.map(sentence))));
  }
  return null;
}

function neighbours(kind, number, d) {
  return h("div", { class: "pager small" }, number > 0 ? h("a", { href: place(kind, number - 1) }, "← previous") : null, number + 1 < d ? h("a", { href: place(kind, number + 1) }, "next →") : null,
    head.fits.length > 1 && kind === "target" ? h("label", {}, "l1_alpha ", h("select", { onchange: (e) => (location.hash = place(kind, number, { fit: Number(e.target.value) }).slice(1)) }, head.fits.map((f, i) => h("option", { value: i, selected: i === route.fit }, digits(f.l1_alpha))))) : null);
}

// Where Neuronpedia shows the latent, if it does: nothing is fetched from there, it is only a link.
const elsewhere = (card) => h("p", { class: "small" }, h("a", { href: card.page, target: "_blank", rel: "noopener noreferrer" }, "on Neuronpedia"));

async function target(page, later) {
  await ready;
  const n = route.number;
  if (!(n >= 0 && n < head.d.target)) return missing(page);
  const [card, circuit, ablated] = await Promise.all([entry("target", n), entry(`circuit${route.fit}`, n), piece("ablations/target")]);
  page.append(neighbours("target", n, head.d.target), h("h1", {}, `OF${n} `, quoted(card.token), index.outlier[n] ? h("span", { class: "flag small" }, " outlier") : null));
  if (card.page) page.append(elsewhere(card));
  const flagged = head.outliers.find((o) => o.latent === n);
  if (flagged) page.append(h("p", { class: "small" }, `Outlier: of its activation on test documents ${percent(flagged.first_positions)} is on the first three positions of a sequence, ${percent(flagged.first_delimiter)} on its first delimiter, ${percent(flagged.massive)} on tokens with massive activations.`));
  if (circuit) {
    page.append(h("p", {}, `OF${n} = `, formula(circuit.edges.map((e) => [e.input, e.weight, e.verdict]).slice(0, 8), circuit.n_edges - Math.min(8, circuit.edges.length))));
    page.append(h("p", { class: "dim" }, `FVU ${digits(circuit.fvu)} on test documents${circuit.linear === undefined ? "" : `, ${percent(circuit.linear)} of what is explained linear`}, fires on ${count(circuit.fired)} of their tokens`), ...logicOf(circuit).filter(Boolean));
    if (circuit.edges.length) page.append(h("h3", {}, "Edges"), edgeTable(circuit.edges, head.direct ? (head.has_hidden ? "source or hidden unit" : "source") : "hidden unit"));
    if (circuit.missed?.length) page.append(h("h3", {}, "Missed: strong effects in the model without an edge"), listTable([
      { head: "source", cell: (e) => [nameLink(e.name, e.input), " ", quoted(e.token)] },
      { head: "in the model", number: true, title: "what the target loses when the source is ablated where it is active, of the target's mean activation", cell: (e) => h("span", { class: e.effect < 0 ? "minus" : "plus" }, share(e.effect)) },
    ], circuit.missed));
    const both = together(circuit, later);
    if (both) page.append(both);
  } else page.append(h("p", { class: "dim" }, "The connector does not explain this latent (targets.*)."));
  if (card.active) page.append(firesOn(card, later), examplesOf(card, circuit?.beside, ablated?.[n]));
  else page.append(h("p", { class: "dim" }, "It never fires on this text."));
}

async function source(page, later) {
  await ready;
  const n = route.number;
  if (!(n >= 0 && n < head.d.source)) return missing(page);
  const [card, feeds, ablated] = await Promise.all([entry("source", n), entry(`feeds${route.fit}`, n), piece("ablations/source")]);
  page.append(neighbours("source", n, head.d.source), h("h1", {}, `${card.name} `, quoted(card.token)), h("p", { class: "dim" }, h("code", {}, card.hook)));
  if (card.page) page.append(elsewhere(card));
  if (feeds && feeds.length) page.append(h("h3", {}, "Feeds"), edgeTable(feeds, head.has_hidden ? (head.direct ? "target or hidden unit" : "hidden unit") : "target"));
  else page.append(h("p", { class: "dim" }, "No edge leads from it."));
  if (card.active) page.append(firesOn(card, later), examplesOf(card, null, ablated?.[n]));
  else page.append(h("p", { class: "dim" }, "It never fires on this text."));
}

async function hidden(page, later) {
  await ready;
  const n = route.number;
  if (!(n >= 0 && n < head.d.hidden)) return missing(page);
  const card = await entry("hidden", n);
  page.append(neighbours("hidden", n, head.d.hidden), h("h1", {}, `H${n} `, quoted(card.token)));
  const k = card.classed;
  if (k) page.append(h("p", {}, h("b", {}, k.kind), h("span", { class: "dim" }, `: its heaviest token carries ${percent(k.purity)} of its activation and is ${percent(k.purity_top)} of its strongest examples; ${k.clusters === null ? "too few inputs to cluster" : `${k.clusters} clusters of inputs, the largest ${percent(k.largest_cluster)}`}; fires on ${percent(k.rate)} of held-out tokens`)));
  page.append(...logicOf(card).filter(Boolean));
  if (card.edges.length) page.append(h("h3", {}, "Inputs"), edgeTable(card.edges, "source"));
  if (card.feeds.length) page.append(h("h3", {}, "Feeds"), edgeTable(card.feeds, "target"));
  const both = together(card, later);
  if (both) page.append(both);
  if (card.active) page.append(firesOn(card, later), examplesOf(card));
}

// ------------------------------------------------------------------ lists

function units(page) {
  const found = head.hidden_units;
  page.append(h("h1", {}, "Hidden units"), h("p", { class: "dim" }, `The ${found.units.length} with the largest activations. Nearly dead: fires on under 1 in 10,000 held-out tokens. Outlier: first positions, first delimiters or massive activations carry it. Monosemantic: one token carries half of its activation and of its strongest examples, or one cluster of inputs three quarters of its tokens. Polysemantic: the rest.`));
  page.append(listTable(Object.keys(found.counts).map((kind) => ({ head: kind, number: true, cell: (c) => c[kind] })), [found.counts]));
  page.append(h("h2", {}, "Units"), listTable([
    { head: "unit", cell: (u) => [nameLink(`H${u.unit}`), " ", quoted(u.token)] }, { head: "class", cell: (u) => u.kind }, { head: "logic", cell: (u) => u.word },
    { head: "largest", number: true, cell: (u) => digits(u.largest) }, { head: "fires on", number: true, cell: (u) => percent(u.rate) }, { head: "purity", number: true, cell: (u) => percent(u.purity) },
    { head: "of strongest", number: true, cell: (u) => percent(u.purity_top) }, { head: "clusters", number: true, cell: (u) => (u.clusters === null ? "–" : u.clusters) },
    { head: "first positions", number: true, cell: (u) => percent(u.outlier.first_positions) }, { head: "massive", number: true, cell: (u) => percent(u.outlier.massive) },
  ], found.units));
}

async function outliers(page) {
  await ready;
  page.append(h("h1", {}, "Outlier latents"), h("p", { class: "dim" }, "Targets of whose activation on test documents at least half falls on the first three positions of a sequence, its first delimiter, or tokens with massive activations; those with most activation first."));
  const wide = head.outliers.some((o) => o.w2_above !== undefined);
  page.append(listTable([
    { head: "target", cell: (o) => [nameLink(`OF${o.latent}`), " ", quoted(o.token)] }, { head: "mean", number: true, title: "mean active value, in the SAE's mean", cell: (o) => digits(o.mean) }, { head: "fires on", number: true, cell: (o) => count(o.fires) },
    { head: "first positions", number: true, cell: (o) => percent(o.first_positions) }, { head: "first delimiter", number: true, cell: (o) => percent(o.first_delimiter) }, { head: "massive", number: true, cell: (o) => percent(o.massive) },
    { head: "FVU", number: true, cell: (o) => digits(index.fits[route.fit].fvu[o.latent], 2) },
    ...(wide ? [{ head: "large W2 weights, + / −", number: true, cell: (o) => `${count(o.w2_above)} / ${count(o.w2_below)}` }] : []),
  ], head.outliers.slice(0, 200)));
  if (!head.outliers.length) page.append(h("p", {}, "None."));
  if (head.w2_median) page.append(h("p", { class: "dim small" }, `W2 weights above ${digits(head.w2_median.limit)} and below −${digits(head.w2_median.limit)} into the median target: ${count(head.w2_median.above)} / ${count(head.w2_median.below)}.`));
  page.append(h("h2", {}, "Non-linear latents"), index.gains.length
    ? h("p", {}, "Latents that another connector predicts better than this one: ", index.gains.map((g, i) => [i ? ", " : "", h("a", { href: place("circuits", undefined, { sort: "gain" + i }) }, g.name)]))
    : h("p", { class: "dim" }, "Fit another connector on the same latents to see which latents gain, for example ", h("code", {}, `saelink evaluate layer=${head.layer} connector=nonlinear`), ", and make the report again."));
}

function experimentParts(found) {
  if (!found) return [];
  const columns = Object.keys(found.rows[0]).map((name) => ({ head: name, number: found.rows.every((r) => typeof r[name] !== "string"), cell: (r) => (typeof r[name] === "number" ? (Number.isInteger(r[name]) ? count(r[name]) : digits(r[name])) : r[name] === null ? "–" : String(r[name])) }));
  const text = found.text.split(/\b(OF\d+)\b/).map((part, i) => (i % 2 ? nameLink(part) : part));
  return [listTable(columns, found.rows), h("pre", { class: "dim" }, text), found.picture ? h("img", { src: "data:image/png;base64," + found.picture, alt: "the experiment's picture" }) : null].filter(Boolean);
}

function experiments(page) {
  page.append(h("h1", {}, "Experiments on these latents"), h("ul", {}, head.experiments.map((e) => h("li", {}, h("a", { href: `#/experiment/0?name=${encodeURIComponent(e.name)}` }, e.name), h("span", { class: "dim" }, `: ${e.title}`)))));
}

async function experiment(page) {
  const name = route.words.get("name");
  const about = head.experiments.find((e) => e.name === name);
  if (!about) return missing(page);
  page.append(h("h1", {}, about.name), h("p", { class: "dim" }, about.title, " · ", h("code", {}, about.key)), ...experimentParts(await piece("experiment/" + name)));
}

// ------------------------------------------------------------------ go

document.getElementById("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const query = document.getElementById("query").value;
  const source = /^IF(\d+(?:\.\d+)?)$/i.exec(query.trim());
  const own = /^OF(\d+)$/i.exec(query.trim());
  if (own && Number(own[1]) < head.d.target) location.hash = place("target", Number(own[1])).slice(1);
  else if (source && numberOf(query.trim().toUpperCase()) < head.d.source) location.hash = place("source", numberOf(query.trim().toUpperCase())).slice(1);
  else location.hash = place(route.view === "sources" ? "sources" : "circuits", undefined, { q: query }).slice(1);
});
window.addEventListener("hashchange", show);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
show();
