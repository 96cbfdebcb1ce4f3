// The page's data: the head is read at once, every other piece is unpacked when it is asked for.

export const SCHEMA = 4; // as in render.py

export const head = JSON.parse(document.getElementById("head").textContent);

const KEPT = 200;
const unpacked = new Map();
const parsing = new Promise((done) => {
  if (document.readyState !== "loading") done();
  else document.addEventListener("DOMContentLoaded", () => done());
});

export async function inflate(name) {
  await parsing;
  const element = document.getElementById("piece:" + name);
  if (!element) return null;
  const text = atob(element.textContent);
  const bytes = new Uint8Array(text.length); // by hand: Uint8Array.from calls a function for each of millions of bytes
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

export function piece(name) {
  if (!unpacked.has(name)) {
    if (unpacked.size > KEPT) unpacked.delete(unpacked.keys().next().value);
    const read = inflate(name).then((text) => (text === null ? null : JSON.parse(text)));
    unpacked.set(name, read);
  }
  return unpacked.get(name);
}

// A latent's entry in the pieces of its kind.
export async function entry(kind, number) {
  const entries = await piece(`${kind}/${Math.floor(number / head.piece)}`);
  return entries ? entries[String(number)] : undefined;
}
