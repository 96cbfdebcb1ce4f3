// A drawing of boxes and links in SVG that is moved, zoomed, walked by keyboard and saved as a file.

import { h, s, SVG } from "./dom.js";
import { download } from "./download.js";

// Where a link runs: out of the right of a box into the left of another.
const ends = (from, to) => [from.x + from.wide / 2, from.y, to.x - to.wide / 2, to.y];

const curve = ([x1, y1, x2, y2]) => `M${x1} ${y1} C${(x1 + x2) / 2} ${y1} ${(x1 + x2) / 2} ${y2} ${x2} ${y2}`;

// A point of the curve, t from 0 to 1.
function along([x1, y1, x2, y2], t) {
  const [a, b, c, d] = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t ** 3];
  const middle = (x1 + x2) / 2;
  return [a * x1 + (b + c) * middle + d * x2, (a + b) * y1 + (c + d) * y2];
}

function drawLink(link, boxes) {
  const [from, to] = [boxes.get(link.from), boxes.get(link.to)];
  const at = ends(from, to);
  const style = { class: `link ${link.class}`, "stroke-width": link.width.toFixed(2), d: curve(at) };
  const parts = [s("path", style, s("title", {}, link.says))];
  if (link.label) {
    // At the beginning, where a curve is level and no other's weight stands, or towards the end.
    const [x, y] = link.labelAt ? along(at, link.labelAt) : [at[0] + 26, at[1]];
    parts.push(s("text", { class: `label ${link.class}`, x, y: y - link.width / 2 - 3, "text-anchor": "middle" }, link.label));
  }
  return s("g", { class: "edge", "data-from": link.from, "data-to": link.to }, parts);
}

function drawBox(box, expand) {
  const [left, top] = [box.x - box.wide / 2, box.y - box.high / 2];
  const lines = box.lines.map((line, i) => {
    const y = box.y + 4 + (i - (box.lines.length - 1) / 2) * 14;
    return s("text", { x: box.x - (box.expands ? 8 : 0), y, class: i ? "token" : "name", "text-anchor": "middle" }, line);
  });
  const body = [s("rect", { x: left, y: top, width: box.wide, height: box.high, rx: 6 }), lines, s("title", {}, box.says)];
  const action = box.href
    ? s("a", { href: box.href, "aria-label": box.says, "data-box": box.id }, body)
    : s("g", { role: "button", tabindex: 0, "aria-label": box.says, "aria-pressed": box.own ? "true" : "false", "data-box": box.id,
        onclick: () => box.chosen?.(), onkeydown: (e) => pressed(e, () => box.chosen?.()) }, body);
  const parts = [action];
  if (box.expands) {
    const x = left + box.wide - 11;
    const open = () => expand(box.id);
    const label = `${box.expanded ? "Collapse" : "Expand"} ${box.says}`;
    parts.push(
      s(
        "g",
        { class: "expand", role: "button", tabindex: 0, "aria-label": label, "aria-expanded": String(box.expanded),
          "data-expand": box.id, onclick: open, onkeydown: (e) => pressed(e, open) },
        s("circle", { cx: x, cy: box.y, r: 8 }),
        s("text", { x, y: box.y + 4.5, "text-anchor": "middle" }, box.expanded ? "−" : "+"),
      ),
    );
  }
  return s("g", { class: `box ${box.class ?? ""} ${box.own ? "own" : ""}` }, parts);
}

function pressed(event, action) {
  if (event.key !== "Enter" && event.key !== " ") return;
  event.preventDefault();
  event.stopPropagation();
  action();
}

// What of the drawing is seen, as the svg's viewBox.
class View {
  constructor(svg, reset) {
    Object.assign(this, { svg, reset });
  }

  set([x, y, wide, high]) {
    this.at = [x, y, wide, high];
    this.svg.setAttribute("viewBox", this.at.map((value) => value.toFixed(1)).join(" "));
  }

  move(across, down) {
    const [x, y, wide, high] = this.at;
    this.set([x + across * wide, y + down * high, wide, high]);
  }

  zoom(factor, [px, py] = [0.5, 0.5]) {
    const [x, y, wide, high] = this.at;
    const size = Math.min(Math.max(wide / factor, 60), 20_000) / wide;
    this.set([x + px * wide * (1 - size), y + py * high * (1 - size), wide * size, high * size]);
  }
}

