// Back returns to where one was: how far down, what had the focus, what was opened. Kept with each entry of the history.

let first = true; // nothing was shown yet
let leaving = false; // between a change of the hash and the view it asks for, what is seen is not the entry's own

// What finds an element again in a view that is built anew.
function nameOf(element) {
  if (!element || element === document.body) return null;
  if (element.id) return "#" + CSS.escape(element.id);
  const href = element.getAttribute?.("href");
  return href ? `a[href="${CSS.escape(href)}"]` : null;
}

const opened = () =>
  [...document.querySelectorAll("main details")].flatMap((details, i) => (details.open ? [i] : []));

function keep() {
  if (leaving) return;
  history.replaceState({ y: window.scrollY, focus: nameOf(document.activeElement), open: opened() }, "");
}

let waiting = 0;
function keepSoon() {
  clearTimeout(waiting);
  const where = location.hash;
  waiting = setTimeout(() => {
    if (location.hash === where) keep();
  }, 120);
}

// Details whose contents are made when they are opened: `make` gives their elements.
const makers = new WeakMap();
export function lazily(details, make) {
  makers.set(details, make);
  details.addEventListener("toggle", () => details.open && fill(details));
  return details;
}

async function fill(details) {
  const make = makers.get(details);
  if (!make) return;
  makers.delete(details);
  details.append(...[await make()].flat());
}

function find(selector) {
  return selector ? document.querySelector(selector) : null;
}

// After a view is in its place. An entry one comes back to is put as it was left. In a new one the focus stays on the
// same control where that is still there, otherwise it goes to the view; only the same view keeps its height.
export async function returnTo(page, focused, same) {
  const state = history.state;
  leaving = false;
  const details = [...page.querySelectorAll("details")];
  for (const i of state?.open ?? []) {
    if (details[i] && !details[i].open) {
      details[i].open = true;
      await fill(details[i]);
    }
  }
  const lost = !focused || !focused.isConnected || focused === document.body;
  const control = state ? find(state.focus) : lost ? find(nameOf(focused)) : focused;
  if (control) control.focus({ preventScroll: true });
  else if (lost && !first) document.getElementById("main").focus({ preventScroll: true });
  first = false;
  if (state) window.scrollTo(0, state.y);
  else if (!same) window.scrollTo(0, 0);
  keep();
}


export function startHistory() {
  history.scrollRestoration = "manual";
  window.addEventListener("scroll", keepSoon, { passive: true });
  document.addEventListener("focusin", keepSoon);
  document.addEventListener("toggle", keepSoon, true);
  // Before a link is followed what is seen is kept at once.
  document.addEventListener("click", () => keep(), true);
  window.addEventListener("hashchange", () => {
    leaving = true;
    clearTimeout(waiting);
  });
}
