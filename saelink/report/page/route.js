// Where the reader is: #/<view>/<number>?fit=..&<other words>.

export const route = { view: "", number: undefined, fit: 0, words: new URLSearchParams() };

// A hash taken apart; `fits` is how many fits the page holds.
export function parsed(hash, fits) {
  const [path, tail] = hash.replace(/^#\/?/, "").split("?");
  const [view, number] = path.split("/");
  const words = new URLSearchParams(tail || "");
  return {
    view,
    number: number === undefined ? undefined : Number(number),
    fit: Math.min(Number(words.get("fit")) || 0, fits - 1),
    words,
  };
}

export function read(hash, fits) {
  Object.assign(route, parsed(hash, fits));
}

// The hash of a place; it keeps the fit that is shown unless another is asked for.
export function place(kind, number, options = {}) {
  const words = new URLSearchParams();
  const fit = options.fit ?? route.fit;
  if (fit) words.set("fit", fit);
  for (const [name, value] of Object.entries(options)) if (name !== "fit" && value) words.set(name, value);
  const tail = words.toString();
  return `#/${kind}${number === undefined ? "" : "/" + number}${tail ? "?" + tail : ""}`;
}

export function go(kind, number, options) {
  location.hash = place(kind, number, options).slice(1);
}
