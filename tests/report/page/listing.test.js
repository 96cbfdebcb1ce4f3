import assert from "node:assert/strict";
import { test } from "node:test";

globalThis.document = { readyState: "complete", getElementById: () => ({ textContent: "{}" }), addEventListener() {} };
globalThis.window = globalThis;
globalThis.addEventListener ??= () => {};
const { csvLine } = await import("../../../saelink/report/page/download.js");
const { sortedBy } = await import("../../../saelink/report/page/listing.js");

test("rows are sorted both ways, those without a value last, equal ones in their order", () => {
  const values = [3, null, 1, 3];
  const rows = [0, 1, 2, 3];
  assert.deepEqual(sortedBy(rows, (i) => values[i], false), [2, 0, 3, 1]);
  assert.deepEqual(sortedBy(rows, (i) => values[i], true), [0, 3, 2, 1]);
  assert.deepEqual(sortedBy(["b", "a"], (word) => word, false), ["a", "b"]);
  assert.deepEqual(rows, [0, 1, 2, 3]);
});

test("a line of CSV keeps commas, quotes and line breaks inside a cell, and no formula", () => {
  assert.equal(csvLine([1.5, null, 'a,"b"', "c\nd", "=1+1", -2]), '1.5,,"a,""b""","c\nd", =1+1,-2\r\n');
});
