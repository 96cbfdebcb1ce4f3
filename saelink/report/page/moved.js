// What heads move to a target: its edges by source latent, with heads, distances, tokens and sentences.

import { apart, between, distanceBars, sentence, words } from "./arcs.js";
import { column, commas, figure, h, quoted, table } from "./dom.js";
import { given, percent, share, visible } from "./format.js";
import { nameLink, readIndex } from "./names.js";
import { entry, head } from "./pieces.js";
import { place } from "./route.js";

const FEW = 12; // heads that are all told
const TOLD = 8; // of more heads

export const headLink = (number) => h("a", { href: place("head", number) }, `head ${number}`);

// A source latent as a link to its card as this head moves it.
export function sourceLink(number, by, index) {
  const input = by * head.heads.d_source + number;
  return [nameLink(`IF${number}`, input), " ", quoted(index.source_token[input])];
}

export const command = (text) => h("code", {}, text);

// A sentence in which a head moves a source latent.
export function movedSentence(example, name) {
  const { tokens, key, query, head: by, part } = example;
  const [from, to] = [visible(tokens[key]).trim(), visible(tokens[query]).trim()];
  const says = `Head ${by} moves ${name} from "${from}" to "${to}", ${apart(example)}, ${share(part)} of the target's mean activation, in: ${words(tokens)}`;
  return sentence(example, says, [headLink(by), `, ${share(part)}`], part < 0);
}

// A share that may be below 0.
export const portion = (value) => (value < 0 ? "−" : "") + percent(Math.abs(value));

function headsTable(edge) {
  const measured = edge.heads.some(([, , alone]) => given(alone));
  const many = edge.heads.length > FEW;
  const told = many ? edge.heads.slice(0, TOLD) : edge.heads;
  const rest = edge.heads.slice(told.length);
  const rows = many ? [...told, [null, rest.reduce((sum, [, part]) => sum + part, 0), null]] : told;
  const columns = [
    column("head", ([number]) => (number === null ? `${rest.length} others` : headLink(number))),
    figure("share", ([, part]) => portion(part)),
  ];
  if (measured) columns.push(figure("alone", ([, , alone]) => share(alone)));
  return table(columns, rows);
}

function edgeSection(edge, index) {
  const [by] = edge.heads[0];
  const name = `IF${edge.source}`;
  const measured = given(edge.effect) ? `, measured ${share(edge.effect)}` : "";
  const tokens = commas(edge.tokens, ([token, part]) => [quoted(token), ` ${percent(part)}`]);
  return h(
    "section",
    { class: "moved" },
    h("h3", {}, sourceLink(edge.source, by, index)),
    h("p", {}, `From ${between(edge.near, edge.far)}, computed ${share(edge.claim)}${measured}.`),
    h(
      "div",
      { class: "columns" },
      headsTable(edge),
      h(
        "div",
        {},
        distanceBars(edge.bins, `What is moved of ${name}`),
        h("p", { class: "dim small" }, "tokens before"),
        h("p", { class: "small" }, edge.tokens.length ? ["Moved from ", tokens, "."] : "Not seen in the test documents that were looked at."),
      ),
    ),
    h("div", { class: "sentences" }, edge.examples.map((example) => movedSentence(example, name))),
  );
}

// What is not measured, and the command that does it.
function unmeasured(number, edges) {
  const { heads } = head;
  if (edges.every((edge) => !given(edge.effect))) {
    return h("p", { class: "dim" }, "What the target loses in the model was not measured: ", command(heads.measure), ", then make the report again.");
  }
  if (edges.some((edge) => edge.heads.some(([, , alone]) => given(alone)))) return null;
  const one = command(heads.measure_one.replace("{}", number));
  return h("p", { class: "dim" }, `Effects through single heads are on this page for ${heads.alone.length} targets (report.ablated); of this one `, one, " measures them.");
}

export async function movedSection(number) {
  const { heads } = head;
  if (!heads) return [];
  const title = h("h2", { id: "heads" }, "What heads move to it");
  if (heads.missing) return [title, missing()];
  const [index, edges] = await Promise.all([readIndex(), entry("moved", number)]);
  if (!edges) {
    const one = command(heads.measure_one.replace("{}", number));
    const text = number in index.token && !index.active[number] ? "Nothing: it never fires." : "No computed edge leads to it, or it is not among the targets with the strongest ones (report.cards): ";
    return [title, h("p", { class: "dim" }, text, index.active[number] ? [one, " looks at it."] : null)];
  }
  return [
    title,
    h("p", { class: "dim small" }, "Its strongest edges through attention with computed weights, by source latent: what the target loses without the source where both are active, of its mean activation. They are no edges of the fitted connector. A head's share is of the computed edge, and all shares sum to 100%; alone: what the target loses where this head alone reads the stream without the source. An arc leads from the token that the latent is moved from to the one that it is moved to; its figure is what it adds there."),
    unmeasured(number, edges),
    ...edges.map((edge) => edgeSection(edge, index)),
  ].filter(Boolean);
}

// Where so many edges are not computed by themselves.
export const missing = () =>
  h("p", { class: "dim" }, "Edges through so many heads and latents are computed when they are asked for: ", command(head.heads.missing), ", then make the report again.");
