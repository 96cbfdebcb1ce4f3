// Which latents a query means, and in which order they are listed.

const TARGET = /^OF(\d+)$/;
const SOURCE = /^IF\d+(?:\.\d+)?$/;

const holds = (token, wanted) => (token ?? "").toLowerCase().includes(wanted);

// How well a text meets a query, the best first: 0 the same, 1 but for case, 2 begins with it, 3 holds it; null not at
// all. The blanks around a token don't count.
export function rank(text, query) {
  const token = (text ?? "").trim();
  const wanted = query.trim();
  if (!wanted || !token) return null;
  if (token === wanted) return 0;
  const [small, sought] = [token.toLowerCase(), wanted.toLowerCase()];
  if (small === sought) return 1;
  if (small.startsWith(sought)) return 2;
  return small.includes(sought) ? 3 : null;
}

// The best of the ranks of a latent's texts: its token, and its label where the reader gave one.
const bestRank = (texts, query) =>
  texts.reduce((best, text) => {
    const own = rank(text, query);
    return own === null || (best !== null && best <= own) ? best : own;
  }, null);

// Targets and sources that a query means, the best first: by name, then by how well the token meets it, then those
// that are active most often. `labels` gives the reader's own label of a name, if any.
export function suggestions(query, index, most, labels = () => null) {
  const wanted = query.trim();
  if (!wanted) return [];
  const found = [];
  const add = (kind, number, name, token, active) => {
    const digitsOf = name.replace(/^[A-Z]+/, "");
    const named = name.toLowerCase() === wanted.toLowerCase() || digitsOf === wanted;
    const own = named ? -1 : bestRank([token, labels(name)], wanted);
    if (own !== null) found.push({ kind, number, name, token, rank: own, active: active ?? 0 });
  };
  index.token.forEach((token, i) => add("target", i, `OF${i}`, token, index.active[i]));
  index.source_token.forEach((token, i) => add("source", i, index.source_name[i], token, index.source_active?.[i]));
  found.sort((a, b) => a.rank - b.rank || b.active - a.active || (a.kind < b.kind ? 1 : -1) || a.number - b.number);
  return found.slice(0, most);
}

// Targets whose name, token or formula's tokens match. An input of a formula is a source if it is below `direct`.
export function matchingTargets(query, index, fit, direct, numberOf, labels = () => null) {
  const all = index.token.map((_, i) => i);
  if (!query) return all;
  const name = /^(?:OF)?(\d+)$/i.exec(query);
  if (name) return all.filter((i) => i === Number(name[1]));
  const wanted = query.toLowerCase();
  const feeds = /^I?F?(\d+(?:\.\d+)?)$/i.test(query)
    ? new Set([numberOf(query.toUpperCase())])
    : new Set(index.source_token.flatMap((token, i) => (holds(token, wanted) ? [i] : [])));
  const fed = (i) => (fit.formula[i] || []).some(([input]) => input < direct && feeds.has(input));
  return all.filter((i) => holds(index.token[i], wanted) || holds(labels(`OF${i}`), wanted) || fed(i));
}

// Sources with this name, or whose token or label holds the query; those that meet it best first.
export function matchingSources(query, index, labels = () => null) {
  const all = index.source_name.map((_, i) => i);
  if (!query) return all;
  const met = (i) => (index.source_name[i].toLowerCase() === query.toLowerCase() ? -1 : bestRank([index.source_token[i], labels(index.source_name[i])], query));
  return all
    .map((i) => [i, met(i)])
    .filter(([, own]) => own !== null)
    .sort(([, a], [, b]) => a - b)
    .map(([i]) => i);
}

const VERDICT_ORDER = ["confirmed", "weaker", "no effect", "opposite", "unclear", "faint"];

