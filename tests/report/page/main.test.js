import assert from "node:assert/strict";
import { test } from "node:test";

test("data of another schema are refused in one line, and nothing of them is read", async () => {
  const shown = [];
  const element = () => ({
    textContent: JSON.stringify({ schema: 99 }),
    text: "",
    setAttribute() {},
    append(text) {
      this.text += text;
    },
    replaceChildren(...children) {
      shown.push(...children);
    },
  });
  globalThis.document = { readyState: "complete", createElement: element, getElementById: element };
  await import("../../../saelink/report/page/main.js");
  assert.equal(shown.length, 1);
  assert.match(
    shown[0].text,
    /^This page's data have schema 99, its script reads schema \d+: make the report again\.$/,
  );
});
