import assert from "node:assert/strict";
import { test } from "node:test";

import { folded, groupsOf } from "../../../saelink/report/page/supernodes.js";

const node = (node_id, influence) => ({ node_id, clerp: node_id, activation: 1, saelink: { kind: "mlp", influence, error: 0.5 } });
const graph = {
  qParams: { supernodes: [["a and 1 more", "a", "b"]] },
  nodes: [node("t", 0.1), node("a", 0.2), node("b", 0.3), node("out", 1)],
  links: [
    { source: "a", target: "out", weight: 2 },
    { source: "t", target: "a", weight: 1 },
    { source: "b", target: "out", weight: -3 },
    { source: "t", target: "b", weight: 4 },
  ],
};

test("a group is one node, its links the sums of its latents'", () => {
  const { nodes, links, into } = folded(graph, groupsOf(graph), new Set());
  assert.deepEqual([...nodes.keys()], ["t", "out", "group 0"]);
  assert.deepEqual(links, [
    { source: "group 0", target: "out", weight: -1 },
    { source: "t", target: "group 0", weight: 5 },
  ]);
  assert.deepEqual([into.get("out"), into.get("group 0")], [5, 5]);
  const group = nodes.get("group 0");
  assert.equal(group.saelink.influence, 0.5);
  assert.deepEqual(group.members, ["a", "b"]);
});

test("taken apart it is what the file has", () => {
  const { nodes, links } = folded(graph, groupsOf(graph), new Set(["group 0"]));
  assert.deepEqual([...nodes.values()], graph.nodes);
  assert.deepEqual(links, graph.links);
});
