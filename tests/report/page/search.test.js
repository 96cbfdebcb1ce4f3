import assert from "node:assert/strict";
import { test } from "node:test";

import {
  destination,
  filtered,
  matchingSources,
  matchingTargets,
  ordered,
  rank,
  suggestions,
} from "../../../saelink/report/page/search.js";

// Four targets, three sources of two hooks, input 3 is a hidden unit.
const index = {
  token: [" cat", " dog", null, " Cats"],
  active: [5, 50, 0, 7],
  outlier: [0, 1, 0, 0],
  source_name: ["IF0.0", "IF0.1", "IF1.0"],
  source_token: [" sat", null, " catch"],
  source_active: [1, 2, 3],
  gains: [{ name: "mlp", gain: [0.1, null, null, 0.3] }],
};
const fit = {
  fvu: [0.5, 0.2, null, 0.9],
  n_edges: [3, 1, null, 2],
  word: ["or", "copy", null, "or"],
  confirmed: [true, false, null, null],
  verdicts: [[2, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], null, [0, 0, 0, 0, 3, 0]],
  effect: [0.3, null, null, null],
  why: [null, null, null, "rare many"],
  formula: [[[0, 0.5]], [[2, 1]], null, [[3, 0.2]]],
};
const direct = 3;
const all = [0, 1, 2, 3];
const numberOf = (name) => (name.includes(".") ? index.source_name.indexOf(name) : Number(name.replace(/\D/g, "")));
const targets = (query) => matchingTargets(query, index, fit, direct, numberOf);

test("no query leaves every target", () => assert.deepEqual(targets(""), all));

test("a target is found by its name or number alone", () => {
  for (const query of ["OF3", "of3", "3"]) assert.deepEqual(targets(query), [3]);
  assert.deepEqual(targets("OF9"), []);
});

test("a token finds the targets that have it, and those fed by a source that has it", () => {
  assert.deepEqual(targets("CAT"), [0, 1, 3]); // 1 is fed by " catch"
  assert.deepEqual(targets("sat"), [0]);
  assert.deepEqual(targets("none"), []);
});

test("a source's name finds what it feeds, never a hidden unit of the same number", () => {
  assert.deepEqual(targets("IF1.0"), [1]);
  assert.deepEqual(targets("if0"), [0]);
  assert.deepEqual(targets("IF3"), []);
});

test("sources are found by name or token", () => {
  assert.deepEqual(matchingSources("", index), [0, 1, 2]);
  assert.deepEqual(matchingSources("if0.1", index), [1]);
  assert.deepEqual(matchingSources("at", index), [0, 2]);
});

test("a token is the same, the same but for case, begins with the query, or holds it", () => {
  const ranks = [" King", "king", " kings", "looking", "queen", null].map((token) => rank(token, "king"));
  assert.deepEqual(ranks, [1, 0, 2, 3, null, null]);
});

test("the same token is offered before one that holds it, on both sides, the most active first", () => {
  const royal = {
    token: [" making", " Kings", "king", " King"],
    active: [900, 800, 5, 6],
    source_name: ["IF0", "IF1"],
    source_token: [" King", "taking"],
    source_active: [70, 1],
  };
  const found = suggestions(" king", royal, 10).map(({ name }) => name);
  assert.deepEqual(found, ["OF2", "IF0", "OF3", "OF1", "OF0", "IF1"]);
  assert.deepEqual(suggestions("king", royal, 2).map(({ name }) => name), ["OF2", "IF0"]);
  assert.deepEqual(suggestions("", royal, 2), []);
});

test("a name and a number are offered first, a reader's label as a token is", () => {
  assert.deepEqual(suggestions("of1", index, 9).map(({ name }) => name), ["OF1"]);
  assert.equal(suggestions("1", index, 9)[0].name, "OF1");
  const labels = (name) => (name === "OF1" ? "royalty" : null);
  assert.deepEqual(suggestions("Royalty", index, 9, labels).map(({ name }) => name), ["OF1"]);
});

test("targets are kept by logic, verdict, reason, FVU and effect; all have an edge table", () => {
  const kept = (wishes) => filtered(all, wishes, index, fit);
  assert.deepEqual(kept({}), [0, 1, 3]);
  assert.deepEqual(kept({ logic: "or" }), [0, 3]);
  assert.deepEqual(kept({ logic: "outlier" }), [1]);
  assert.deepEqual(kept({ verdict: "sure" }), [0]);
  assert.deepEqual(kept({ verdict: "weaker" }), [0]);
  assert.deepEqual(kept({ verdict: "none" }), [1, 3]);
  assert.deepEqual(kept({ why: "many" }), [3]);
  assert.deepEqual(kept({ fvu: ".5" }), [1]);
  assert.deepEqual(kept({ effect: ".2" }), [0]);
  assert.deepEqual(kept({ logic: "or", verdict: "unclear", fvu: "1" }), [3]);
});

test("what the output owes to a target: shares of all effectiveness, helps and harms beyond two errors", () => {
  const owed = {
    ...fit,
    n_edges: [1, 1, 1, 1],
    effectiveness: [1, 6, 0, 3],
    helpfulness: [0.5, -0.5, 0, 0.1],
    helpfulness_error: [0.1, 0.2, 0, 0.1],
  };
  const kept = (owes) => filtered(all, { owes }, index, owed);
  assert.deepEqual(kept("50"), [1]);
  assert.deepEqual(kept("90"), [1, 3]);
  assert.deepEqual(kept("helps"), [0]);
  assert.deepEqual(kept("harms"), [1]);
  assert.deepEqual(kept(""), all);
  assert.deepEqual(filtered(all, { owes: "50" }, index, { ...fit, n_edges: [1, 1, 1, 1] }), all, "not measured");
});

test("every order, what is not known last", () => {
  const orders = {
    fvu: [1, 0, 3, 2],
    active: [1, 3, 0, 2],
    outlier: [1, 0, 3, 2],
    number: all,
    gain0: [3, 0, 1, 2],
    unheard: all,
  };
  for (const [sort, expected] of Object.entries(orders))
    assert.deepEqual(ordered(all, sort, index, fit), expected, sort);
  assert.deepEqual(ordered([0, 1, 3], "edges", index, fit), [1, 3, 0]);
});

test("by match the target's own token comes before that of its source, and an exact one before another", () => {
  const found = (query) => ordered(all, "match", index, fit, query);
  assert.deepEqual(found("cat").slice(0, 3), [0, 3, 1]); // " cat"; " Cats"; fed by " catch"
  assert.deepEqual(found("catch")[0], 1);
});

test("sorting leaves what it was given alone", () => {
  const numbers = [3, 0];
  ordered(numbers, "number", index, fit);
  assert.deepEqual(numbers, [3, 0]);
});

test("a name leads to its latent, anything else to the list that is open", () => {
  const d = { target: 4, source: 3 };
  const leads = (query, view = "") => destination(query, view, d, numberOf);
  assert.deepEqual(leads(" of2 "), ["target", 2]);
  assert.deepEqual(leads("IF2"), ["source", 2]);
  assert.deepEqual(leads("if1.0"), ["source", 2]);
  for (const query of ["OF4", "IF3", "cat", "", "xOF1"]) {
    assert.deepEqual(leads(query), ["circuits", undefined, { q: query }], query);
    assert.deepEqual(leads(query, "sources"), ["sources", undefined, { q: query }], query);
  }
});
