// A page of its own: one prompt's graph, from its tokens on the left to the next token on the right.

import { diagram } from "./diagram.js";
import { choice, figure, column, h, signed, table } from "./dom.js";
import { digits, given, visible } from "./format.js";
import { folded, groupsOf } from "./supernodes.js";

const graph = JSON.parse(document.getElementById("graph").textContent);

// Latents with the same links are one box until it is taken apart.
const groups = groupsOf(graph);
const apart = new Set();
let { single, nodes, links: linked, into } = folded(graph, groups, apart);

const WIDE = 132;
const ROW = 42;
const LINKS = [15, 30, 60, 120, 250];

const layers = graph.nodes.map((node) => Number(node.layer)).filter((layer) => !Number.isNaN(layer));
const first = Math.min(...layers);

// A graph over several layers says of each node what it is, and has three columns for each layer.
const layered = Boolean(graph.metadata.saelink?.layers);

const COLUMN = layered ? 210 : 300;

function kindOf(node) {
  if (layered) return LAYERED[node.saelink.kind];
  if (node.feature_type === "embedding") return "token";
  if (node.feature_type === "logit") return "next token";
  const side = Number(node.layer) === first ? "source" : "target";
  return node.feature_type.includes("error") ? `${side} error` : side;
}

const LAYERED = { token: "token", logit: "next token", attn: "attention", attn_error: "attention error", source: "source", source_error: "source error", mlp: "target", mlp_error: "target error" };
const COLUMNS = { token: 0, source: 1, "source error": 1, target: 2, "target error": 2, "next token": 3 };
const KINDS = { "next token": "next token", target: "target latent", source: "source latent", token: "token of the prompt", "target error": "what the connector or an SAE leaves out", "source error": layered ? "what the edges inside the MLP leave out" : "what the source SAE leaves out", attention: "attention latent", "attention error": "what attention's SAE leaves out" };

// The place of each column from the left: those of the layers that are there, the tokens first, the next tokens last.
const depths = [...new Set(layers)].sort((a, b) => a - b);
const across = (node) => (!layered ? COLUMNS[kindOf(node)] : kindOf(node) === "token" ? 0 : 1 + depths.indexOf(Number(node.layer)));
const places = layered ? depths.map((_, i) => i).concat(depths.length) : [0, 1, 2, 3];

const state = { most: 60, chosen: null };

// The probability of a next token stands before it.
function name(node) {
  const text = visible(node.clerp).trim();
  return kindOf(node) === "next token" ? `${Math.round(100 * node.token_prob)}% ${text.replace(/^Output /, "").replace(/ \(p=[\d.]+\)$/, "")}` : text;
}
const clipped = (text) => (text.length > 19 ? text.slice(0, 18) + "…" : text);

const strength = (link) => (layered ? Math.abs(link.weight) / into.get(link.target) : Math.abs(link.weight));

// The strongest links, all of the chosen node's first; over several layers the most influential, as the file has them.
function shownLinks() {
  const own = (link) => link.source === state.chosen || link.target === state.chosen;
  const stronger = (a, b) => (layered ? 0 : Math.abs(b.weight) - Math.abs(a.weight));
  return [...linked].sort((a, b) => own(b) - own(a) || stronger(a, b)).slice(0, state.most);
}

// A column for each kind, from the tokens on; a row for each position, as high as the most boxes of a kind there.
function boxesOf(links) {
  const joined = new Set(links.flatMap((link) => [link.source, link.target]));
  const shown = [...nodes.values()].filter((node) => joined.has(node.node_id) || ["token", "next token"].includes(kindOf(node)));
  const stacks = new Map();
  for (const node of shown) {
    const key = `${node.ctx_idx} ${across(node)}`;
    stacks.set(key, [...(stacks.get(key) ?? []), node]);
  }
  const boxes = [];
  let top = 0;
  graph.metadata.prompt_tokens.forEach((_, position) => {
    const here = places.map((place) => stacks.get(`${position} ${place}`) ?? []);
    here.forEach((stack, place) => {
      stack.forEach((node, i) => boxes.push(boxOf(node, place * COLUMN, top + i * ROW)));
    });
    top += Math.max(1, ...here.map((stack) => stack.length)) * ROW + 16;
  });
  return boxes;
}

