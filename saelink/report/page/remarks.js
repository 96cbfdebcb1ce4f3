// The reader's label, note and star of a latent, and the file that holds them all.

import { h } from "./dom.js";
import { download } from "./download.js";
import { asFile, fromFile, remarks, remember } from "./labels.js";

function starButton(name, write) {
  const starred = () => Boolean(remarks(name).star);
  const text = () => (starred() ? "★ starred" : "☆ star");
  const press = (event) => {
    write({ star: !starred() });
    event.currentTarget.textContent = text();
    event.currentTarget.setAttribute("aria-pressed", String(starred()));
  };
  return h("button", { id: "star", type: "button", "aria-pressed": String(starred()), onclick: press }, text());
}

export function remarksForm(name) {
  const said = h("span", { class: "dim small", role: "status" });
  const write = (change) => {
    const { label = "", note = "", star = false } = remarks(name);
    said.textContent = remember(name, { label, note, star, ...change }) ? "kept in this browser" : "this browser keeps nothing: save the file";
  };
  const { label = "", note = "" } = remarks(name);
  const labelled = h("input", { id: "label", value: label, maxlength: "200", placeholder: "your label", onchange: (e) => write({ label: e.target.value }) });
  const noted = h("textarea", { id: "note", rows: "1", placeholder: "your note", onchange: (e) => write({ note: e.target.value }) }, note);
  return h(
    "div",
    { class: "remarks small" },
    starButton(name, write),
    h("label", {}, h("span", { class: "unseen" }, "Your label"), labelled),
    h("label", {}, h("span", { class: "unseen" }, "Your note"), noted),
    said,
  );
}

// Save and load of all remarks.
export function remarksFile() {
  const said = h("span", { class: "dim small", role: "status" });
  const load = async (event) => {
    try {
      const { taken, other } = fromFile(await event.target.files[0].text());
      const rest = other ? `, ${other} left out: they are of other SAEs` : "";
      said.textContent = `${taken} labels loaded${rest}`;
    } catch (error) {
      said.textContent = `This file can't be read: ${error.message}`;
    }
  };
  const save = () => download("labels.json", asFile(), "application/json");
  return h(
    "p",
    { class: "pager small" },
    h("button", { id: "save-labels", type: "button", onclick: save }, "save your labels"),
    h("label", {}, "load labels ", h("input", { id: "load-labels", type: "file", accept: ".json", onchange: load })),
    said,
  );
}
