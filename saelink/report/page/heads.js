// The heads of a layer: a list of them, and for each what it moves and where it looks.

import { apart, between, distanceBars, sentence, words } from "./arcs.js";
import { column, commas, figure, h, nowhere, quoted, table } from "./dom.js";
import { count, counted, digits, given, percent, share, visible } from "./format.js";
import { neighbours } from "./latent.js";
import { listing } from "./listing.js";
import { command, headLink, missing, movedSentence, portion, sourceLink } from "./moved.js";
import { nameLink, readIndex } from "./names.js";
import { head, piece } from "./pieces.js";
import { route } from "./route.js";

const alike = (card) => card.group.filter((other) => other !== card.head);

export async function headList(page) {
  const { heads } = head;
  if (!heads) return nowhere(page);
  page.append(h("h1", {}, "Heads"));
  if (heads.missing) return page.append(missing());
  const index = await readIndex();
  const card = (n) => heads.cards[n];
  const top = (n) => (card(n).source === null ? "–" : sourceLink(card(n).source, n, index));
  const columns = [
    { ...column("head", headLink), key: "number", value: (n) => n, csv: (n) => n },
    { ...figure("share", (n) => percent(card(n).share), "of the sizes of all heads' parts of the strongest computed edges"), key: "share", value: (n) => card(n).share, falling: true },
    { ...column("from", (n) => between(card(n).near, card(n).far), "the shortest range of distances with 80% of what it moves"), key: "from", value: (n) => card(n).near },
    { ...column("moves most", top), key: "source", value: (n) => card(n).source, csv: (n) => (card(n).source === null ? null : `IF${card(n).source}`) },
    { ...column("moves the same as", (n) => commas(alike(card(n)), headLink), `heads whose parts of edges have a cosine of ${heads.alike} or more`), key: "group", value: (n) => alike(card(n)).length, csv: (n) => alike(card(n)).join(" "), falling: true },
  ];
  if (heads.cards.some((each) => each.kinds)) {
    columns.push({ ...column("where it looks", (n) => card(n).kinds?.join(", ") || "–"), key: "kind", value: (n) => card(n).kinds?.join(", ") ?? null });
  }
  page.append(
    h("p", { class: "dim" }, `What the heads of layer ${head.layer} move of the latents in front of them, by computed edges. `, heads.cards.some((each) => each.kinds) ? null : ["Where they look: ", command(heads.look), ", then make the report again."]),
    listing({ name: "heads", kind: "head", columns, rows: heads.cards.map((each) => each.head), standing: "" }),
  );
  return undefined;
}

function moves(card, index) {
  const others = alike(card);
  const cosine = (other) => [headLink(other), ` (${card.cosines[other].toFixed(2)})`];
  const group = others.length ? ["It moves the same as ", commas(others, cosine), ": in brackets the cosine of their parts of edges."] : "It moves what no other head does.";
  const source = ([number, part]) => [sourceLink(number, card.head, index), h("span", { class: "dim" }, ` ${percent(part)}`)];
  return [
    h("p", {}, `It makes ${percent(card.share)} of the strongest computed edges' size. Most of what it moves is from ${between(card.near, card.far)}.`),
    h("p", {}, group),
    h("h2", {}, "From how far"),
    distanceBars(card.bins, `What head ${card.head} moves`),
    h("p", { class: "dim small" }, "tokens before"),
    h("h2", {}, "Which latents"),
    h("p", {}, card.sources.length ? [commas(card.sources, source), "."] : "None."),
  ];
}

function strongest(card, index) {
  const section = (edge) =>
    h(
      "section",
      { class: "moved" },
      h("h3", {}, sourceLink(edge.source, card.head, index), " to ", nameLink(`OF${edge.target}`, edge.target), " ", quoted(index.token[edge.target])),
      h("p", { class: "small" }, `It adds ${share(edge.part)} where both are active, ${portion(edge.share)} of the edge through all heads.`),
      h("div", { class: "sentences" }, edge.examples.map((example) => movedSentence(example, `IF${edge.source}`))),
    );
  return [h("h2", {}, "Its strongest edges"), card.edges.length ? card.edges.map(section) : h("p", { class: "dim" }, "None.")];
}

// Pairs of latents, the query's and the key's, with what taking them out does and what others do in their place.
function pairTable(pairs, by, index) {
  const latent = (number) => sourceLink(number, by, index);
  return table(
    [
      column("at the query", (p) => latent(p.query)),
      column("at the key", (p) => latent(p.key)),
      column("offset", (p) => p.offsets, "query less key: the shortest run of bins with 80% of the changes"),
      figure("queries", (p) => count(p.rows), "where the pair has a part in a score"),
      figure("moved", (p) => percent(p.variation), "how far the pattern moves there when the pair goes: total variation"),
      figure("control", (p) => percent(p.control), "the same when other latents of the same tokens go"),
      column("more", (p) => (p.more_than_control ? "yes" : "no"), "whether the pair moves it more than its control, by two standard errors"),
      figure("attention", (p) => share(p.attention), "what its keys have of the attention by it"),
    ],
    pairs,
  );
}

