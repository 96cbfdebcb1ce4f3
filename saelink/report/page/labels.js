// What the reader calls a latent: label, note and star, kept by the browser, saved to a file and loaded from one.

import { given } from "./format.js";
import { head } from "./pieces.js";

const FORMAT = 1;

// The SAE of a name (OF12, IF3, IF1.7) and the latent's number in it; null for hidden units.
function placeOf(name) {
  const found = /^(OF|IF)(?:(\d+)\.)?(\d+)$/.exec(name);
  if (!found) return null;
  const side = found[1] === "OF" ? head.saes.length - 1 : Number(found[2] ?? 0);
  return head.saes[side] ? { sae: head.saes[side].sae, hook: head.saes[side].hook, latent: Number(found[3]) } : null;
}

const stored = (sae) => "saelink labels " + sae;

const kept = new Map(); // by SAE what the browser keeps, by latent

function read(sae) {
  if (!kept.has(sae)) {
    let own = {};
    try {
      own = JSON.parse(localStorage.getItem(stored(sae)) ?? "{}");
    } catch {
      // a browser that keeps nothing, or something else under this name
    }
    for (const entry of head.labels ?? []) {
      if (entry.sae === sae && !given(own[entry.latent])) own[entry.latent] = entry;
    }
    kept.set(sae, own);
  }
  return kept.get(sae);
}

// Label, note and star of a latent; empty where the reader gave none.
export function remarks(name) {
  const at = placeOf(name);
  return (at && read(at.sae)[at.latent]) || {};
}

export const labelOf = (name) => remarks(name).label || null;

export const starred = (name) => Boolean(remarks(name).star);

// Keep a latent's remarks; false where the browser refuses.
export function remember(name, { label, note, star }) {
  const at = placeOf(name);
  if (!at) return false;
  const own = read(at.sae);
  own[at.latent] = { label: label.trim(), note: note.trim(), star: Boolean(star) };
  try {
    localStorage.setItem(stored(at.sae), JSON.stringify(own));
    return true;
  } catch {
    return false;
  }
}

// All remarks as the text of a file.
export function asFile() {
  const latents = [];
  const seen = new Set();
  for (const { sae, hook } of head.saes) {
    if (seen.has(sae)) continue;
    seen.add(sae);
    for (const [latent, { label, note, star }] of Object.entries(read(sae))) {
      if (label || note || star) latents.push({ sae, hook, latent: Number(latent), label, note, star });
    }
  }
  return JSON.stringify({ saelink_labels: FORMAT, latents }, null, 1);
}

// Take over the remarks of a file: how many were taken, and how many are of other SAEs. Throws for another file.
export function fromFile(text) {
  const { saelink_labels: format, latents } = JSON.parse(text);
  if (format !== FORMAT || !Array.isArray(latents)) throw new Error("not a file of labels");
  let taken = 0;
  for (const { sae, hook, latent, label, note, star } of latents) {
    const side = head.saes.findIndex((own) => own.sae === sae && own.hook === hook);
    if (side < 0 || !Number.isInteger(latent)) continue;
    const several = head.saes.length > 2 ? `${side}.` : "";
    const name = side === head.saes.length - 1 ? `OF${latent}` : `IF${several}${latent}`;
    remember(name, { label: String(label ?? ""), note: String(note ?? ""), star });
    taken += 1;
  }
  return { taken, other: latents.length - taken };
}
