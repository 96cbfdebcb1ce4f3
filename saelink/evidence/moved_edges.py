"""One target's edges through attention looked at: which heads, how far back, from which tokens, with examples."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch

from saelink.attention.heads import load_attention
from saelink.attention.moved import rows_of
from saelink.attention.ov import OVStage, load_ov
from saelink.attention.stage import open_moves
from saelink.evidence.names import Names
from saelink.interventions.head_effects import head_effects
from saelink.interventions.moved_effects import MovedEffectsStage, load_moved_effects, measured_queries
from saelink.job import Job
from saelink.latents.rows import Rows
from saelink.latents.shards import encode_rows

SEQUENCES = 48
"""Test sequences that a target's edges are looked at in, evenly spread over those where it is active."""

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


def moved_edges(job: Job, target: int, most: int = 5) -> list[MovedEdge]:
    """The strongest computed edges into a target, by claim; looked at in test documents. Empty for one never active.

    Raises SaelinkError for a link that is not from `ov` alone.
    """
    edges = load_ov(OVStage(job.cfg, job.store).pull())
    measured = MovedEffectsStage(job).find()
    free = None if measured is None else load_moved_effects(measured).explain(torch.tensor([target]))
    effect_of = None if free is None else free.dense()[:, 0]
    names = Names(job)
    unit = job.encoded.scales[-1]
    sources, by_head = edges.source[target, :most], edges.by_head[target, :most]
    sources = sources[by_head.sum(1) != 0]
    look = Look(job, target, sources, unit)
    alone = None
    if measured is not None and len(sources):
        queries = measured_queries(job, per_source=MEASURED)
        alone = head_effects(queries, sources.long(), torch.full((len(sources),), target))
    found: list[MovedEdge] = []
    mean_active = None if free is None else free.target_mean[0].item()
    for i, source in enumerate(sources.tolist()):
        shares = by_head[i] / by_head[i].sum()
        token = names.token_id(job.link.sources[0], source)
        near, far = look.range_of(i)
        effect = None if effect_of is None or not mean_active else effect_of[source].item() / mean_active
        order = [int(head) for head in shares.abs().sort(descending=True).indices]
        single = None if alone is None or not mean_active else {h: alone[i, h].item() / mean_active for h in order}
        found.append(
            MovedEdge(
                f"IF{source}",
                None if token is None else names.text(token),
                edges.claim[source, target].item() / (mean_active or 1.0),
                effect,
                {head: shares[head].item() for head in order},
                single,
                near,
                far,
                look.distances(i),
                [(names.text(token), share) for token, share in look.tokens(i)],
                look.examples(i, names),
            )
        )
    return found


class Look:
    """What moves the sources [n] to one target, in the test sequences where it is active."""

    def __init__(self, job: Job, target: int, sources: torch.Tensor, unit: float):
        attention = load_attention(job.cfg, job.model, job.cfg.layer, job.device)
        moves = open_moves(job.cfg, job.store, attention, job.link.sources[0], job.link.target)
        ids = job.tokens.tensors("test.safetensors")["ids"].long()
        self._context = context = ids.shape[1]
        active = _active_on(job, target)
        sequences = torch.unique(active // context)
        sequences = sequences[torch.linspace(0, max(len(sequences) - 1, 0), min(len(sequences), SEQUENCES)).long()]
        self._ids = ids
        weight = torch.stack([moves.weight(head)[sources, target] for head in range(moves.heads.n_heads)])
        rows: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        with torch.inference_mode():
            for sequence in sequences.tolist():
                seen = attention.look(ids[sequence][None].to(job.device))
                latents = encode_rows(moves.source, seen.x[0])
                sizes = moves.sizes(rows_of(latents, context, 0), seen.x[0], moves.source.units(seen.x[0]))
                query = (active[active // context == sequence] % context).to(job.device)
                size = _columns(sizes, sources.to(job.device))
                after = moves.after(seen, 0)[query]
                part = torch.einsum("hqk,kj,hj->jhqk", seen.pattern[0][:, query], size, weight) / after[:, None] / unit
                at = part.nonzero().cpu()
                values.append(part[tuple(at.T)].cpu())
                at[:, 2] = query.cpu()[at[:, 2]]
                rows.append(torch.cat([at, torch.full((len(at), 1), sequence)], 1))
        self._at = torch.cat(rows) if rows else torch.zeros(0, 5, dtype=torch.int64)
        """[m, 5]: source, head, query, key, sequence."""
        self._part = torch.cat(values) if values else torch.zeros(0)

    def _mine(self, source: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = self._at[:, 0] == source
        return self._at[chosen], self._part[chosen]

    def distances(self, source: int) -> list[float]:
        """Share of the size of what is moved, by distance."""
        at, part = self._mine(source)
        total = torch.zeros(self._context).index_add_(0, at[:, 2] - at[:, 3], part.abs())
        return (total / total.sum().clamp(min=1e-12)).tolist()

    def range_of(self, source: int) -> tuple[int, int]:
        """The shortest range of distances that holds MOST of it."""
        return shortest_range(self.distances(source))

    def tokens(self, source: int) -> list[tuple[int, float]]:
        """The tokens most of it is moved from."""
        at, part = self._mine(source)
        counted: Counter[int] = Counter()
        for token, size in zip(self._ids[at[:, 4], at[:, 3]].tolist(), part.abs().tolist(), strict=True):
            counted[token] += size
        total = sum(counted.values()) or 1.0
        return [(token, size / total) for token, size in counted.most_common(TOKENS)]

    def examples(self, source: int, names: Names, by: int | None = None) -> list[Example]:
        """The largest parts, one a sequence; of one head, where `by` names it."""
        at, part = self._mine(source)
        if by is not None:
            at, part = at[at[:, 1] == by], part[at[:, 1] == by]
        found: list[Example] = []
        seen: set[int] = set()
        for i in part.abs().sort(descending=True).indices.tolist():
            _, head, query, key, sequence = at[i].tolist()
            if sequence not in seen and len(found) < EXAMPLES:
                seen.add(sequence)
                first, last = max(key - 4, 0), min(query + 4, self._context)
                texts = [names.text(token) for token in self._ids[sequence, first:last].tolist()]
                found.append(Example(texts, key - first, query - first, head, part[i].item()))
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


def _active_on(job: Job, target: int) -> torch.Tensor:
    """Rows of the test split, of those that count, where a target is active."""
    from saelink.latents.link import load_split

    tokens = load_split(job.cfg, job.encoded, "test")
    return tokens.row[tokens.target.row_of[tokens.target.indices == target]]


def _columns(rows: Rows, ids: torch.Tensor) -> torch.Tensor:
    """[n, m] dense, of the latents ids [m] in any order."""
    out = rows.values.new_zeros(len(rows), len(ids))
    for place, latent in enumerate(ids.tolist()):
        mine = rows.indices == latent
        out[rows.row_of[mine], place] = rows.values[mine]
    return out
