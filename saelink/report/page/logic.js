// What a latent computes from its inputs: the word for it, the counts behind it, its inputs together.

import { commas, h } from "./dom.js";
import { count, percent, visible, weight } from "./format.js";
import { named } from "./names.js";
import { inputsPlot } from "./plots.js";
import { describe } from "./why.js";

const names = (inputs) => commas(inputs, (name) => named(name));

// A stretch of text with its token set off.
const sentence = (text) =>
  h(
    "div",
    { class: "tok small dim" },
    text.tokens.map((token, i) =>
      i === text.at ? h("b", { style: "color: var(--ink)" }, visible(token)) : visible(token),
    ),
  );

function meaning({ word, inputs }, why) {
  return {
    copy: ["A copy of ", names(inputs), "."],
    or: ["A weighted OR of ", names(inputs), ": each alone makes it fire."],
    and: ["An AND of ", names(inputs), ": only together they make it fire."],
    "and not": [names(inputs.slice(0, 1)), " AND NOT ", names(inputs.slice(1)), "."],
    dense: ["Dense: too many inputs add to it for one word."],
    unclear: ["Unclear", why ? `: ${describe(why)[1]}.` : ": the counts don't say."],
  }[word];
}

function evidenceList(evidence) {
  const item = (e) =>
    h(
      "li",
      {},
      "where ",
      names(e.on),
      " active",
      e.off.length ? [" and not ", names(e.off)] : "",
      `: fires on ${count(e.fired)} of ${count(e.tokens)} tokens (${percent(e.fired / Math.max(e.tokens, 1))})`,
      e.texts.map(sentence),
    );
  return h("ul", { class: "small dim" }, evidence.map(item));
}

// Which inputs are active where the latent is silent although its strongest input is active.
function silence({ leader, inputs, silent, fires }) {
  const item = (e) =>
    h(
      "li",
      {},
      named(e.name, e.input),
      `: active on ${percent(e.silent / silent)} of the ${count(silent)} tokens where this latent is silent, ${percent(e.fires / fires)} of the ${count(fires)} where it fires`,
    );
  return h(
    "div",
    { class: "small" },
    h("p", {}, "Goes with its silence, where ", named(leader), " is active:"),
    h("ul", { class: "dim" }, inputs.map(item)),
  );
}

// Only what ablations in the model confirm is set in bold.
const STANDING = {
  true: ["b", " Confirmed: ablating each of these sources changes it as claimed."],
  false: ["span", " Not confirmed: by single ablations not every one of these edges is, see the verdicts below."],
  undefined: ["span", " Unverified: read from which sources are active, not from ablations."],
};

export function logicParts(card, why = null) {
  const { logic, silent } = card;
  const covered = ` Holds on ${percent(logic.covered)} of the ${count(card.fired)} test tokens where it fires.`;
  const [tag, standing] = STANDING[logic.confirmed] || STANDING.undefined;
  const parts = [
    h("p", {}, h(tag, {}, meaning(logic, why)), logic.inputs.length ? h("span", { class: "dim" }, standing + covered) : null),
  ];
  if (logic.evidence.length) parts.push(evidenceList(logic.evidence));
  if (logic.tested) parts.push(trialList(logic.tested));
  if (silent) parts.push(silence(silent));
  return parts;
}

// What came of taking the sources out in the model, where that was tried.
const OUTCOMES = {
  holds: "Tested by interventions: it holds.",
  fails: "Tested by interventions: it fails; the counts say it, the model does something else.",
  undecided: "Tested by interventions: undecided.",
};

function trialList({ outcome, trials }) {
  const item = (t) =>
    h(
      "li",
      {},
      t.on.length ? ["where ", names(t.on), " on"] : "where several are on",
      t.off.length ? [" and not ", names(t.off)] : "",
      t.fires ? " and it fires" : "",
      ", without ",
      t.any_one ? "any one of them" : names(t.gone),
      `: fires on ${count(t.after)} of ${count(t.tokens)} tokens (${t.fires_after ? "should" : "should not"})`,
    );
  return h("div", { class: "small" }, h("p", {}, OUTCOMES[outcome]), h("ul", { class: "dim" }, trials.map(item)));
}

function clusterSection({ clusters, tokens, outside }) {
  const cluster = (c) =>
    h(
      "div",
      { class: "example" },
      h(
        "div",
        {},
        `${count(c.tokens)} tokens: `,
        commas(c.inputs, ([name, value]) => [named(name), ` adds ${weight(value)}`]),
      ),
      c.texts.map(sentence),
    );
  return h(
    "section",
    {},
    h("h2", {}, `${clusters.length} kinds of tokens it fires on`),
    h(
      "p",
      { class: "dim small" },
      `${count(tokens)} test tokens on which it fires, clustered by which inputs make up the prediction (HDBSCAN), with what each adds on average; ${count(outside)} belong to none.`,
    ),
    clusters.map(cluster),
  );
}

function scatterSection(scatter, later) {
  const fires = scatter.target.filter((value) => value > 0).length;
  const label = `${scatter.target.length} test tokens by ${scatter.inputs.join(", ")}: the target fires on ${fires} of them`;
  const where = h("div", { class: "plot", role: "img", "aria-label": label });
  later.push(() => inputsPlot(where, scatter));
  return h(
    "section",
    {},
    h("h2", {}, "Its strong inputs together"),
    h(
      "p",
      { class: "dim small" },
      "Test tokens, evenly spread, where one of them is active.",
      scatter.inputs.length > 2 ? ` The third, ${scatter.inputs[2]}, as size.` : "",
    ),
    where,
  );
}

// The strong inputs plotted where they are few, otherwise the clusters of inputs; null where neither is known.
export function inputsSection(card, later) {
  if (card.scatter) return scatterSection(card.scatter, later);
  return card.clusters?.clusters.length ? clusterSection(card.clusters) : null;
}
