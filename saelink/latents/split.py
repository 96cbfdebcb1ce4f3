"""The tokens of a split that count, with their latents on both sides of a link, read piece by piece."""

# torch leaves arguments of some of its methods without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar, NamedTuple, cast

import torch

from saelink.activations.cache import Shard, shards_of
from saelink.errors import SaelinkError
from saelink.latents.encode import EncodeFacts
from saelink.latents.rows import Rows, unpack
from saelink.store.artifact import Artifact


def latent_shards(artifact: Artifact[EncodeFacts], splits: Iterable[str]) -> Iterator[tuple[Shard, Rows, torch.Tensor]]:
    """Each shard with its latents and the l2 norms [rows] of the acts they were encoded from."""
    facts = artifact.facts
    for shard in shards_of(facts["sequences"], facts["context_size"], splits):
        tensors = artifact.tensors(shard.name)
        yield shard, unpack(tensors, facts["d_sae"]), tensors["norm"]


@dataclass(frozen=True)
class Tokens:
    """The tokens of one split that count, with their latents on both sides of a link."""

    source: Rows
    """[n, d_source]: all source hooks side by side."""
    target: Rows
    """[n, d_target]"""
    row: torch.Tensor
    """[n] int64: which row of the split (sequence * context_size + position) each token is."""
    typical: torch.Tensor
    """[n] bool: neither its source nor its target acts are massive (see encode.TYPICAL_NORM_RATIO)."""

    def __len__(self) -> int:
        return len(self.row)

    def explain(self, target_ids: torch.Tensor) -> Tokens:
        """The same tokens with only these target latents, column i being latent target_ids[i]."""
        if len(target_ids) == self.target.d:
            return self
        return Tokens(self.source, self.target.columns(target_ids), self.row, self.typical)

    def select(self, rows: torch.Tensor) -> Tokens:
        """The given tokens, in that order."""
        return Tokens(self.source.select(rows), self.target.select(rows), self.row[rows], self.typical[rows])

    def subset(self, chosen: torch.Tensor) -> Tokens:
        """The tokens where `chosen` [n] is true."""
        return self.select(chosen.nonzero().squeeze(1))

    @staticmethod
    def stack(parts: list[Tokens]) -> Tokens:
        """Tokens under one another."""
        if len(parts) == 1:
            return parts[0]
        source, target = Rows.stack([part.source for part in parts]), Rows.stack([part.target for part in parts])
        return Tokens(source, target, torch.cat([part.row for part in parts]), torch.cat([p.typical for p in parts]))


def scale_of(artifact: Artifact[EncodeFacts], drop_positions: int) -> float:
    """Mean active value on the training split, without the dropped positions: latent_scale=mean_active."""
    total = sum(artifact.facts["active_sum"][drop_positions:])
    count = sum(artifact.facts["active_count"][drop_positions:])
    if not count:
        raise SaelinkError(
            f"sae: no latent of {artifact.facts['hook_name']} is ever active on the training split; "
            "the SAE does not belong to this model or hook"
        )
    return total / count


class Counts(NamedTuple):
    """What one pass over a split finds."""

    tokens: int
    fired: torch.Tensor
    """[d_target] int64: tokens on which each target latent is active."""
    energy: torch.Tensor
    """[d_target] float64: sum of the squares of each target latent."""


