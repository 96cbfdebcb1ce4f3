// Which latents a query means, and in which order they are listed.

const TARGET = /^OF(\d+)$/;
const SOURCE = /^IF\d+(?:\.\d+)?$/;

const holds = (token, wanted) => (token ?? "").toLowerCase().includes(wanted);

// Targets whose name, token or formula's tokens match. An input of a formula is a source if it is below `direct`.
export function matchingTargets(query, index, fit, direct, numberOf) {
  const all = index.token.map((_, i) => i);
  if (!query) return all;
  const name = /^(?:OF)?(\d+)$/i.exec(query);
  if (name) return all.filter((i) => i === Number(name[1]));
  const wanted = query.toLowerCase();
  const feeds = /^I?F?(\d+(?:\.\d+)?)$/i.test(query)
    ? new Set([numberOf(query.toUpperCase())])
    : new Set(index.source_token.flatMap((token, i) => (holds(token, wanted) ? [i] : [])));
  const fed = (i) => (fit.formula[i] || []).some(([input]) => input < direct && feeds.has(input));
  return all.filter((i) => holds(index.token[i], wanted) || fed(i));
}

// Sources with this name, or whose token holds the query.
export function matchingSources(query, index) {
  const all = index.source_name.map((_, i) => i);
  const wanted = query.toLowerCase();
  return all.filter(
    (i) => !wanted || index.source_name[i].toLowerCase() === wanted || holds(index.source_token[i], wanted),
  );
}

// Targets with an edge table, of one logic if `logic` is given.
export function ofLogic(numbers, logic, index, fit) {
  const wanted = (i) => !logic || fit.word[i] === logic || (logic === "outlier" && index.outlier[i]);
  return numbers.filter((i) => fit.n_edges[i] !== null && wanted(i));
}

// What each order sorts by, smallest first.
function orders(index, fit) {
  const gains = index.gains.map((g, k) => ["gain" + k, (i) => -(g.gain[i] ?? -Infinity)]);
  return {
    fvu: (i) => fit.fvu[i] ?? Infinity,
    edges: (i) => fit.n_edges[i],
    active: (i) => -index.active[i],
    number: (i) => i,
    outlier: (i) => -index.outlier[i] + (fit.fvu[i] ?? 9) / 10,
    ...Object.fromEntries(gains),
  };
}

export function ordered(numbers, sort, index, fit) {
  const value = orders(index, fit)[sort] ?? ((i) => i);
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
