"""One target's edges through attention looked at: which heads, how far back, from which tokens, with examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import NamedTuple

import torch

from saelink.attention.heads import load_attention
from saelink.attention.moved import rows_of
from saelink.attention.ov import OVEdges, OVStage, load_ov
from saelink.attention.stage import open_moves
from saelink.config.evidence import AblationValue
from saelink.evidence.names import Names
from saelink.interventions.head_effects import head_effects
from saelink.interventions.moved_effects import (
    MovedEffectsFacts,
    MovedEffectsStage,
    load_moved_effects,
    measured_queries,
    moved_link,
)
from saelink.job import Job
from saelink.latents.link import load_split
from saelink.latents.shards import encode_rows
from saelink.store.artifact import Artifact

SEQUENCES = 48
"""Test sequences that a target's edges are looked at in, evenly spread over those where it is active."""

STRONGEST = 5
"""Edges of a target that are looked at, the largest claims."""

EXAMPLES = 3

TOKENS = 4

HEAD = 0.1
"""Share of an edge from which a head is named."""

MOST = 0.8
"""Share of what an edge moves that its range of distances holds."""


class Example(NamedTuple):
    """One query to which the edge moves much."""

    tokens: list[str]
    """The sequence's tokens around both,"""
    key: int
    """which of them it moves from,"""
    query: int
    """and to."""
    head: int
    part: float
    """What it adds to the target's pre-activation there, in units of the target's mean active value."""


class MovedEdge(NamedTuple):
    """A source that heads move to a target."""

    name: str
    token: str | None
    claim: float
    """What the target loses without it where both are active, as a share of its mean active value, as computed."""
    effect: float | None
    """The same measured, pattern and norms free, over all queries it is moved to; None where it was not measured."""
    heads: dict[int, float]
    """Share of the claim by head, the largest first; all heads' shares sum to 1."""
    alone: dict[int, float] | None
    """By head, in the order of `heads`, the effect measured where that head alone reads the stream without the source;
    None where effects were not measured."""
    near: int
    """Most of it comes from so many tokens before the query,"""
    far: int
    """to so many."""
    distances: list[float]
    """Share by distance q - k, from 0 on."""
    tokens: list[tuple[str, float]]
    """Tokens that it is moved from, with their shares."""
    examples: list[Example]


MEASURED = 64
"""Queries of each source for which effects through single heads are measured."""


def moved_edges(job: Job, target: int, most: int = STRONGEST) -> list[MovedEdge]:
    """The strongest computed edges into a target, by claim; looked at in test documents. Empty for one never active.

    Raises SaelinkError for a link that is not from `ov` alone.
    """
    return edges_into(Scene(job), [target], {target}, most)[target]


def edges_into(
    scene: Scene, targets: Sequence[int], alone: Collection[int], most: int = STRONGEST
) -> dict[int, list[MovedEdge]]:
    """The same of several targets, in one walk through the text; effects through single heads of `alone` only."""
    job, edges = scene.job, scene.edges
    sources = {target: edges.source[target, :most] for target in targets}
    sources = {target: each[edges.by_head[target, : len(each)].sum(1) != 0] for target, each in sources.items()}
    looks = dict(zip(targets, scene.look(list(sources.items())), strict=True))
    measured = effects_found(job)
    effects = None if measured is None else load_moved_effects(measured)
    whole = None if effects is None else effects.dense()
    single: dict[tuple[int, int], torch.Tensor] = {}
    pairs = [(source, target) for target in targets if target in alone for source in sources[target].tolist()]
    if measured is not None and pairs:
        queries = measured_queries(job, per_source=MEASURED)
        found = head_effects(queries, *torch.tensor(pairs).T.contiguous())
        single = dict(zip(pairs, found, strict=True))
    return {
        target: [
            _edge(
                scene, looks[target], i, source, target,
                None if effects is None or whole is None or not effects.target_mean[target]
                else _Measured(whole[source, target].item(), effects.target_mean[target].item()),
                single.get((source, target)),
            )
            for i, source in enumerate(sources[target].tolist())
        ]
        for target in targets
    }  # fmt: skip


