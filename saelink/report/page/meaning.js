// What a latent means: what it fires on in a sentence, what its direction says, which latents are like it.

import { column, commas, figure, h, quoted, table } from "./dom.js";
import { digits, percent } from "./format.js";
import { labelOf } from "./labels.js";
import { nameLink } from "./names.js";

const HALF = 0.5; // of a latent's activation names it
const FEW = 5; // tokens that may do so

export const OUTLIERS = [null, "the first tokens of a text", "the first delimiter of a text", "tokens with massive activations"];

// What it fires on by the tokens that carry its activation; an outlier by what it does.
export function firesOn(card, outlier) {
  if (!card.active) return "It never fires on this text.";
  const start = h("span", {}, "Fires on ");
  if (outlier) return [start, h("b", {}, OUTLIERS[outlier]), "."];
  let sum = 0;
  const chosen = [];
  for (const each of card.tokens) {
    if (sum >= HALF) break;
    chosen.push(each);
    sum += each.share;
  }
  if (sum >= HALF && chosen.length <= FEW) {
    const rest = `, which carr${chosen.length > 1 ? "y" : "ies"} ${percent(sum)} of its activation.`;
    return [start, commas(chosen, (each) => h("b", {}, quoted(each.token))), h("span", { class: "dim" }, rest)];
  }
  const first = card.tokens[0];
  const most = first ? [", most on ", quoted(first.token), ` (${percent(first.share)} of its activation)`] : null;
  return [start, "many tokens", most, "."];
}

function promoted(words) {
  const list = (entries) => commas(entries, ([token, value]) => [quoted(token), h("span", { class: "dim small" }, ` ${digits(value, 2)}`)]);
  return [
    h("h3", {}, "What its direction says, directly"),
    h("p", {}, "Promotes ", list(words.up), "."),
    h("p", {}, "Suppresses ", list(words.down), "."),
    h(
      "p",
      { class: "dim small" },
      "Its decoder direction through the final norm's weights and the unembedding, past all layers between, in standard deviations over the vocabulary. What later layers make of it is not in this.",
    ),
  ];
}

function related(side, rows, name, title, index) {
  const named = (number) => (side === "target" ? `OF${number}` : index.source_name[number]);
  const tokens = side === "target" ? index.token : index.source_token;
  const own = (number) => labelOf(named(number));
  return table(
    [
      column(name, ([number]) => [nameLink(named(number), number), " ", quoted(tokens[number]), own(number) ? ` ${own(number)}` : null]),
      figure(title, ([, value]) => value.toFixed(2)),
    ],
    rows,
  );
}

export function meaningSection(card, side, index) {
  const { words, similar, together } = card;
  const parts = [];
  if (words) parts.push(h("section", {}, ...promoted(words)));
  if (similar?.length) parts.push(h("section", {}, h("h3", {}, "Similar directions"), related(side, similar, "latent", "cosine", index)));
  if (together?.length) {
    const title = "share of tokens, of those where either fires, where both do";
    parts.push(h("section", { title }, h("h3", {}, "Fires together with"), related(side, together, "latent", "overlap", index)));
  }
  if (!parts.length) return [];
  return [h("h2", {}, "What it means"), h("div", { class: "columns thirds" }, parts)];
}