class Split:
    """The tokens of one split that count, in pieces that are read when they are needed.

    A split of at most IN_MEMORY tokens is read once. Of a larger one no more than POOL pieces are in memory at a
    time (and as many that are being read), however long the text is.
    """

    IN_MEMORY: ClassVar[int] = 2**19
    POOL: ClassVar[int] = 8

    def __init__(self, pieces: Sequence[Callable[[], Tokens]], ids: torch.Tensor | None = None):
        """`pieces` each read one piece, all target latents; `ids` are the target latents that are explained."""
        self._read, self._ids = pieces, ids
        self._kept: Tokens | None = None

    def __iter__(self) -> Iterator[Tokens]:
        if self._kept is not None:
            yield self._kept
            return
        for read in self._read:
            tokens = read()
            yield tokens if self._ids is None else tokens.explain(self._ids)

    @cached_property
    def counts(self) -> Counts:
        pieces: list[Tokens] = []
        tokens, fired, energy = 0, torch.zeros(0), torch.zeros(0)
        for piece in self:
            target = piece.target
            counted = torch.bincount(target.indices, minlength=target.d)
            squares = torch.bincount(target.indices, target.values.double().square(), minlength=target.d)
            fired, energy = (counted, squares) if tokens == 0 else (fired + counted, energy + squares)
            tokens += len(piece)
            pieces = [*pieces, piece] if tokens <= self.IN_MEMORY else []
        if tokens <= self.IN_MEMORY:
            self._kept = Tokens.stack(pieces)
        return Counts(tokens, fired, energy)

    def __len__(self) -> int:
        return self.counts.tokens

    def explain(self, ids: torch.Tensor) -> Split:
        """The same tokens with only these target latents, column i being latent ids[i]."""
        assert self._ids is None
        counts = self.counts
        split = Split(self._read, ids)
        split._kept = None if self._kept is None else self._kept.explain(ids)
        split.__dict__["counts"] = Counts(counts.tokens, counts.fired[ids], counts.energy[ids])
        return split

    def where(self, chosen: torch.Tensor) -> Split:
        """Only the tokens whose row of the split [rows] is chosen."""

        def kept(read: Callable[[], Tokens]) -> Tokens:
            tokens = read()
            return tokens.subset(chosen[tokens.row])

        return Split([partial(kept, read) for read in self._read], self._ids)

    def part(self, number: int, of: int) -> Iterator[Tokens]:
        """The pieces of one of `of` parts that are about as long; together they are the split, in its order."""
        if of == 1:
            yield from self
            return
        n = len(self._read)
        for read in self._read[number * n // of : (number + 1) * n // of]:
            tokens = read()
            yield tokens if self._ids is None else tokens.explain(self._ids)

    def whole(self) -> Tokens:
        """All tokens in memory."""
        return Tokens.stack(list(self))

    def spread(self, n: int) -> list[Tokens]:
        """At most n tokens, evenly spread over the split, in pieces."""
        total = len(self)
        chosen = torch.linspace(0, total - 1, min(n, total)).long()
        first = 0
        found: list[Tokens] = []
        for piece in self:
            here = chosen[(chosen >= first) & (chosen < first + len(piece))] - first
            if len(here):
                found.append(piece.select(here))
            first += len(piece)
        return found

    def shuffled(self, size: int, generator: torch.Generator) -> Iterator[tuple[Rows, Rows]]:
        """Source and target rows of `size` tokens at a time, without end, each pass over the split in a new order.

        What is left of a pass goes into the next. In memory a pass is one random order; otherwise the pieces are
        read in a random order, POOL at a time, and shuffled among these, so neighbours in the text are torn apart.
        """
        rest: tuple[Rows, Rows] | None = None
        with ThreadPoolExecutor(1) as reader:
            pools = self._pools(generator, reader)
            for pool in pools:
                order = torch.randperm(len(pool[0]), generator=generator)
                at = 0
                if rest is not None:
                    at = min(size - len(rest[0]), len(order))
                    part = [side.select(order[:at]) for side in pool]
                    both = (Rows.stack([rest[0], part[0]]), Rows.stack([rest[1], part[1]]))
                    rest = None
                    if len(both[0]) < size:
                        rest = both
                        continue
                    yield both
                while at + size <= len(order):
                    yield pool[0].select(order[at : at + size]), pool[1].select(order[at : at + size])
                    at += size
                if at < len(order):
                    rest = (pool[0].select(order[at:]), pool[1].select(order[at:]))

    def _pools(self, generator: torch.Generator, reader: ThreadPoolExecutor) -> Iterator[tuple[Rows, Rows]]:
        """Pieces put together, pass after pass; the next ones are read while one is in use."""
        assert len(self)
        if self._kept is not None:
            while True:
                yield self._kept.source, self._kept.target

        def read(chosen: list[int]) -> tuple[Rows, Rows]:
            tokens = [self._read[i]() for i in chosen]
            ids = self._ids
            targets = [piece.target if ids is None else piece.explain(ids).target for piece in tokens]
            return Rows.stack([piece.source for piece in tokens]), Rows.stack(targets)

        def groups() -> Iterator[list[int]]:
            while True:
                order = cast("list[int]", torch.randperm(len(self._read), generator=order_generator).tolist())
                yield from (order[first : first + self.POOL] for first in range(0, len(order), self.POOL))

        # A generator of its own: how far ahead is read must not change the order within a pool.
        order_generator = torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        waiting: Future[tuple[Rows, Rows]] | None = None
        for group in groups():
            ready, waiting = waiting, reader.submit(read, group)
            if ready is not None:
                pool = ready.result()
                if len(pool[0]):
                    yield pool


def open_split(
    sources: list[Artifact[EncodeFacts]],
    target: Artifact[EncodeFacts],
    split: str,
    *,
    scales: list[float],
    drop_positions: int,
    max_norm_ratio: float | None,
    typical_norm_ratio: float,
) -> Split:
    """One split: positions from `drop_positions` on, rows within `max_norm_ratio` medians at every hook.

    `scales` divides the latents of each source and, last, of the target.
    """
    artifacts = [*sources, target]
    context = target.facts["context_size"]

    def read(shard: Shard) -> Tokens:
        rows: list[Rows] = []
        norms: list[torch.Tensor] = []
        for artifact in artifacts:
            tensors = artifact.tensors(shard.name)
            rows.append(unpack(tensors, artifact.facts["d_sae"]))
            norms.append(tensors["norm"] / artifact.facts["median_norm"])
        ratio = torch.stack(norms).amax(0)
        kept = torch.arange(len(ratio)) % context >= drop_positions
        if max_norm_ratio is not None:
            kept &= ratio <= max_norm_ratio
        chosen = kept.nonzero().squeeze(1)
        sides = [side.select(chosen).scaled(1 / scale) for side, scale in zip(rows, scales, strict=True)]
        row = chosen + shard.first * context
        return Tokens(Rows.beside(sides[:-1]), sides[-1], row, ratio[chosen] <= typical_norm_ratio)

    return Split([partial(read, shard) for shard in shards_of(target.facts["sequences"], context, [split])])
