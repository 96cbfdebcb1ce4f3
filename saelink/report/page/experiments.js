// Experiments on these latents: a list, and the table, text and picture of one.

import { column, figure, h, nowhere, table } from "./dom.js";
import { count, digits } from "./format.js";
import { nameLink } from "./names.js";
import { head, piece } from "./pieces.js";
import { route } from "./route.js";

function cell(value) {
  if (typeof value === "number") return Number.isInteger(value) ? count(value) : digits(value);
  return value === null ? "–" : String(value);
}

export function experimentParts(result) {
  if (!result) return [];
  const { rows, text, picture } = result;
  const kind = (name) => (rows.every((r) => typeof r[name] !== "string") ? figure : column);
  const columns = Object.keys(rows[0]).map((name) => kind(name)(name, (r) => cell(r[name])));
  const linked = text.split(/\b(OF\d+)\b/).map((part, i) => (i % 2 ? nameLink(part) : part));
  const parts = [table(columns, rows), h("pre", { class: "dim" }, linked)];
  if (picture) parts.push(h("img", { src: "data:image/png;base64," + picture, alt: "the experiment's picture" }));
  return parts;
}

export function experiments(page) {
  const item = (e) => {
    const link = h("a", { href: `#/experiment/0?name=${encodeURIComponent(e.name)}` }, e.name);
    return h("li", {}, link, h("span", { class: "dim" }, `: ${e.title}`));
  };
  page.append(h("h1", {}, "Experiments on these latents"), h("ul", {}, head.experiments.map(item)));
}

export async function experiment(page) {
  const name = route.words.get("name");
  const about = head.experiments.find((e) => e.name === name);
  if (!about) return nowhere(page);
  page.append(
    h("h1", {}, about.name),
    h("p", { class: "dim" }, about.title, " · ", h("code", {}, about.key)),
    ...experimentParts(await piece("experiment/" + name)),
  );
}
