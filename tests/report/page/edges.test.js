// The order of a formula's terms.

import assert from "node:assert/strict";
import { test } from "node:test";

import { told } from "../../../saelink/report/page/edges.js";

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
