// Numbers and tokens as text.

export const given = (value) => value !== null && value !== undefined;

export const count = (n) => (given(n) ? n.toLocaleString("en") : "–");

// A number with its noun: 1 edge, 2 edges.
export const counted = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;

export function digits(value, n = 3) {
  if (!given(value) || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(n))) : Number(value.toPrecision(n)).toExponential();
}

export const percent = (value) => (given(value) ? (100 * value).toFixed(value && value < 0.1 ? 1 : 0) + "%" : "–");

// A percentage with its sign.
export function share(value) {
  if (!given(value)) return "–";
  return (value < 0 ? "−" : "+") + (100 * Math.abs(value)).toFixed(Math.abs(value) < 0.1 ? 1 : 0) + "%";
}

// A weight to two decimals without the zero before the point; a smaller one to one digit.
export function weight(value) {
  const size = Math.abs(value);
  let text = "0";
  if (size >= 0.005) text = size.toFixed(2);
  else if (size >= 5e-5) text = String(Number(size.toPrecision(1)));
  else if (size > 0) text = size.toExponential(0);
  return (value < 0 ? "−" : "") + text.replace(/^0\./, ".");
}

// How much an error rises, with its sign.
export function rise(value) {
  if (!given(value)) return "–";
  const size = Math.abs(value);
  if (size < 5e-5) return "0";
  return (value >= 0 ? "+" : "−") + (size < 1e-3 ? size.toFixed(4) : digits(size, 2));
}

// What stands before a term of a sum.
export function sign(value, first) {
  if (first) return value < 0 ? "−" : "";
  return value < 0 ? " − " : " + ";
}

// What can't be seen in a token, or would break a line, is spelt out.
const SPELT = { "\n": "⏎", "\t": "⇥", "\r": "␍", "\u00a0": "⍽" };
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;

export const visible = (token) =>
  token
    .replace(/[\n\t\r\u00a0]/g, (c) => SPELT[c])
    .replace(UNSEEN, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));

// The background of a token with this activation, where the largest is `most`.
export function shade(value, most) {
  const part = most > 0 ? Math.min(Math.abs(value) / most, 1) : 0;
  const rgb = value < 0 ? "--fade" : "--fire";
  return part > 0 ? `background: rgba(var(${rgb}), ${(0.12 + 0.7 * part).toFixed(2)})` : "";
}

// Of terms [input, weight, verdict] the confirmed before the others, each part in its order; what two decimals don't show is left out.
export const told = (terms) => {
  const shown = terms.filter(([, value]) => Math.abs(value) >= 0.005);
  const confirmed = ([, , verdict]) => verdict === "confirmed";
  return [...shown.filter(confirmed), ...shown.filter((term) => !confirmed(term))];
};
