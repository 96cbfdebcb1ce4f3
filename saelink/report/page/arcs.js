// What moves from token to token: sentences with an arc from the key to the query, and bars of how far apart they are.

import { h, s } from "./dom.js";
import { percent, visible } from "./format.js";

const ROOM = 26; // above the words, for the arc

// 1 to 4 tokens before.
export function between(near, far) {
  if (far === 0) return "the token itself";
  return near === far ? `${near} token${near === 1 ? "" : "s"} before` : `${near} to ${far} tokens before`;
}

const [WIDE, HIGH] = [46, 58];

// Bars of [distance, share]; `label` says of what.
export function distanceBars(bins, label) {
  const most = Math.max(...bins.map(([, share]) => share), 1e-9);
  const bar = ([name, share], i) => {
    const high = (HIGH * share) / most;
    const middle = (i + 0.5) * WIDE;
    return [
      s("rect", { x: i * WIDE + 6, y: 16 + HIGH - high, width: WIDE - 12, height: high }),
      s("text", { x: middle, y: 12 + HIGH - high, "text-anchor": "middle" }, share >= 0.005 ? percent(share) : ""),
      s("text", { x: middle, y: HIGH + 30, "text-anchor": "middle", class: "token" }, name),
    ];
  };
  const told = bins.filter(([, share]) => share >= 0.0005).map(([name, share]) => `${name} ${percent(share)}`);
  const wide = bins.length * WIDE;
  const text = `${label}, by tokens before the query: ${told.join(", ") || "none"}`;
  return s(
    "svg",
    { class: "bars", viewBox: `0 0 ${wide} ${HIGH + 36}`, style: `max-width: ${wide}px`, role: "img", "aria-label": text },
    s("line", { x1: 0, x2: wide, y1: HIGH + 16.5, y2: HIGH + 16.5 }),
    bins.map(bar),
  );
}

// From one place of the line to another; a loop over a token that it does not leave.
function arc(from, to) {
  const foot = ROOM - 3;
  if (from === to) return `M${from - 5} ${foot} C${from - 14} 2 ${from + 14} 2 ${from + 5} ${foot - 3}`;
  const top = Math.max(foot - 8 - Math.abs(to - from) / 6, 3) - 5;
  return `M${from} ${foot} C${from} ${top} ${to} ${top} ${to} ${foot - 3}`;
}

// The words of { tokens, key, query } with the arc; `says` is the same for those who don't see it, `below` stands under
// it. A missing token is a gap. `negative` is what takes away.
export function sentence({ tokens, key, query }, says, below, negative = false) {
  const style = (i) => ["tok", i === key ? "from" : null, i === query ? "to" : null].filter(Boolean).join(" ");
  const word = (token, i) => (token === null ? h("span", { class: "dim" }, " … ") : h("span", { class: style(i) }, visible(token)));
  const words = tokens.map(word);
  const drawing = s("svg", { class: `arc ${negative ? "takes" : "adds"}`, "aria-hidden": "true", width: 0, height: ROOM });
  const line = h("div", { class: "line" }, drawing, words);
  const box = h("div", { class: "scroll", role: "group", "aria-label": says }, line);
  const middle = (i) => words[i].offsetLeft + words[i].offsetWidth / 2;
  const draw = () => {
    if (!box.clientWidth) return; // not in sight
    const [from, to] = [middle(key), middle(query)];
    drawing.setAttribute("width", line.offsetWidth);
    const end = from === to ? from + 5 : to;
    const tip = `M${end - 4} ${ROOM - 8} L${end + 4} ${ROOM - 8} L${end} ${ROOM - 1} Z`;
    drawing.replaceChildren(s("path", { d: arc(from, to) }), s("path", { d: tip, class: "tip" }));
    if (box.scrollWidth > box.clientWidth + 1) box.setAttribute("tabindex", "0"); // moved by arrow keys
    else box.removeAttribute("tabindex");
  };
  new ResizeObserver(draw).observe(box);
  return h("div", { class: "sentence" }, box, below ? h("div", { class: "dim small" }, below) : null);
}

// The words of a sentence as text.
export const words = (tokens) => tokens.map((token) => (token === null ? " … " : visible(token))).join("").trim();

// How far apart its key and query are, in words; nothing where a gap hides it.
export function apart({ tokens, key, query }) {
  if (key === query) return "the same token";
  if (tokens.includes(null)) return "many tokens later";
  return `${query - key} token${query - key === 1 ? "" : "s"} later`;
}