def effects_found(job: Job) -> Artifact[MovedEffectsFacts] | None:
    """What `saelink verify` measured of the link's edges, where it did."""
    possible = moved_link(job.cfg) and job.cfg.verify.ablation is AblationValue.zero
    return MovedEffectsStage(job).find() if possible else None


class _Measured(NamedTuple):
    """An effect through all heads, and the target's mean active value, in units of its scale."""

    effect: float
    mean: float


def _edge(
    scene: Scene, look: Look, i: int, source: int, target: int, measured: _Measured | None, alone: torch.Tensor | None
) -> MovedEdge:  # fmt: skip
    """One edge, the look's source i; `alone` [n_heads] in units of the target's scale."""
    edges, names = scene.edges, scene.names
    by_head = edges.by_head[target, (edges.source[target] == source).nonzero()[0, 0]]
    shares = by_head / by_head.sum()
    order = [int(head) for head in shares.abs().sort(descending=True).indices]
    unit = 1.0 if measured is None else measured.mean
    token = names.token_id(scene.job.link.sources[0], source)
    near, far = look.range_of(i)
    return MovedEdge(
        f"IF{source}",
        None if token is None else names.text(token),
        edges.claim[source, target].item() / unit,
        None if measured is None else measured.effect / unit,
        {head: shares[head].item() for head in order},
        None if alone is None or measured is None else {head: alone[head].item() / unit for head in order},
        near,
        far,
        look.distances(i),
        [(names.text(token), share) for token, share in look.tokens(i)],
        look.examples(i, scene),
    )


