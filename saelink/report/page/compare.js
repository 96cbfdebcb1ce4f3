// Two connectors side by side on one target: what each makes it from, and the terms that they share.

import { choice, column, figure, h, nowhere, quoted, signed, table } from "./dom.js";
import { verdictMark, verdictsMean } from "./edges.js";
import { count, counted, digits, share, weight } from "./format.js";
import { logicParts } from "./logic.js";
import { fitName, nameLink, readIndex } from "./names.js";
import { head } from "./pieces.js";
import { go, place, route } from "./route.js";
import { readCircuit, readEdges } from "./stored.js";

// The command that adds connectors of the store which are not on the page.
export function addCommand(keys) {
  const command = head.command ?? "saelink report";
  const own = /\s'?report\.connectors=\[([^\]]*)\]'?/.exec(command);
  const all = [...(own?.[1].split(",").filter(Boolean) ?? []), ...keys];
  return `${command.replace(own?.[0] ?? "", "")} 'report.connectors=[${all.join(",")}]'`;
}

const absent = () => head.table.filter((row) => row.addable);

// What stands where one would look for the connectors that are not on the page.
export function missingFits() {
  const rows = absent();
  if (!rows.length) {
    if (head.table.some((row) => /\bcausal\b/.test(row.name))) return null;
    const fit = h("code", {}, `saelink evaluate layer=${head.layer} solver=causal`);
    return h("p", { class: "dim small" }, "The store has no other connector of these latents. One more, fitted to effects in the model: ", fit, ", then make the report again.");
  }
  return h(
    "p",
    { class: "dim small" },
    `In the store, not on this page: ${rows.map((r) => `${r.name} at ${digits(r.l1_alpha)}`).join("; ")}. To add ${rows.length > 1 ? "them" : "it"}: `,
    h("code", {}, addCommand(rows.map((r) => r.key))),
  );
}

// Every edge into a target by its input's name; hidden units of two connectors are not the same.
async function edgesOf(fit, number) {
  const { direct } = head.fits[fit];
  const found = (await readEdges(fit, number)) ?? [];
  const name = (edge) => (edge.input < direct ? edge.name : `${edge.name} of ${fit + 1}`);
  return new Map(found.map((edge) => [name(edge), { ...edge, source: edge.input < direct }]));
}

function side(number, fit, circuit, index) {
  if (!circuit) return h("section", {}, h("h2", {}, fitName(fit)), h("p", {}, "It does not explain this latent."));
  const facts = `FVU ${digits(circuit.fvu)}, ${counted(circuit.n_edges, "edge")}, fires on ${count(circuit.fired)} test tokens`;
  const link = h("a", { href: place("target", number, { fit }) }, fitName(fit));
  return h("section", {}, h("h2", {}, link), h("p", { class: "dim" }, facts), ...logicParts(circuit, index.fits[fit].why[number]));
}

const STRONGEST = 40;

function together(ones, others, a, b) {
  const size = (name) => Math.max(Math.abs(ones.get(name)?.weight ?? 0), Math.abs(others.get(name)?.weight ?? 0));
  const names = [...new Set([...ones.keys(), ...others.keys()])].sort((x, y) => size(y) - size(x));
  const shared = names.filter((name) => ones.has(name) && others.has(name));
  const agree = shared.filter((name) => Math.sign(ones.get(name).weight) === Math.sign(others.get(name).weight));
  const cell = (edges) => (name) => {
    const edge = edges.get(name);
    return edge ? [signed(edge.weight, weight(edge.weight)), " ", verdictMark(edge.verdict)] : h("span", { class: "dim" }, "no edge");
  };
  const first = (name) => {
    const edge = ones.get(name) ?? others.get(name);
    return [edge.source ? nameLink(name, edge.input) : name, " ", quoted(edge.token)];
  };
  const effect = (name) => ones.get(name)?.effect ?? others.get(name)?.effect;
  return [
    h("h2", {}, "Edges side by side"),
    h(
      "p",
      {},
      `Edges in both: ${count(shared.length)} of ${count(names.length)}; of the same sign: ${count(agree.length)}. Weights of different connectors are in the same units.`,
      names.length > STRONGEST ? ` Shown: the ${STRONGEST} with the largest weight.` : "",
    ),
    table(
      [
        column("input", first),
        figure(fitName(a), cell(ones)),
        figure(fitName(b), cell(others)),
        figure("in the model", (name) => share(effect(name)), "what the target loses when the source is ablated, of its mean activation"),
      ],
      names.slice(0, STRONGEST),
    ),
    verdictsMean([...ones.values(), ...others.values()]) ?? "",
  ];
}

// The fit that is asked for; without a wish one of another kind, since penalties of one kind differ least.
function besideFit(fit, wished) {
  if (wished !== null && head.fits[wished]) return Number(wished);
  const other = head.fits.findIndex((each) => each.name !== head.fits[fit].name);
  if (other >= 0) return other;
  return fit || head.fits.length < 2 ? 0 : 1;
}

export async function compare(page) {
  const index = await readIndex();
  const n = route.number;
  if (!(n >= 0 && n < head.d.target)) return nowhere(page);
  const a = route.fit;
  const b = besideFit(a, route.words.get("with"));
  const fits = head.fits.map((_, i) => [i, fitName(i)]);
  const words = { with: String(b) };
  page.append(
    h("h1", {}, `OF${n} in two connectors `, quoted(index.token[n])),
    h(
      "div",
      { class: "pager" },
      h("a", { href: place("target", n) }, "← its card"),
      choice("this", "fit", fits, a, (fit) => go("compare", n, { ...words, fit: Number(fit) })),
      choice("beside", "with", fits, b, (fit) => go("compare", n, { with: String(fit) })),
    ),
  );
  if (head.fits.length < 2) page.append(h("p", {}, "This page holds one connector."));
  const [one, two] = await Promise.all([readCircuit(a, n), readCircuit(b, n)]);
  page.append(h("div", { class: "columns" }, side(n, a, one, index), side(n, b, two, index)));
  if (one && two) {
    const [ones, others] = await Promise.all([edgesOf(a, n), edgesOf(b, n)]);
    page.append(...together(ones, others, a, b));
  }
  const more = missingFits();
  if (more) page.append(more);
}
