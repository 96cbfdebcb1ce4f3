import assert from "node:assert/strict";
import { test } from "node:test";

import {
  count,
  digits,
  given,
  percent,
  rise,
  shade,
  share,
  sign,
  told,
  visible,
  weight,
} from "../../../saelink/report/page/format.js";

test("what is not given is a dash, 0 is a number", () => {
  for (const text of [count, digits, percent, share, rise]) {
    assert.equal(text(null), "–");
    assert.equal(text(undefined), "–");
    assert.match(text(0), /0/);
  }
  assert.equal(digits(NaN), "–");
  assert.ok(given(0) && given("") && given(false) && !given(null) && !given(undefined));
});

test("digits: as many as asked for, an exponent far from 1", () => {
  assert.deepEqual(
    [0.12345, 12.3456, 99999, -0.5].map((v) => digits(v)),
    ["0.123", "12.3", "100000", "-0.5"],
  );
  assert.deepEqual(
    [1e5, 0.000999, -2e-7].map((v) => digits(v, 2)),
    ["1e+5", "1e-3", "-2e-7"],
  );
});

test("count groups thousands, percent shows a decimal below 10%", () => {
  assert.equal(count(1234567), "1,234,567");
  assert.deepEqual([0, 0.0123, 0.1, 0.996, 1].map(percent), ["0%", "1.2%", "10%", "100%", "100%"]);
});

test("a share and a rise have their sign", () => {
  assert.deepEqual([0.5, -0.5, 0.012].map(share), ["+50%", "−50%", "+1.2%"]);
  assert.deepEqual([0.123, -0.123, 0.0004, 0.00001].map(rise), ["+0.12", "−0.12", "+0.0004", "0"]);
});

test("weights: two decimals, one digit below .005, an exponent where nothing would be left", () => {
  assert.deepEqual([0.5, -0.5, 1.234, 0.0049, 0.00004, 0].map(weight), [".50", "−.50", "1.23", ".005", "4e-5", "0"]);
});

test("a formula's terms read as a sum", () => {
  const text = (weights) => weights.map((w, i) => sign(w, i === 0) + weight(Math.abs(w))).join("");
  assert.equal(text([0.5, -0.25, 1]), ".50 − .25 + 1.00");
  assert.equal(text([-0.5, 0.25]), "−.50 + .25");
});

test("what can't be seen in a token is spelt out, the rest stays", () => {
  assert.equal(visible("new\nline\t"), "new⏎line⇥");
  assert.equal(visible("\u202eright\u0000\u001b"), "\\u202eright\\u0000\\u001b");
  for (const token of [" the", "مرحبا", "<b>&lt;", "${x}", "👩"]) assert.equal(visible(token), token);
});

test("a larger activation is shaded more, none not at all, a negative one in its own colour", () => {
  assert.equal(shade(0, 1), "");
  assert.equal(shade(1, 0), "");
  assert.equal(shade(1, 2), "background: rgba(var(--fire), 0.47)");
  assert.equal(shade(-5, 2), "background: rgba(var(--fade), 0.82)");
});

test("confirmed terms come first, each part in its order, and what two decimals don't show is left out", () => {
  const terms = [
    [1, 0.9, "no effect"],
    [2, -0.5, "confirmed"],
    [3, 0.3, "weaker"],
    [4, 0.2, "confirmed"],
    [5, 0.004, "confirmed"],
  ];
  assert.deepEqual(
    told(terms).map(([input]) => input),
    [2, 4, 1, 3],
  );
});

test("without verdicts the order is that of the weights", () => {
  assert.deepEqual(
    told([
      [1, 0.9],
      [2, -0.5],
    ]).map(([input]) => input),
    [1, 2],
  );
});
