// A page of its own: one prompt's graph, from its tokens at the bottom to the next token at the top.

import { diagram } from "./diagram.js";
import { choice, figure, column, h, signed, table } from "./dom.js";
import { digits, given, visible } from "./format.js";

const graph = JSON.parse(document.getElementById("graph").textContent);
const nodes = new Map(graph.nodes.map((node) => [node.node_id, node]));

const WIDE = 104;
const ROW = 150;
const LINKS = [15, 30, 60, 120, 250];

const layers = graph.nodes.map((node) => Number(node.layer)).filter((layer) => !Number.isNaN(layer));
const first = Math.min(...layers);

function kindOf(node) {
  if (node.feature_type === "embedding") return "token";
  if (node.feature_type === "logit") return "next token";
  const side = Number(node.layer) === first ? "source" : "target";
  return node.feature_type.includes("error") ? `${side} error` : side;
}

const ROWS = { "next token": 0, target: 1, "target error": 1, source: 2, "source error": 2, token: 3 };
const KINDS = { "next token": "next token", target: "target latent", source: "source latent", token: "token of the prompt", "target error": "what the connector or an SAE leaves out", "source error": "what the source SAE leaves out" };

const state = { most: 60, chosen: null };

const name = (node) => visible(node.clerp).trim();
const clipped = (text) => (text.length > 16 ? text.slice(0, 15) + "…" : text);

// The strongest links, all of the chosen node's first.
function shownLinks() {
  const own = (link) => link.source === state.chosen || link.target === state.chosen;
  return [...graph.links].sort((a, b) => own(b) - own(a) || Math.abs(b.weight) - Math.abs(a.weight)).slice(0, state.most);
}

function boxesOf(links) {
  const joined = new Set(links.flatMap((link) => [link.source, link.target]));
  const shown = graph.nodes.filter((node) => joined.has(node.node_id) || ["token", "next token"].includes(kindOf(node)));
  const stacked = new Map();
  const boxes = [];
  for (const node of shown) {
    const key = `${ROWS[kindOf(node)]} ${node.ctx_idx}`;
    stacked.set(key, [...(stacked.get(key) ?? []), node]);
  }
  const deepest = [0, 1, 2, 3].map((row) => Math.max(1, ...[...stacked].filter(([key]) => key[0] === String(row)).map(([, all]) => all.length)));
  const tops = [0, 0, 0, 0];
  for (let row = 1; row < 4; row += 1) tops[row] = tops[row - 1] + deepest[row - 1] * 44 + ROW - 44;
  for (const [key, all] of stacked) {
    const [row, position] = key.split(" ").map(Number);
    all.forEach((node, i) => {
      const id = node.node_id;
      boxes.push({
        id,
        x: position * (WIDE + 22),
        y: tops[row] + i * 44,
        wide: WIDE,
        high: 36,
        lines: [clipped(name(node)), given(node.activation) ? digits(node.activation, 2) : ""].filter(Boolean),
        says: `${name(node)}, ${KINDS[kindOf(node)]} at position ${node.ctx_idx}`,
        own: id === state.chosen,
        class: kindOf(node).replace(" ", "-"),
        chosen: () => choose(id),
      });
    });
  }
  return boxes;
}

function linksOf(links) {
  const most = Math.max(...links.map((link) => Math.abs(link.weight)), 1e-9);
  return links.map((link) => {
    const own = link.source === state.chosen || link.target === state.chosen;
    const faint = state.chosen && !own ? "faint-link" : "";
    return {
      from: link.source,
      to: link.target,
      width: 0.8 + 4 * Math.sqrt(Math.abs(link.weight) / most),
      class: `${link.weight < 0 ? "takes" : "adds"} ${faint} ${own ? "" : "other"}`,
      says: `${name(nodes.get(link.source))} to ${name(nodes.get(link.target))}: ${link.weight < 0 ? "−" : "+"}${digits(Math.abs(link.weight))}`,
    };
  });
}

const about = h("div", { role: "region", "aria-live": "polite", "aria-label": "The chosen node" });

function command(node) {
  const number = /^(?:OF|IF)([\d.]+)/.exec(node.clerp)?.[1];
  const side = kindOf(node);
  if (!number || !["source", "target"].includes(side)) return null;
  const link = node.vis_link ? h("a", { href: node.vis_link, target: "_blank", rel: "noopener noreferrer" }, "on Neuronpedia") : null;
  return h("p", { class: "small" }, "Its card: ", h("code", {}, `saelink show ${side} ${number}`), " ", link);
}

function told() {
  const node = nodes.get(state.chosen);
  if (!node) {
    about.replaceChildren(h("p", { class: "dim" }, "Choose a box to see what leads to it and where it leads."));
    return;
  }
  const button = (id) => h("button", { type: "button", onclick: () => choose(id) }, name(nodes.get(id)));
  const rows = (mine, other) =>
    graph.links
      .filter((link) => link[mine] === state.chosen)
      .sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight))
      .map((link) => ({ id: link[other], weight: link.weight }));
  const list = (title, all) =>
    h(
      "section",
      {},
      h("h3", {}, title),
      all.length
        ? table([column("node", (r) => button(r.id)), figure("weight", (r) => signed(r.weight, digits(r.weight)))], all)
        : h("p", { class: "dim" }, "Nothing."),
    );
  about.replaceChildren(
    h("h2", {}, name(node)),
    h("p", { class: "dim" }, `${KINDS[kindOf(node)]} at position ${node.ctx_idx}`, given(node.activation) ? `, activation ${digits(node.activation)}` : ""),
    command(node) ?? "",
    h("div", { class: "columns" }, list("What leads to it", rows("target", "source")), list("Where it leads", rows("source", "target"))),
  );
}

const picture = diagram({ label: "The prompt's graph", name: graph.metadata.slug, most: 720 });

function show(fit) {
  const links = shownLinks();
  const drawn = linksOf(links);
  picture.draw({ boxes: boxesOf(links), links: [...drawn].reverse(), upwards: true, lines: drawn.map((link) => link.says), fit });
}

function choose(id) {
  state.chosen = state.chosen === id ? null : id;
  show(false);
  told();
}

const offered = [...LINKS.filter((n) => n < graph.links.length), graph.links.length].map((n) => [n, String(n)]);

document.getElementById("main").replaceChildren(
  h("h1", {}, visible(graph.metadata.prompt)),
  h(
    "p",
    { class: "dim small" },
    "From the prompt's tokens (bottom) over source and target latents to the likeliest next tokens (top). A link's weight is what its lower box adds to the upper one: ",
    h("span", { class: "plus" }, "green adds"),
    ", ",
    h("span", { class: "minus" }, "red takes away"),
    ". A latent's number is its activation.",
  ),
  h(
    "div",
    { class: "pager" },
    choice("links shown", "links", offered, Math.min(state.most, graph.links.length), (most) => {
      state.most = Number(most);
      show(true);
    }),
  ),
  picture.element,
  about,
);
if (!offered.some(([n]) => n === state.most)) state.most = graph.links.length;
show(true);
told();