class Scene:
    """A layer's attention and the test text, opened once for all that is looked at in them."""

    def __init__(self, job: Job):
        self.job, self.names = job, Names(job)
        self.edges: OVEdges = load_ov(OVStage(job.cfg, job.store).pull())
        self.attention = load_attention(job.cfg, job.model, job.cfg.layer, job.device)
        self.moves = open_moves(job.cfg, job.store, self.attention, job.link.sources[0], job.link.target)
        self.ids = job.tokens.tensors("test.safetensors")["ids"].long()
        self.context = self.ids.shape[1]

    @cached_property
    def _active(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of the test split, of those that count, by target, and [d_target + 1] where each target's begin."""
        tokens = load_split(self.job.cfg, self.job.encoded, "test")
        by_target = tokens.target.transposed()
        return tokens.row[by_target.indices], by_target.offsets

    def _weight(self, target: int, sources: torch.Tensor) -> torch.Tensor:
        """[n_heads, n] V of each head from the sources on the target."""
        moves = self.moves
        values = moves.values[sources.to(moves.values.device)][:, moves.heads.kv_of]
        return torch.einsum("jhe,he->hj", values, moves.readers[:, :, target])

    def look(self, wanted: Sequence[tuple[int, torch.Tensor]]) -> list[Look]:
        """For each target, with sources [n], what moves them to it: SEQUENCES test sequences where it is active."""
        context, device, unit = self.context, self.job.device, self.job.encoded.scales[-1]
        rows, offsets = self._active
        looks: list[Look] = []
        weights: list[torch.Tensor] = []
        places: dict[int, list[tuple[int, int, int]]] = {}
        for place, (target, sources) in enumerate(wanted):
            first = int(offsets[target])
            numbers, counts = torch.unique(rows[first : int(offsets[target + 1])] // context, return_counts=True)
            starts = first + counts.cumsum(0) - counts
            chosen = torch.linspace(0, max(len(numbers) - 1, 0), min(len(numbers), SEQUENCES)).long()
            for at in chosen.unique().tolist() if len(sources) else []:
                begin = int(starts[at])
                places.setdefault(int(numbers[at]), []).append((place, begin, begin + int(counts[at])))
            weights.append(self._weight(target, sources))
            looks.append(Look(len(sources), self.moves.heads.n_heads, context))
        with torch.inference_mode(), self.job.observer.progress("looking at edges", len(places), "sequences") as bar:
            for number in sorted(places):
                seen = self.attention.look(self.ids[number][None].to(device))
                x = seen.x[0]
                latents = rows_of(encode_rows(self.moves.source, x), context, 0)
                sizes = self.moves.sizes(latents, x, self.moves.source.units(x)).dense()
                after = self.moves.after(seen, 0)
                for place, begin, end in places[number]:
                    query = (rows[begin:end] % context).to(device)
                    size = sizes[:, wanted[place][1].to(device)]
                    key = size.any(1).nonzero()[:, 0]
                    pattern = seen.pattern[0][:, query][:, :, key]
                    part = torch.einsum("hqk,kj,hj->jhqk", pattern, size[key], weights[place])
                    part = part / after[query][:, None] / unit
                    looks[place].add(number, self.ids[number], query.cpu(), key.cpu(), part.cpu())
                bar.advance(1)
        return looks


class Look:
    """What moves `n` sources to one target, added up over sequences."""

    def __init__(self, n: int, n_heads: int, context: int):
        self._distances = torch.zeros(n, context)
        self._tokens = [Counter[int]() for _ in range(n)]
        self._part = torch.zeros(n, n_heads, EXAMPLES)
        """The largest part of each of the sequences where it is largest, by source and head,"""
        self._place = torch.zeros(n, n_heads, EXAMPLES, 3, dtype=torch.int64)
        """and its sequence, query and key."""

    def add(self, number: int, ids: torch.Tensor, query: torch.Tensor, key: torch.Tensor, part: torch.Tensor) -> None:
        """One sequence: part [n, n_heads, q, k] of what sources at keys [k] make at queries [q]."""
        if part.numel() == 0:
            return
        size = part.abs()
        of_place = size.sum(1)
        distance = (query[:, None] - key).clamp(min=0)  # keys behind the query have no part
        self._distances.index_add_(1, distance.flatten(), of_place.flatten(1))
        of_key = of_place.sum(1)
        tokens = ids[key].tolist()
        for j, k in of_key.nonzero().tolist():
            self._tokens[j][tokens[k]] += of_key[j, k].item()
        best = size.flatten(2).argmax(2, keepdim=True)
        where = torch.stack([torch.full_like(best, number), query[best // len(key)], key[best % len(key)]], -1)
        parts = torch.cat([self._part, part.flatten(2).gather(2, best)], 2)
        kept = parts.abs().topk(EXAMPLES, 2).indices
        self._part = parts.gather(2, kept)
        self._place = torch.cat([self._place, where], 2).gather(2, kept[..., None].expand(-1, -1, -1, 3))

    def distances(self, source: int) -> list[float]:
        """Share of the size of what is moved, by distance."""
        total = self._distances[source]
        return (total / total.sum().clamp(min=1e-12)).tolist()

    def range_of(self, source: int) -> tuple[int, int]:
        """The shortest range of distances that holds MOST of it."""
        return shortest_range(self.distances(source))

    def tokens(self, source: int) -> list[tuple[int, float]]:
        """The tokens most of it is moved from."""
        counted = self._tokens[source]
        total = sum(counted.values()) or 1.0
        return [(token, size / total) for token, size in counted.most_common(TOKENS)]

    def examples(self, source: int, scene: Scene, by: int | None = None) -> list[Example]:
        """The largest parts, one a sequence; of one head, where `by` names it."""
        heads = list(range(self._part.shape[1])) if by is None else [by]
        part, place = self._part[source, heads].flatten(), self._place[source, heads].flatten(0, 1)
        found: list[Example] = []
        seen: set[int] = set()
        for i in part.abs().sort(descending=True).indices.tolist():
            sequence, query, key = place[i].tolist()
            if part[i] == 0 or sequence in seen or len(found) == EXAMPLES:
                continue
            seen.add(sequence)
            first, last = max(key - 4, 0), min(query + 4, scene.context)
            texts = [scene.names.text(token) for token in scene.ids[sequence, first:last].tolist()]
            found.append(Example(texts, key - first, query - first, heads[i // EXAMPLES], part[i].item()))
        return found


def shortest_range(distances: list[float]) -> tuple[int, int]:
    """The shortest range of distances that holds MOST of their shares."""
    total = torch.tensor([0.0, *distances]).cumsum(0)
    best = (0, len(distances) - 1)
    for near in range(len(distances)):
        far = int(torch.searchsorted(total, total[near] + MOST * total[-1] - 1e-6))
        if far <= len(distances) and far - 1 - near < best[1] - best[0]:
            best = (near, max(far - 1, near))
    return best
