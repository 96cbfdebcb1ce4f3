"""Supernodes: what is grouped are latents of one place whose links point the same way."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import torch

from saelink.circuits.influence import influence_of, kept_of
from saelink.circuits.nodes import Node, node_of
from saelink.circuits.supernodes import supernodes_of
from saelink.store.store import Store

from helpers.circuits import open_family, some_prompt
from helpers.world import World


def test_groups_are_alike_and_none_is_left_over(world: World, store: Store, tmp_path: Path) -> None:
    """Against cosines of the whole matrix of kept links."""
    prompt = some_prompt(open_family("llama", world, store, tmp_path))
    influence = influence_of(prompt)
    kept = kept_of(prompt, influence, 0.9, 0.98, 500)
    nodes = {int(index): node_of(prompt, int(index)) for index in kept.nodes}
    matrix = torch.zeros(prompt.size, prompt.size, dtype=torch.float64)
    matrix[kept.target, kept.source] = kept.weight.double() / influence.whole[kept.target]
    into, out = (torch.nn.functional.normalize(part, dim=1) for part in (matrix, matrix.T))

    def alike(a: int, b: int) -> float:
        both = [(into[a] @ into[b]).item(), (out[a] @ out[b]).item()]
        return min(both)

    def place(index: int) -> tuple[str, int, int]:
        node: Node = nodes[index]
        return node.kind, node.layer, node.position

    groups = supernodes_of(nodes, kept, influence, 0.5)
    assert len(groups) > 3
    for group in groups:
        assert len({place(index) for index in group}) == 1 < len(group)
        assert all(alike(a, b) >= 0.5 - 1e-6 for a, b in combinations(group, 2))
        values = influence.value[group]
        assert bool((values.diff() <= 0).all())
    members = [index for group in groups for index in group]
    assert len(set(members)) == len(members)
    alone = [index for index, node in nodes.items() if node.kind in ("attn", "source", "mlp") and index not in members]
    assert all(alike(a, b) < 0.5 + 1e-6 for a, b in combinations(alone, 2) if place(a) == place(b))
    strict = supernodes_of(nodes, kept, influence, 0.9)
    assert sum(map(len, strict)) < len(members)
    assert supernodes_of(nodes, kept, influence, 1.0) == []
