// Plots: plotly comes packed in the page and is unpacked when the first of them comes into view.

import { color } from "./dom.js";
import { count, digits, given } from "./format.js";
import { inflate } from "./pieces.js";
import { go } from "./route.js";

const COLORS = ["#e07b00", "#2f7ed8", "#2aa05a", "#b14ecb", "#c7384a", "#7a8a99", "#b59a00"];

let loading = null;
function plotly() {
  loading ??= inflate("plotly").then(
    (text) =>
      new Promise((done, fail) => {
        const script = document.createElement("script");
        script.src = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
        script.onload = () => done(window.Plotly);
        script.onerror = fail;
        document.head.append(script);
      }),
  );
  return loading;
}

// By place what draws a plot that was not seen yet. To unpack plotly takes a second in which the page answers to
// nothing, and whoever opens a card at once should not wait for plots below what they looked at.
const unseen = new Map();
let sight = null;

function drawAll(places) {
  for (const where of places) {
    sight.unobserve(where);
    const job = unseen.get(where);
    unseen.delete(where);
    if (where.isConnected) job?.();
  }
}

// On paper all of them; while plotly is still packed their texts, see report.css.
function begin() {
  const seen = (entries) => drawAll(entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target));
  sight = new IntersectionObserver(seen, { rootMargin: "100px" });
  window.addEventListener("beforeprint", () => drawAll([...unseen.keys()]));
}

function plot(where, traces, layout, clicked) {
  if (!sight) begin();
  drawAll([...unseen.keys()].filter((other) => !other.isConnected)); // of a view that is gone
  unseen.set(where, () => draw(where, traces, layout, clicked));
  sight.observe(where);
}

async function draw(where, traces, layout, clicked) {
  const Plotly = await plotly();
  if (!where.isConnected) return;
  const axis = { gridcolor: color("--line"), zerolinecolor: color("--line"), automargin: true };
  const whole = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: color("--ink"), size: 12 },
    margin: { l: 55, r: 12, t: 12, b: 42 },
    hovermode: "closest",
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    colorway: COLORS,
    ...layout,
    xaxis: { ...axis, ...layout.xaxis },
    yaxis: { ...axis, ...layout.yaxis },
  };
  if (traces.length > 6) where.style.height = `${300 + 12 * traces.length}px`; // the legend takes room
  await Plotly.react(where, traces, whole, { displayModeBar: false, responsive: true });
  if (clicked) {
    where.removeAllListeners?.("plotly_click");
    where.on("plotly_click", (event) => clicked(event.points[0]));
  }
}

const titled = (text, more = {}) => ({ ...more, title: { text } });

// Error against sparsity: a line for each connector; a click on a point with a fit shows its circuits.
export function frontierPlot(where, frontier) {
  const names = [...new Set(frontier.map((p) => p.name))];
  const label = (p) =>
    `l1_alpha ${digits(p.l1_alpha)}<br>${count(p.n_edges)} edges<br>FVU ${digits(p.fvu)}${p.elbow ? "<br>elbow" : ""}`;
  const traces = names.map((name) => {
    const points = frontier.filter((p) => p.name === name);
    return {
      x: points.map((p) => p.l1),
      y: points.map((p) => p.fvu),
      name,
      mode: "lines+markers",
      customdata: points.map((p) => p.fit),
      text: points.map(label),
      hovertemplate: "%{text}",
      marker: {
        size: points.map((p) => (p.fit === null ? 6 : 12)),
        line: { color: color("--ink"), width: points.map((p) => (p.elbow ? 2.5 : 0)) },
      },
    };
  });
  const layout = { xaxis: titled("L1", { type: "log" }), yaxis: titled("FVU, test documents"), showlegend: true };
  plot(where, traces, layout, (point) => {
    if (given(point.customdata)) go("circuits", undefined, { fit: point.customdata });
  });
}

export function lossPlot(where, curves) {
  const traces = curves.map((c) => ({ x: c.tokens, y: c.mse, name: c.name, mode: "lines" }));
  plot(where, traces, {
    xaxis: titled("training tokens"),
    yaxis: titled("MSE", { type: "log", dtick: "D1" }),
  });
}

// How often a latent fires how strongly: four bins to each doubling, the middle one at 1.
export function sizesPlot(where, histogram, title) {
  const at = (i) => 2 ** ((i - histogram.length / 2) / 4);
  const bars = {
    type: "bar",
    x: histogram.map((_, i) => at(i + 0.5)),
    y: histogram,
    marker: { color: COLORS[0] },
    hovertemplate: "%{x:.3g}: %{y}<extra></extra>",
    width: histogram.map((_, i) => at(i + 1) - at(i)),
  };
  plot(where, [bars], { xaxis: titled(title, { type: "log" }), yaxis: titled("tokens"), bargap: 0 });
}

// Tokens by the values of two inputs, a third as size, where the target fires and where it is silent.
export function inputsPlot(where, scatter) {
  const [across, up, third] = scatter.values;
  const three = scatter.inputs.length > 2;
  const trace = (fires, name, marker) => {
    const chosen = scatter.target.map((_, i) => i).filter((i) => scatter.target[i] > 0 === fires);
    const beside = (i) => (three ? `, ${scatter.inputs[2]} ${digits(third[i])}` : "");
    return {
      name,
      mode: "markers",
      x: chosen.map((i) => across[i]),
      y: chosen.map((i) => up[i]),
      text: chosen.map((i) => `target ${digits(scatter.target[i])}` + beside(i)),
      marker: { ...marker, opacity: 0.75, size: chosen.map((i) => (three ? 5 + 4 * Math.min(third[i], 3) : 7)) },
    };
  };
  const traces = [
    trace(true, "fires", { color: COLORS[0], symbol: "circle" }),
    trace(false, "silent", { color: COLORS[5], symbol: "x" }),
  ];
  plot(where, traces, { xaxis: titled(scatter.inputs[0]), yaxis: titled(scatter.inputs[1]) });
}
