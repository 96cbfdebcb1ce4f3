import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { go, parsed, place, read, route } from "../../../saelink/report/page/route.js";

beforeEach(() => read("", 1));

test("no hash is the overview of the first fit", () => {
  for (const hash of ["", "#", "#/"]) {
    const { view, number, fit } = parsed(hash, 3);
    assert.deepEqual([view, number, fit], ["", undefined, 0]);
  }
});

test("a hash has a view, a number and words", () => {
  const { view, number, fit, words } = parsed("#/target/12?fit=2&q=a%26b+c", 3);
  assert.deepEqual([view, number, fit, words.get("q")], ["target", 12, 2, "a&b c"]);
});

test("a fit that the page does not hold is the last one, a word that is no number the first", () => {
  assert.equal(parsed("#/circuits?fit=9", 3).fit, 2);
  assert.equal(parsed("#/circuits?fit=x", 3).fit, 0);
});

test("what place writes, parsed reads", () => {
  const hash = place("sources", 3, { q: "#/?&=é", from: 300, fit: 1, sort: "" });
  const { view, number, fit, words } = parsed(hash, 2);
  assert.deepEqual([view, number, fit], ["sources", 3, 1]);
  assert.deepEqual([...words.keys()].sort(), ["fit", "from", "q"]);
  assert.equal(words.get("q"), "#/?&=é");
});

test("a link keeps the fit that is shown unless it names another", () => {
  assert.equal(place("target", 0), "#/target/0");
  read("#/circuits?fit=1", 2);
  assert.equal(route.view, "circuits");
  assert.equal(place("target", 0), "#/target/0?fit=1");
  assert.equal(place("target", 0, { fit: 0 }), "#/target/0");
});

test("go changes the browser's hash", () => {
  globalThis.location = { hash: "" };
  go("circuits", undefined, { q: "cat" });
  assert.equal(globalThis.location.hash, "/circuits?q=cat");
});