function boxOf(node, x, y) {
  const id = node.node_id;
  return {
    id,
    x,
    y,
    wide: WIDE,
    high: 36,
    lines: [clipped(name(node)), given(node.activation) ? digits(node.activation, 2) : ""].filter(Boolean),
    says: `${name(node)}, ${KINDS[kindOf(node)]} at position ${node.ctx_idx}`,
    own: id === state.chosen,
    class: kindOf(node).replace("attention", "source").replace(" ", "-"),
    chosen: () => choose(id),
  };
}

function linksOf(links) {
  const most = Math.max(...links.map(strength), 1e-9);
  return links.map((link) => {
    const own = link.source === state.chosen || link.target === state.chosen;
    const faint = state.chosen && !own ? "faint-link" : "";
    return {
      from: link.source,
      to: link.target,
      width: 0.8 + 4 * Math.sqrt(strength(link) / most),
      class: `${link.weight < 0 ? "takes" : "adds"} ${faint} ${own ? "" : "other"}`,
      says: `${name(nodes.get(link.source))} to ${name(nodes.get(link.target))}: ${link.weight < 0 ? "−" : "+"}${digits(Math.abs(link.weight))}`,
    };
  });
}

const about = h("div", { role: "region", "aria-live": "polite", "aria-label": "The chosen node" });

// Groups as they are now; fit: whether the picture is fitted to its frame.
function regroup(fit) {
  state.chosen = null;
  ({ single, nodes, links: linked, into } = folded(graph, groups, apart));
  show(fit);
  told();
}

function takeApart(group) {
  apart.add(group);
  document.getElementById("groups").selectedIndex = -1; // neither: choosing one of them does it for all
  regroup(false);
}

function command(node) {
  if (node.members) {
    const names = node.members.map((member) => h("li", {}, name(single.get(member))));
    return h("div", {}, h("p", { class: "small" }, "Latents whose links are the same; a link's weight is what all of them add, or what is added to all."), h("ul", { class: "members" }, names), h("button", { type: "button", onclick: () => takeApart(node.node_id) }, "Take apart"));
  }
  if (layered) return given(node.saelink.error) ? h("p", { class: "small" }, errorOf(node)) : null;
  const number = /^(?:OF|IF)([\d.]+)/.exec(node.clerp)?.[1];
  const side = kindOf(node);
  if (!number || !["source", "target"].includes(side)) return null;
  const link = node.vis_link ? h("a", { href: node.vis_link, target: "_blank", rel: "noopener noreferrer" }, "on Neuronpedia") : null;
  return h("p", { class: "small" }, "Its card: ", h("code", {}, `saelink show ${side} ${number}`), " ", link);
}

const errorOf = (node) => `${Math.round(100 * node.saelink.error)}% of what leads to it is error; its influence on the next tokens is ${(100 * node.saelink.influence).toFixed(1)}%.`;

function told() {
  const node = nodes.get(state.chosen);
  if (!node) {
    about.replaceChildren(h("p", { class: "dim" }, "Choose a box to see what leads to it and where it leads."));
    return;
  }
  const button = (id) => h("button", { type: "button", onclick: () => choose(id) }, name(nodes.get(id)));
  const rows = (mine, other) =>
    linked
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

const picture = diagram({ label: "The prompt's graph", name: graph.metadata.slug, most: 6000 });

function show(fit) {
  const links = shownLinks();
  const drawn = linksOf(links);
  picture.draw({ boxes: boxesOf(links), links: [...drawn].reverse(), lines: drawn.map((link) => link.says), fit });
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
    layered
      ? `From the prompt's tokens (left, from top to bottom) layer by layer over latents of attention (AF), of what MLPs read (IF) and give (OF) to the likeliest next tokens (right). Replacement score ${graph.metadata.saelink.scores.replacement.toFixed(2)}, completeness ${graph.metadata.saelink.scores.completeness.toFixed(2)}. `
      : "From the prompt's tokens (left, from top to bottom) over source and target latents to the likeliest next tokens (right). ",
    "A link's weight is what its left box adds to the right one: ",
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
    groups.length
      ? choice("latents with the same links", "groups", [["one", "as one box"], ["each", "each by itself"]], "one", (how) => {
          apart.clear();
          if (how === "each") groups.forEach((group) => apart.add(group.id));
          regroup(true);
        })
      : "",
  ),
  picture.element,
  about,
);
if (!offered.some(([n]) => n === state.most)) state.most = graph.links.length;
show(true);
told();
