"""Sparse latents: rows of (latent, value) pairs, on disk and in memory.

A token has a few dozen active latents of thousands, so nothing here is ever dense but what leaves a connector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple

import torch

from saelink.cache import Shard, shards_of
from saelink.kernels import cuda
from saelink.store import Artifact, SaelinkError


@dataclass(frozen=True)
class Rows:
    """n tokens of sparse latents (a CSR matrix [n, d])."""

    offsets: torch.Tensor
    """[n + 1] int64: row r's pairs are offsets[r] to offsets[r + 1]."""
    indices: torch.Tensor
    """[nnz] int64: latent ids, ascending within a row."""
    values: torch.Tensor
    """[nnz] float32."""
    d: int
    """Number of latents."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def row_of(self) -> torch.Tensor:
        """[nnz] int64: the row of every pair."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.offsets.device), self.offsets.diff())

    def select(self, rows: torch.Tensor) -> Rows:
        """The given rows [m] (ids), in that order."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        offsets = torch.zeros(len(rows) + 1, dtype=torch.int64, device=lengths.device)
        torch.cumsum(lengths, 0, out=offsets[1:])
        pairs = torch.arange(int(offsets[-1]), device=lengths.device)
        pairs += torch.repeat_interleave(starts - offsets[:-1], lengths)
        return Rows(offsets, self.indices[pairs], self.values[pairs], self.d)

    def dense(self) -> torch.Tensor:
        """[n, d] float32."""
        out = self.values.new_zeros(len(self), self.d)
        out[self.row_of, self.indices] = self.values
        return out

    def to(self, device: str) -> Rows:
        return Rows(self.offsets.to(device), self.indices.to(device), self.values.to(device), self.d)

    def scaled(self, factor: float) -> Rows:
        """All values times `factor`."""
        return Rows(self.offsets, self.indices, self.values * factor, self.d)

    def columns(self, ids: torch.Tensor) -> Rows:
        """Only the latents `ids` (ascending), renumbered 0, 1, ... in that order."""
        place = torch.full((self.d,), -1, dtype=torch.int64, device=self.indices.device)
        place[ids] = torch.arange(len(ids), device=place.device)
        new = place[self.indices]
        kept = new >= 0
        offsets = torch.zeros_like(self.offsets)
        torch.cumsum(torch.bincount(self.row_of[kept], minlength=len(self)), 0, out=offsets[1:])
        return Rows(offsets, new[kept], self.values[kept], len(ids))

    @staticmethod
    def stack(parts: list[Rows]) -> Rows:
        """Rows under one another."""
        shift = 0
        offsets = [parts[0].offsets[:1]]
        for part in parts:
            offsets.append(part.offsets[1:] + shift)
            shift += int(part.offsets[-1])
        indices = torch.cat([part.indices for part in parts])
        return Rows(torch.cat(offsets), indices, torch.cat([part.values for part in parts]), parts[0].d)

    @staticmethod
    def beside(parts: list[Rows]) -> Rows:
        """Latents side by side: the ids of each part follow those of the parts before it."""
        if len(parts) == 1:
            return parts[0]
        row = torch.cat([part.row_of for part in parts])
        shifts = torch.tensor([0, *(part.d for part in parts)]).cumsum(0).tolist()
        indices = torch.cat([part.indices + shift for part, shift in zip(parts, shifts, strict=False)])
        order = torch.sort(row, stable=True).indices  # within a row the parts stay in order
        offsets = torch.stack([part.offsets for part in parts]).sum(0)
        values = torch.cat([part.values for part in parts])
        return Rows(offsets, indices[order], values[order], sum(part.d for part in parts))


class _SparseLinear(torch.autograd.Function):
    """rows @ W for W [d, m]: only the rows of W that are active are read, forward and backward."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, rows: Rows) -> torch.Tensor:
        ctx.rows = rows
        return _gather_sum(rows.offsets, rows.indices, rows.values, weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        return sparse_transposed(ctx.rows, grad_outputs[0].contiguous()), None


def sparse_linear(rows: Rows, weight: torch.Tensor) -> torch.Tensor:
    """rows [n, d] times weight [d, m] -> [n, m], differentiable in `weight`."""
    return _SparseLinear.apply(weight, rows)  # type: ignore[no-any-return]


def sparse_transposed(rows: Rows, dense: torch.Tensor) -> torch.Tensor:
    """The transpose of rows [n, d] times dense [n, m] -> [d, m]: the same product with the transposed rows."""
    order = torch.sort(rows.indices, stable=True).indices
    offsets = torch.zeros(rows.d + 1, dtype=torch.int64, device=order.device)
    torch.cumsum(torch.bincount(rows.indices, minlength=rows.d), 0, out=offsets[1:])
    return _gather_sum(offsets, rows.row_of[order], rows.values[order], dense)


def _gather_sum(
    offsets: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, table: torch.Tensor
) -> torch.Tensor:
    """Row r is the sum of values[p] * table[indices[p]] over p = offsets[r] .. offsets[r + 1]."""
    if cuda.usable(table):
        return cuda.gather_sum(offsets, indices, values, table)
    return torch.nn.functional.embedding_bag(
        indices, table, offsets, mode="sum", per_sample_weights=values.to(table.dtype), include_last_offset=True
    )


def column_sums(rows: Rows) -> torch.Tensor:
    """[d] float32: the sum of each latent over the rows."""
    return torch.bincount(rows.indices, rows.values, minlength=rows.d).to(rows.values.dtype)


# --------------------------------------------------------------------------- on disk


def pack(rows: Rows) -> dict[str, torch.Tensor]:
    """The tensors of a shard: 16-bit latent ids (32-bit past 65,536 latents), bfloat16 values, row lengths."""
    lengths = rows.offsets.diff()
    assert rows.d <= 2**31
    ids = rows.indices.to(torch.uint16 if rows.d <= 2**16 else torch.int32)
    return {"indices": ids, "values": rows.values.to(torch.bfloat16), "lengths": lengths.to(torch.int32)}


def unpack(tensors: dict[str, torch.Tensor], d: int) -> Rows:
    lengths = tensors["lengths"].long()
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64)
    torch.cumsum(lengths, 0, out=offsets[1:])
    return Rows(offsets, tensors["indices"].long(), tensors["values"].float(), d)


def latent_shards(artifact: Artifact, splits: Iterable[str]) -> Iterator[tuple[Shard, Rows, torch.Tensor]]:
    """Each shard with its latents and the l2 norms [rows] of the acts they were encoded from."""
    facts = artifact.facts
    for shard in shards_of(facts["sequences"], facts["context_size"], splits):
        tensors = artifact.tensors(shard.name)
        yield shard, unpack(tensors, facts["d_sae"]), tensors["norm"]


# --------------------------------------------------------------------------- for fitting and evaluating


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


def scale_of(artifact: Artifact, drop_positions: int) -> float:
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
        first, found = 0, []
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
                order = torch.randperm(len(self._read), generator=order_generator).tolist()
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
    sources: list[Artifact],
    target: Artifact,
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