function pairSentences(pair, by, index) {
  if (!pair.examples?.length) return [];
  const named = (number) => `IF${number}`;
  const verb = pair.attention < 0 ? "looks away from" : "looks at";
  const shown = (example) => {
    const { tokens, key, query } = example;
    const says = `Head ${by}: ${named(pair.query)} at "${visible(tokens[query]).trim()}" ${verb} ${named(pair.key)} at "${visible(tokens[key]).trim()}", ${apart(example)}, in: ${words(tokens)}`;
    return sentence(example, says, `the pattern moves by ${percent(example.variation)}`, pair.attention < 0);
  };
  return [h("p", {}, sourceLink(pair.query, by, index), ` ${verb} `, sourceLink(pair.key, by, index)), h("div", { class: "sentences" }, pair.examples.map(shown))];
}

const KEYS = { key: "the key's latent goes", query: "the query's latent goes", both: "both go" };

// Leading pairs deleted in the model, and what goes with them at attention's output.
function tested({ qk_deletions: deletions, qk_targets: targets }) {
  if (!deletions && !targets) return [h("p", { class: "dim" }, "Deletions in the model: ", command(head.heads.look), ", then make the report again.")];
  const parts = [];
  if (deletions) {
    parts.push(
      h("h3", {}, "Leading pairs deleted in the model"),
      table(
        [
          column("what goes", ([, text]) => text),
          figure("moved", ([name]) => percent(deletions.deletions[name].pair), "how far the pattern moves at the query, norms recomputed"),
          figure("control", ([name]) => percent(deletions.deletions[name].control), "as many other latents of the same tokens"),
        ],
        Object.entries(KEYS),
      ),
      h("p", { class: "small" }, `${counted(deletions.pairs, "pair")} at ${counted(deletions.places, "place")}; ${count(deletions.more_than_control)} of ${count(deletions.compared)} do more than their control when both go, by two standard errors.`),
    );
  }
  if (targets) {
    parts.push(
      h("h3", {}, "What attention's output changes by"),
      table(
        [
          figure("pairs out", (each) => count(each.pairs)),
          figure("latents change", (each) => percent(each.change), "sizes of the changes over the sum of the latents, where the pattern changes"),
          figure("control", (each) => percent(each.control), "as many other latents' parts at the same places"),
        ],
        targets.together,
      ),
    );
  }
  return parts;
}

function together(groups) {
  const nulls = Object.keys(groups[0]?.nulls ?? {});
  const columns = [
    figure("pairs out", (each) => count(each.pairs)),
    figure("queries", (each) => count(each.rows), "where one of them has a part in a score"),
    figure("moved", (each) => percent(each.variation), "how far the pattern moves, mean over all queries: total variation"),
    figure("control", (each) => percent(each.control), "the same when other latents' parts go at the same places"),
    ...(nulls.length ? [figure("less text", (each) => percent(each.less_text), "the head's own pairs, chosen on as little text as those behind")] : []),
    ...nulls.map((name) => figure(name, (each) => percent(each.nulls[name]), "as many pairs, chosen with this wrong")),
  ];
  return [h("h3", {}, "Leading pairs out at once"), table(columns, groups)];
}

function looks(card, index) {
  const title = h("h2", { id: "looks" }, "Where it looks");
  const { qk } = card;
  if (!qk) return [title, h("p", { class: "dim" }, "Which pairs of latents decide it was not measured: ", command(head.heads.look), ", then make the report again.")];
  const { rules, least } = head.heads;
  const kinds = qk.kinds.map((kind) => `${kind} (${rules[kind]})`).join("; ") || "none of those that have a rule";
  const seen = qk.looks;
  const free = given(qk.deleted.free_r) ? `r ${digits(qk.deleted.free_r, 2)} between what the formula says of ${count(qk.deleted.places)} deletions and the model with norms recomputed` : "too few places";
  return [
    title,
    h(
      "dl",
      {},
      h("dt", {}, "kind"),
      h("dd", {}, kinds),
      h("dt", {}, "attention"),
      h("dd", {}, `${percent(seen.sinks)} on sinks; of the rest ${percent(seen.current)} on the token itself, ${percent(seen.previous)} on the one before; in repeated random tokens ${percent(seen.induction)} on the one behind the same, ${percent(seen.duplicate)} on the same`),
      h("dt", {}, "deletions"),
      h("dd", {}, free),
      h("dt", {}, "text"),
      h("dd", {}, `${count(qk.sequences)} test sequences: pairs chosen on one half, judged on ${count(qk.tokens)} tokens of the other`),
    ),
    ...tested(qk),
    ...together(qk.together),
    h("h3", {}, `Pairs that move the pattern most where they are (${least} queries or more)`),
    qk.strongest.length ? pairTable(qk.strongest, card.head, index) : h("p", { class: "dim" }, "None."),
    ...qk.strongest.flatMap((pair) => pairSentences(pair, card.head, index)),
    h("h3", {}, "Pairs that move it most in all"),
    qk.leading.length ? pairTable(qk.leading, card.head, index) : h("p", { class: "dim" }, "None."),
  ].flat();
}

export async function headPage(page) {
  const { number } = route;
  if (!head.heads?.cards[number]) return nowhere(page);
  const [index, card] = await Promise.all([readIndex(), piece(`head/${number}`)]);
  page.append(
    neighbours("head", number, head.heads.cards.length),
    h("h1", {}, `Head ${number}`),
    h("p", { class: "dim" }, `Of layer ${head.layer}: what it moves to the latents at `, command(head.link.target), " of those at ", command(head.link.sources.join(" + ")), ", by computed edges."),
    ...moves(card, index),
    ...strongest(card, index).flat(),
    ...looks(card, index),
  );
  return undefined;
}
