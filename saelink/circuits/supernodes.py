"""Latents that do the same in a prompt's graph, grouped: supernodes.

Two latents are alike that are of the same hook, layer and token, and whose links in the graph point the same way: the
cosine between their incoming links, and that between their outgoing links, are both at least `alike`. A link counts as
a share of the absolute sum of all that leads into its target, kept or not. The most influential latent begins the
first group; each further one joins the first group all of whose latents it is like, or begins its own.
"""

from __future__ import annotations

import torch

from saelink.circuits.influence import Influence, Kept
from saelink.circuits.nodes import Node

KINDS = ("attn", "source", "mlp")


def supernodes_of(nodes: dict[int, Node], kept: Kept, influence: Influence, alike: float) -> list[list[int]]:
    """Groups of at least two of the kept nodes, the most influential of each first, and so the groups."""
    if alike >= 1:
        return []
    place = {index: column for column, index in enumerate(nodes)}
    columns = [
        torch.tensor([place[int(node)] for node in end], dtype=torch.int64) for end in (kept.source, kept.target)
    ]
    share = (kept.weight / influence.whole[kept.target]).float()
    into = torch.zeros(len(nodes), len(nodes)).index_put_((columns[1], columns[0]), share, accumulate=True)
    by_slot: dict[tuple[str, int, int], list[int]] = {}
    for index, node in nodes.items():
        if node.kind in KINDS:
            by_slot.setdefault((node.kind, node.layer, node.position), []).append(index)
    groups: list[list[int]] = []
    for members in by_slot.values():
        if len(members) > 1:
            members.sort(key=lambda index: -float(influence.value[index]))
            rows = torch.tensor([place[index] for index in members])
            groups += _grouped(members, _like(into, rows, alike) & _like(into.T, rows, alike))
    return sorted(groups, key=lambda group: -float(influence.value[group].sum()))


def _like(links: torch.Tensor, rows: torch.Tensor, alike: float) -> torch.Tensor:
    """[rows, rows] bool: whose links point the same way; those without links are like each other."""
    mine = links[rows]
    unit = torch.nn.functional.normalize(mine, dim=1)
    none = ~mine.any(1)
    return (unit @ unit.T >= alike) | (none[:, None] & none)


def _grouped(members: list[int], like: torch.Tensor) -> list[list[int]]:
    groups: list[list[int]] = []
    for place in range(len(members)):
        home = next((group for group in groups if bool(like[place, group].all())), None)
        if home is None:
            groups.append([place])
        else:
            home.append(place)
    return [[members[place] for place in group] for group in groups if len(group) > 1]
