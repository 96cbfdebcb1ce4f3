"""Sparse latents: rows of (latent, value) pairs, on disk and in memory.

A token has a few dozen active latents of thousands, so nothing here is ever dense but what leaves a connector.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from saelink.cache import Shard, shards_of
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
        return torch.nn.functional.embedding_bag(
            rows.indices,
            weight,
            rows.offsets,
            mode="sum",
            per_sample_weights=rows.values.to(weight.dtype),
            include_last_offset=True,
        )

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        # The gradient is rows' @ grad: the same product with the transposed rows, again without a dense copy.
        rows: Rows = ctx.rows
        order = torch.sort(rows.indices, stable=True).indices
        offsets = torch.zeros(rows.d + 1, dtype=torch.int64, device=order.device)
        torch.cumsum(torch.bincount(rows.indices, minlength=rows.d), 0, out=offsets[1:])
        grad = grad_outputs[0].contiguous()
        return torch.nn.functional.embedding_bag(
            rows.row_of[order],
            grad,
            offsets,
            mode="sum",
            per_sample_weights=rows.values[order].to(grad.dtype),
            include_last_offset=True,
        ), None


def sparse_linear(rows: Rows, weight: torch.Tensor) -> torch.Tensor:
    """rows [n, d] times weight [d, m] -> [n, m], differentiable in `weight`."""
    return _SparseLinear.apply(weight, rows)  # type: ignore[no-any-return]


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

    def subset(self, chosen: torch.Tensor) -> Tokens:
        """The tokens where `chosen` [n] is true."""
        rows = chosen.nonzero().squeeze(1)
        return Tokens(self.source.select(rows), self.target.select(rows), self.row[rows], self.typical[rows])


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


def load_tokens(
    sources: list[Artifact],
    target: Artifact,
    split: str,
    *,
    scales: list[float],
    drop_positions: int,
    max_norm_ratio: float | None,
    typical_norm_ratio: float,
) -> Tokens:
    """Read one split: positions from `drop_positions` on, rows within `max_norm_ratio` medians at every hook.

    `scales` divides the latents of each source and, last, of the target.
    """
    artifacts = [*sources, target]
    context = target.facts["context_size"]
    pieces: list[list[Rows]] = [[] for _ in artifacts]
    row_ids, typicals = [], []
    for shards in zip(*(latent_shards(artifact, [split]) for artifact in artifacts), strict=True):
        norms = torch.stack(
            [norm / artifact.facts["median_norm"] for (_, _, norm), artifact in zip(shards, artifacts, strict=True)]
        )
        ratio = norms.amax(0)
        kept = torch.arange(len(ratio)) % context >= drop_positions
        if max_norm_ratio is not None:
            kept &= ratio <= max_norm_ratio
        chosen = kept.nonzero().squeeze(1)
        for (_, rows, _), scale, piece in zip(shards, scales, pieces, strict=True):
            piece.append(rows.select(chosen).scaled(1 / scale))
        row_ids.append(chosen + shards[0][0].first * context)
        typicals.append(ratio[chosen] <= typical_norm_ratio)
    sides = [Rows.stack(piece) for piece in pieces]
    return Tokens(Rows.beside(sides[:-1]), sides[-1], torch.cat(row_ids), torch.cat(typicals))
