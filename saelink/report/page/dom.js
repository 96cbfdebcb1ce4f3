// Elements. Everything is built with textContent: a token is text, whatever it holds.

import { given, visible } from "./format.js";

export function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (!given(value) || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") element.style.cssText = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (given(child) && child !== false) element.append(child);
  }
  return element;
}

// The same in SVG.
export const SVG = "http://www.w3.org/2000/svg";

export function s(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  for (const child of children.flat(Infinity)) if (child !== null && child !== undefined) element.append(child);
  return element;
}

export const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export const quoted = (token) => (given(token) ? h("span", { class: "quote" }, `"${visible(token)}"`) : "");

// A number in the colour of its sign.
export const signed = (value, text, title) => h("span", { class: value < 0 ? "minus" : "plus", title }, text);

export const commas = (items, shown) => items.map((item, i) => [i ? ", " : "", shown(item, i)]);

// Columns of a table: of words, and of numbers.
export const column = (name, cell, title) => ({ name, cell, title, class: null });
export const figure = (name, cell, title) => ({ name, cell, title, class: "n" });

// What columns mean, for those who have no mouse to point at their titles with.
export function meanings(columns) {
  const told = columns.filter((c) => c.title && c.name);
  if (!told.length) return null;
  return h(
    "details",
    { class: "small columns-mean" },
    h("summary", {}, "What the columns mean"),
    h("dl", {}, told.map((c) => [h("dt", {}, c.name), h("dd", {}, c.title)])),
  );
}

export function table(columns, rows) {
  const header = columns.map((c) => h("th", { class: c.class, scope: "col", title: c.title }, c.name));
  const cells = (row) => columns.map((c) => h("td", { class: c.class }, c.cell(row)));
  const body = rows.map((row) => h("tr", { class: row.own ? "own" : null }, cells(row)));
  const whole = h("table", {}, h("thead", {}, h("tr", {}, header)), h("tbody", {}, body));
  return h("div", {}, h("div", { class: "scroll" }, whole), meanings(columns));
}

// A labelled choice among pairs of value and text.
export function choice(label, id, options, chosen, changed) {
  const option = ([value, text]) => h("option", { value, selected: value === chosen }, text);
  const select = h("select", { id, onchange: (event) => changed(event.target.value) }, options.map(option));
  return h("label", {}, label, " ", select);
}

export function nowhere(page) {
  page.append(
    h("h1", {}, "There is no such place on this page"),
    h("p", {}, h("a", { href: "#/" }, "To the overview")),
  );
}
