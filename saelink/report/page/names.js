// Names of latents as links: OF12 a target, H3 a hidden unit, IF7 a source, IF0.7 one of several hooks' sources.

import { h, quoted } from "./dom.js";
import { digits } from "./format.js";
import { head, piece } from "./pieces.js";
import { place, route } from "./route.js";

// A connector of the page as one tells it from the others.
export const fitName = (fit) => `${head.fits[fit].name}, l1_alpha ${digits(head.fits[fit].l1_alpha)}`;

let index = null;
let numbers = new Map();

// Cards of hidden units are those of the page's first connector.
const hasCard = () => head.has_hidden && route.fit === 0;

// What is known of all latents, as columns; names with a point have their number from here.
export async function readIndex() {
  if (index === null) {
    index = await piece("index");
    numbers = new Map(index.source_name.map((name, i) => [name, i]));
  }
  return index;
}

// The number of a name: sources of several hooks are numbered through.
export const numberOf = (name) => (name.includes(".") ? numbers.get(name) : Number(name.replace(/^[A-Z]+/, "")));

export function nameLink(name, number) {
  if (name.startsWith("H") && !hasCard()) return h("span", {}, name); // of a connector whose units have no cards
  let kind = "source";
  if (name.startsWith("OF")) kind = "target";
  else if (name.startsWith("H")) kind = "hidden";
  return h("a", { href: place(kind, number ?? numberOf(name)) }, name);
}

// A source with its token; any other latent by its name alone.
export function named(name, number) {
  const token = /^(IF|h\d)/.test(name) ? index?.source_token[number ?? numberOf(name)] : null;
  return [nameLink(name, number), token ? [" ", quoted(token)] : null];
}