function listen(svg, view) {
  const moves = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] };
  svg.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (moves[event.key]) view.move(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") view.zoom(1.25);
    else if (event.key === "-") view.zoom(0.8);
    else if (event.key === "0") view.reset();
    else return;
    event.preventDefault();
  });
  svg.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // the wheel alone moves the page
      event.preventDefault();
      const box = svg.getBoundingClientRect();
      view.zoom(event.deltaY < 0 ? 1.15 : 0.87, [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]);
    },
    { passive: false },
  );
  let last = null;
  svg.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "touch" || event.target.closest("[data-box], [data-expand]")) return; // a finger scrolls
    last = [event.clientX, event.clientY];
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointermove", (event) => {
    if (!last) return;
    const box = svg.getBoundingClientRect();
    view.move((last[0] - event.clientX) / box.width, (last[1] - event.clientY) / box.height);
    last = [event.clientX, event.clientY];
  });
  for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, () => (last = null));
}

const EXPORTED = ["fill", "stroke", "stroke-width", "stroke-dasharray", "font-family", "font-size", "font-weight", "opacity", "stroke-opacity", "paint-order"];

// The drawing as the text of an SVG file: its colours written into it, and all of it in sight.
function asFile(svg, whole) {
  const copy = svg.cloneNode(true);
  const [originals, copies] = [svg.querySelectorAll("*"), copy.querySelectorAll("*")];
  originals.forEach((element, i) => {
    const style = getComputedStyle(element);
    if (!["path", "rect", "circle", "text"].includes(element.tagName)) return;
    for (const name of EXPORTED) copies[i].setAttribute(name, style.getPropertyValue(name));
  });
  copy.setAttribute("xmlns", SVG);
  copy.setAttribute("viewBox", whole.join(" "));
  copy.setAttribute("width", whole[2]);
  copy.setAttribute("height", whole[3]);
  copy.querySelectorAll(".expand").forEach((element) => element.remove());
  copy.querySelectorAll("a").forEach((element) => element.removeAttribute("href")); // to places of this page
  const back = s("rect", { x: whole[0], y: whole[1], width: whole[2], height: whole[3], fill: getComputedStyle(document.body).backgroundColor });
  copy.prepend(back);
  return new XMLSerializer().serializeToString(copy);
}

// A drawing with its controls. `draw({ boxes, links, lines })` shows others in it and keeps the focus.
// boxes: id, x, y, wide, high, lines, says, href or chosen, expands, expanded, own; links: from, to, width, class, says, label.
export function diagram({ label, name, expand, most = 460 }) {
  const svg = s("svg", { class: "diagram", role: "group", tabindex: 0, "aria-label": `${label}. Arrow keys move it, plus and minus zoom, 0 shows all.` });
  let whole = [0, 0, 100, 100];
  const view = new View(svg, () => view.set(whole));
  listen(svg, view);
  const text = h("ul", { class: "small" });
  const button = (id, words, title, action) => h("button", { id: `${name}-${id}`, type: "button", title, "aria-label": title, onclick: action }, words);
  const element = h(
    "figure",
    { class: "drawing" },
    h("div", { class: "scroll" }, svg),
    h(
      "div",
      { class: "pager small" },
      button("in", "+", "Zoom in", () => view.zoom(1.25)),
      button("out", "−", "Zoom out", () => view.zoom(0.8)),
      button("all", "all", "Show all of the picture", () => view.reset()),
      button("save", "SVG", "Save the picture as SVG", () => download(`${name}.svg`, asFile(svg, whole), "image/svg+xml")),
    ),
    h("details", { class: "small" }, h("summary", {}, "The picture as text"), text),
  );
  function draw({ boxes, links, lines, fit = true }) {
    const focused = svg.contains(document.activeElement) ? document.activeElement : null;
    const [kind, id] = focused?.dataset.expand ? ["expand", focused.dataset.expand] : ["box", focused?.dataset.box];
    const byId = new Map(boxes.map((box) => [box.id, box]));
    svg.replaceChildren(
      ...links.map((link) => drawLink(link, byId)),
      ...boxes.map((box) => drawBox(box, expand)),
    );
    const left = Math.min(...boxes.map((b) => b.x - b.wide / 2)) - 14;
    const right = Math.max(...boxes.map((b) => b.x + b.wide / 2)) + 14;
    const top = Math.min(...boxes.map((b) => b.y - b.high / 2)) - 14;
    const bottom = Math.max(...boxes.map((b) => b.y + b.high / 2)) + 14;
    whole = [left, top, right - left, bottom - top];
    svg.style.height = `${Math.min(bottom - top, most)}px`;
    if (fit || !view.at) view.reset();
    text.replaceChildren(...lines.map((line) => h("li", {}, line)));
    if (id) svg.querySelector(`[data-${kind}="${CSS.escape(id)}"]`)?.focus({ preventScroll: true });
  }
  return { element, draw };
}
