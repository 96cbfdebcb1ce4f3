"""Sparse latents: rows of (latent, value) pairs, on disk and in memory.

A token has a few dozen active latents of thousands, so nothing here is ever dense but what leaves a connector.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, cast

import torch

from saelink.kernels import cuda


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

    @staticmethod
    def from_pairs(row: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, *, n: int, d: int) -> Rows:
        """n rows of d latents from pairs [nnz] in the order of their rows, within a row of their latents.

        `row` [nnz] int64 says where each pair stands; `indices` and `values` are kept as they are, not copied.
        """
        lengths = torch.bincount(row, minlength=n)
        assert len(lengths) == n, "a pair past the last row"
        return Rows(offsets_of(lengths), indices, values, d)

    @staticmethod
    def from_dense(dense: torch.Tensor) -> Rows:
        """What is not zero in a matrix [n, d]."""
        row, latent = dense.nonzero(as_tuple=True)
        return Rows.from_pairs(row, latent.contiguous(), dense[row, latent], n=dense.shape[0], d=dense.shape[1])

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
        offsets = offsets_of(lengths)
        pairs = torch.arange(int(offsets[-1]), device=lengths.device)
        pairs += torch.repeat_interleave(starts - offsets[:-1], lengths)
        return Rows(offsets, self.indices[pairs], self.values[pairs], self.d)

    def at(self, rows: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """[m] float32: latents[i] on row rows[i], 0 where it is not active."""
        unique = cast("Any", torch).unique
        known, place = cast("tuple[torch.Tensor, torch.Tensor]", unique(rows, return_inverse=True))
        part = self.select(known)
        pairs = part.row_of * self.d + part.indices
        wanted = place * self.d + latents
        at = torch.searchsorted(pairs, wanted).clamp(max=max(len(pairs) - 1, 0))
        if not len(pairs):
            return self.values.new_zeros(len(rows))
        return torch.where(pairs[at] == wanted, part.values[at], 0.0)

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
        return Rows.from_pairs(self.row_of[kept], new[kept], self.values[kept], n=len(self), d=len(ids))

    def transposed(self) -> Rows:
        """[d, n]: a row for each latent, with the tokens it is active on, ascending."""
        order = torch.sort(self.indices, stable=True).indices
        offsets = offsets_of(torch.bincount(self.indices, minlength=self.d))
        return Rows(offsets, self.row_of[order], self.values[order], len(self))

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
        shifts = itertools.accumulate((part.d for part in parts), initial=0)
        indices = torch.cat([part.indices + shift for part, shift in zip(parts, shifts, strict=False)])
        order = torch.sort(row, stable=True).indices  # within a row the parts stay in order
        offsets = torch.stack([part.offsets for part in parts]).sum(0)
        values = torch.cat([part.values for part in parts])
        return Rows(offsets, indices[order], values[order], sum(part.d for part in parts))


def offsets_of(lengths: torch.Tensor) -> torch.Tensor:
    """[n + 1] int64: where each of n runs of these lengths begins, one after another; last, where the last ends."""
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64, device=lengths.device)
    torch.cumsum(lengths, 0, out=offsets[1:])
    return offsets


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
    columns = rows.transposed()
    return _gather_sum(columns.offsets, columns.indices, columns.values, dense)


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


def pack(rows: Rows) -> dict[str, torch.Tensor]:
    """The tensors of a shard: 16-bit latent ids (32-bit past 65,536 latents), bfloat16 values, row lengths."""
    lengths = rows.offsets.diff()
    assert rows.d <= 2**31
    ids = rows.indices.to(torch.uint16 if rows.d <= 2**16 else torch.int32)
    return {"indices": ids, "values": rows.values.to(torch.bfloat16), "lengths": lengths.to(torch.int32)}


def unpack(tensors: dict[str, torch.Tensor], d: int) -> Rows:
    return Rows(offsets_of(tensors["lengths"].long()), tensors["indices"].long(), tensors["values"].float(), d)
