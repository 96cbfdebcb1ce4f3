// A long table: sorted by its headers, filtered, in pages, walked by keyboard, saved as CSV.

import { h, meanings } from "./dom.js";
import { csvLine, download } from "./download.js";
import { count, given } from "./format.js";
import { go, place, route } from "./route.js";

const ROWS = 50;

// The last list that was shown: which kind of latent, and their numbers in its order,
// and where it was.
export const recent = { kind: null, numbers: [], hash: null };

// Rows by a column's values, in its own direction or the other; what has no value comes last.
export function sortedBy(rows, value, descending) {
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (given(x) !== given(y)) return given(x) ? -1 : 1;
    if (!given(x) || x === y) return 0;
    const order = typeof x === "string" ? x.localeCompare(y, "en") : x - y;
    return descending ? -order : order;
  };
  return [...rows].sort(compare); // stable: equal rows stay in the order they came in
}

// The words of the route for this list, changed; a change other than of the page begins at its first.
export function changed(changes) {
  const words = Object.fromEntries(route.words);
  delete words.fit;
  if (!("from" in changes)) delete words.from;
  return { ...words, ...changes };
}

function headers(columns, sort) {
  return columns.map((c) => {
    if (!c.value) return h("th", { class: c.class, scope: "col", title: c.title }, c.name);
    const key = sort.replace(/^-/, "");
    const down = sort.startsWith("-");
    const own = key === c.key;
    let next = c.falling ? "-" + c.key : c.key;
    if (own) next = down ? c.key : "-" + c.key;
    const again = () => go(route.view, route.number, changed({ sort: next }));
    const mark = own ? h("span", { "aria-hidden": "true" }, down ? " ▼" : " ▲") : null;
    const button = h("button", { id: `sort-${c.key}`, type: "button", title: c.title, onclick: again }, c.name, mark);
    const order = down ? "descending" : "ascending";
    return h("th", { class: c.class, scope: "col", "aria-sort": own ? order : null }, button);
  });
}

function save(name, columns, rows) {
  const written = columns.filter((c) => c.csv || c.value);
  const line = (row) => csvLine(written.map((c) => (c.csv ?? c.value)(row)));
  download(`${name}.csv`, csvLine(written.map((c) => c.csvName ?? c.name)) + rows.map(line).join(""), "text/csv");
}

function pager(total, from) {
  const link = (id, to, text) =>
    h("a", { id, href: place(route.view, route.number, changed({ from: to })) }, text);
  const last = Math.min(from + ROWS, total);
  return h(
    "nav",
    { class: "pager", "aria-label": "Pages of the list" },
    from > 0 ? link("previous-page", Math.max(from - ROWS, 0), "← previous") : null,
    h("span", { class: "dim" }, total ? `${count(from + 1)} to ${count(last)} of ${count(total)}` : "none"),
    last < total ? link("next-page", last, "next →") : null,
  );
}

// `columns` as in dom.js, with `key` and `value` where it can be sorted by, `csv` where the file holds something else;
// `standing` is the order when none is chosen. `kind` is what the rows' numbers are of, for walking through the cards.
export function listing({ name, kind, columns, rows, standing, filters, aside }) {
  const sort = route.words.get("sort") || standing || "";
  const column = columns.find((c) => c.key === sort.replace(/^-/, ""));
  const ordered = column?.value ? sortedBy(rows, column.value, sort.startsWith("-")) : rows;
  const from = Math.min(Number(route.words.get("from")) || 0, Math.max(ordered.length - 1, 0));
  if (kind) Object.assign(recent, { kind, numbers: ordered, hash: location.hash });
  const shown = ordered.slice(from, from + ROWS);
  const seen = columns.filter((c) => !c.hidden); // the others are for the file alone
  const cells = (row) =>
    seen.map((c, i) => h(i ? "td" : "th", { class: c.class, scope: i ? null : "row" }, c.cell(row)));
  const csv = { id: "csv", type: "button", onclick: () => save(name, columns, ordered) };
  return h(
    "div",
    { class: "listing" },
    h("div", { class: "pager" }, filters, h("button", csv, "CSV"), aside),
    h(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": name },
      h(
        "table",
        {},
        h("thead", {}, h("tr", {}, headers(seen, sort))),
        h("tbody", {}, shown.map((row) => h("tr", {}, cells(row)))),
      ),
    ),
    pager(ordered.length, from),
    meanings(seen),
  );
}
