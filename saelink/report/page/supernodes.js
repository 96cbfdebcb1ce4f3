// Latents with the same links as one box each: the groups that a graph's file names, but for those that are taken apart.

export const groupsOf = (graph) => graph.qParams.supernodes.map(([title, ...members], i) => ({ id: `group ${i}`, title, members }));

// Nodes by name, links between them (a box's are the sums of its latents'), and what all links into a node come to.
export function folded(graph, groups, apart) {
  const single = new Map(graph.nodes.map((node) => [node.node_id, node]));
  const kept = groups.filter((group) => !apart.has(group.id));
  const home = new Map(kept.flatMap((group) => group.members.map((member) => [member, group.id])));
  const nodes = new Map([...single].filter(([id]) => !home.has(id)));
  for (const { id, title, members } of kept) {
    const first = single.get(members[0]);
    const influence = members.reduce((sum, member) => sum + single.get(member).saelink.influence, 0);
    nodes.set(id, { ...first, node_id: id, clerp: title, activation: null, members, saelink: { ...first.saelink, influence, error: null } });
  }
  const links = new Map();
  const into = new Map();
  for (const { source, target, weight } of graph.links) {
    const [from, to] = [home.get(source) ?? source, home.get(target) ?? target];
    const link = links.get(`${from} ${to}`) ?? { source: from, target: to, weight: 0 };
    link.weight += weight;
    links.set(`${from} ${to}`, link);
    into.set(to, (into.get(to) ?? 0) + Math.abs(weight));
  }
  return { single, nodes, links: [...links.values()], into };
}