function hasVerdict(i, verdict, fit) {
  if (!verdict) return true;
  if (verdict === "sure") return fit.confirmed[i] === true;
  const counts = fit.verdicts[i];
  if (!counts) return false;
  return verdict === "none" ? counts[0] === 0 : counts[VERDICT_ORDER.indexOf(verdict)] > 0;
}

// The targets, the most effective first, that have this share of all effectiveness.
function carrying(share, effectiveness) {
  const found = effectiveness.map((_, i) => i).filter((i) => effectiveness[i]).sort((a, b) => effectiveness[b] - effectiveness[a]);
  const whole = found.reduce((sum, i) => sum + effectiveness[i], 0);
  let sum = 0;
  return new Set(found.filter((i) => {
    const before = sum;
    sum += effectiveness[i];
    return before < share * whole;
  }));
}

// Whether the output owes that to a target's edges: "50" or "90" percent of all effectiveness, or a help or harm of two
// standard errors.
function owing(owes, fit) {
  if (!owes || !fit.effectiveness) return () => true;
  if (Number(owes)) {
    const carry = carrying(Number(owes) / 100, fit.effectiveness);
    return (i) => carry.has(i);
  }
  const sign = owes === "harms" ? -1 : 1;
  return (i) => sign * fit.helpfulness[i] > 2 * fit.helpfulness_error[i];
}

// Targets with an edge table that meet every wish: one logic, a verdict, FVU below, an effect of at least, what the
// output owes them.
export function filtered(numbers, { logic, verdict, why, fvu, effect, owes }, index, fit) {
  const owed = owing(owes, fit);
  const word = (i) => !logic || fit.word[i] === logic || (logic === "outlier" && index.outlier[i]);
  const low = (i) => !fvu || (fit.fvu[i] !== null && fit.fvu[i] < Number(fvu));
  const strong = (i) => !effect || (fit.effect[i] ?? 0) >= Number(effect);
  const because = (i) => !why || (fit.why[i] ?? "").split(" ").includes(why);
  const wanted = (i) => word(i) && hasVerdict(i, verdict, fit) && because(i) && low(i) && strong(i) && owed(i);
  return numbers.filter((i) => fit.n_edges[i] !== null && wanted(i));
}

// How well a target meets a query: by its own token, or half a rank worse by that of a source in its formula.
function matched(i, index, fit, query) {
  const sources = (fit.formula[i] || []).map(([input]) => rank(index.source_token[input], query));
  const fed = Math.min(...sources.map((own) => own ?? 4), 4) + 0.5;
  return Math.min(rank(index.token[i], query) ?? 4, fed);
}

// What each order sorts by, smallest first; `match` by how well the target's own token meets the query.
function orders(index, fit, query) {
  const gains = index.gains.map((g, k) => ["gain" + k, (i) => -(g.gain[i] ?? -Infinity)]);
  return {
    fvu: (i) => fit.fvu[i] ?? Infinity,
    edges: (i) => fit.n_edges[i],
    active: (i) => -index.active[i],
    number: (i) => i,
    outlier: (i) => -Boolean(index.outlier[i]) + (fit.fvu[i] ?? 9) / 10,
    match: (i) => matched(i, index, fit, query) + Math.min(fit.fvu[i] ?? 9, 4) / 10,
    ...Object.fromEntries(gains),
  };
}

export function ordered(numbers, sort, index, fit, query = "") {
  const value = orders(index, fit, query)[sort] ?? ((i) => i);
  return [...numbers].sort((a, b) => value(a) - value(b) || a - b);
}

// Where a query leads: a latent's own page if it is a name, otherwise the list that is open.
export function destination(query, view, d, numberOf) {
  const name = query.trim().toUpperCase();
  const target = TARGET.exec(name);
  if (target && Number(target[1]) < d.target) return ["target", Number(target[1])];
  if (SOURCE.test(name) && numberOf(name) < d.source) return ["source", numberOf(name)];
  return [view === "sources" ? "sources" : "circuits", undefined, { q: query }];
}
