"""One head's card: what it moves, from how far, to which targets, and which other heads move the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from saelink.attention.moved import rows_of
from saelink.attention.ov import OVEdges, OVStage, load_ov
from saelink.errors import SaelinkError
from saelink.evidence.moved_edges import Example, Look, Scene, shortest_range
from saelink.evidence.verdicts import MIN_ABLATED
from saelink.job import Job
from saelink.latents.shards import encode_rows

ALIKE = 0.5
"""Heads move alike from this cosine on: of their parts of the strongest computed edges, each with its sign."""

SEQUENCES = 16
"""Test sequences, evenly spread, that distances are counted in."""

SOURCES = 8

EDGES = 5


class HeadEdge(NamedTuple):
    """An edge of which the head makes a large part."""

    source: str
    source_token: str | None
    target: str
    target_token: str | None
    part: float
    """What the head adds to the target where both are active, in units of the target's scale,"""
    share: float
    """and as a share of the whole edge."""
    examples: list[Example]


class HeadCard(NamedTuple):
    """A head of the layer."""

    head: int
    share: float
    """Of the sizes of all heads' parts of the strongest computed edges,"""
    group: list[int]
    """the heads that move alike, itself among them: each has a cosine of ALIKE or more with another of the group."""
    cosines: list[float]
    """With every head, itself among them."""
    distances: list[float]
    """Share of all that it moves, by distance q - k, each latent by how much of it all targets read."""
    near: int
    """Most of it comes from so many tokens before the query,"""
    far: int
    """to so many."""
    sources: list[tuple[str, str | None, float]]
    """The latents it moves most of, with their tokens, and their shares of its parts' sizes."""
    edges: list[HeadEdge]


def head_card(job: Job, head: int) -> HeadCard:
    """The card of one head. Raises SaelinkError for one that is not there, and for a link that is not from `ov`."""
    n_heads = load_ov(OVStage(job.cfg, job.store).pull()).by_head.shape[2]
    if head >= n_heads:
        raise SaelinkError(f"show head {head}: layer {job.cfg.layer} has heads 0 to {n_heads - 1}")
    return head_cards(Scene(job), [head])[0]


def head_cards(scene: Scene, heads: Sequence[int] | None = None) -> list[HeadCard]:
    """The cards of these heads, or of all; the text is walked through once for all of them."""
    parts = counted_parts(scene.edges)
    cosines, distances = cosines_of(parts), head_distances(scene)
    heads = range(parts.shape[2]) if heads is None else heads
    strongest = {head: _strongest(scene.edges, parts[..., head]) for head in heads}
    wanted = [(target, torch.tensor([source])) for edges in strongest.values() for source, target, _ in edges]
    looks = iter(scene.look(wanted))
    return [_card(scene, head, parts, cosines, distances[head], strongest[head], looks) for head in heads]


def _strongest(edges: OVEdges, mine: torch.Tensor) -> list[tuple[int, int, int]]:
    """Source, target and place in `mine` [d_target, n] of the largest parts of a head."""
    found: list[tuple[int, int, int]] = []
    for at in mine.abs().flatten().sort(descending=True).indices[:EDGES].tolist():
        target, place = divmod(at, mine.shape[1])
        if mine[target, place] != 0:
            found.append((int(edges.source[target, place]), target, place))
    return found


def _card(
    scene: Scene, head: int, parts: torch.Tensor, cosines: torch.Tensor, by_distance: torch.Tensor,
    strongest: list[tuple[int, int, int]], looks: Iterator[Look],
) -> HeadCard:  # fmt: skip
    """One head's card; `looks` gives those of its strongest edges next."""
    edges, names, link = scene.edges, scene.names, scene.job.link
    sizes, mine = parts.abs().sum((0, 1)), parts[..., head]
    by_source = torch.zeros(len(edges.queries)).index_add_(0, edges.source.flatten().long(), mine.abs().flatten())
    distances = by_distance.tolist()
    near, far = shortest_range(distances)

    def token(hook: str, latent: int) -> str | None:
        found = names.token_id(hook, latent)
        return None if found is None else names.text(found)

    top = by_source.sort(descending=True)
    return HeadCard(
        head,
        (sizes[head] / sizes.sum().clamp(min=1e-12)).item(),
        next(group for group in groups_of(cosines) if head in group),
        cosines[head].tolist(),
        distances,
        near,
        far,
        [
            (f"IF{latent}", token(link.sources[0], latent), (value / by_source.sum()).item())
            for latent, value in zip(top.indices[:SOURCES].tolist(), top.values[:SOURCES], strict=True)
            if value > 0
        ],
        [
            HeadEdge(
                f"IF{source}", token(link.sources[0], source), f"OF{target}", token(link.target, target),
                mine[target, place].item(), (mine[target, place] / parts[target, place].sum()).item(),
                next(looks).examples(0, scene, head),
            )
            for source, target, place in strongest
        ],
    )  # fmt: skip


def counted_parts(edges: OVEdges) -> torch.Tensor:
    """[d_target, n, n_heads] the heads' parts of the strongest edges; 0 from sources that are moved to few queries."""
    seen = edges.queries[edges.source.long()] >= MIN_ABLATED
    return torch.where(seen[..., None], edges.by_head, 0.0)


def cosines_of(parts: torch.Tensor) -> torch.Tensor:
    """[n_heads, n_heads] of the heads' parts [..., n_heads] of edges, each edge a dimension."""
    flat = torch.nn.functional.normalize(parts.flatten(0, -2), dim=0)
    return flat.T @ flat


def groups_of(cosines: torch.Tensor) -> list[list[int]]:
    """The heads that move alike: all that a chain of cosines of at least ALIKE joins."""
    left, found = set(range(len(cosines))), list[list[int]]()
    while left:
        group, ahead = set[int](), {min(left)}
        while ahead:
            group |= ahead
            near = {other for head in ahead for other in left if cosines[head, other] >= ALIKE}
            ahead = near - group
        found.append(sorted(group))
        left -= group
    return found


def head_distances(scene: Scene) -> torch.Tensor:
    """[n_heads, context] share of all that each head moves, by distance, each latent by how far all targets read it."""
    job, attention, moves, ids = scene.job, scene.attention, scene.moves, scene.ids
    context, drop = ids.shape[1], job.cfg.data.drop_positions
    chosen = ids[torch.linspace(0, len(ids) - 1, min(SEQUENCES, len(ids))).long()]
    reach = moves.reach()
    total = torch.zeros(moves.heads.n_heads, context)
    distance = torch.arange(context)[:, None] - torch.arange(context)
    counts = (distance >= 0) & (torch.arange(context) >= drop)[:, None]
    with torch.inference_mode():
        for sequence in chosen:
            seen = attention.look(sequence[None].to(job.device))
            latents = encode_rows(moves.source, seen.x[0])
            sizes = moves.sizes(rows_of(latents, context, 0), seen.x[0], moves.source.units(seen.x[0]))
            held = torch.zeros(len(reach), context, device=reach.device)
            held.index_add_(1, sizes.row_of, sizes.values * reach[:, sizes.indices])
            moved = (seen.pattern[0] * held[:, None]).cpu()
            total.index_add_(1, distance[counts], moved[:, counts])
    return total / total.sum(1, keepdim=True).clamp(min=1e-12)
