"""Rotary positions as a model applies them, and what is left of them between two tokens: their offset."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Rotary(NamedTuple):
    """By position the cosines and sines that turn a head's queries and keys; a model without them has width 0.

    They are the model's own, so that every variant of its frequencies is right. Only the first `width` dimensions are
    turned (partial rotary); the rest doesn't know positions.
    """

    cos: torch.Tensor
    """[positions, width]"""
    sin: torch.Tensor
    neighbours: bool
    """Whether dimensions 0 and 1 are turned together, 2 and 3, ...; else 0 and width / 2, 1 and width / 2 + 1, ..."""

    @staticmethod
    def readings(cos: torch.Tensor, sin: torch.Tensor) -> list[Rotary]:
        """What a model may mean by what it gives its attention, [positions, width]: which dimensions go together.

        Some models give the columns in one order and lay them out in another behind it.
        """
        half = cos.shape[1] // 2
        paired = [
            part[:, :half] if bool((part[:, :half] == part[:, half:]).all()) else part[:, ::2] for part in (cos, sin)
        ]
        halves = [torch.cat([part, part], 1) for part in paired]
        neighbours = [part.repeat_interleave(2, 1) for part in paired]
        return [Rotary(halves[0], halves[1], False), Rotary(neighbours[0], neighbours[1], True)]

    @staticmethod
    def none(positions: int, device: str = "cpu") -> Rotary:
        """Of a model whose heads don't know positions by themselves."""
        nothing = torch.zeros(positions, 0, device=device)
        return Rotary(nothing, nothing, False)

    def to(self, device: str, dtype: torch.dtype) -> Rotary:
        return Rotary(self.cos.to(device, dtype), self.sin.to(device, dtype), self.neighbours)

    def turned(self, vectors: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """[n, ..., d_head] vectors as they stand at positions [n]."""
        width = self.cos.shape[1]
        if width == 0:
            return vectors
        shape = (len(position), *[1] * (vectors.dim() - 2), width)
        cos, sin = self.cos[position].view(shape), self.sin[position].view(shape)
        x = vectors[..., :width]
        if self.neighbours:
            across = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        else:
            across = torch.cat([-x[..., width // 2 :], x[..., : width // 2]], -1)
        return torch.cat([x * cos + across * sin, vectors[..., width:]], -1)

    def by_offset(self, query: torch.Tensor, key: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """[n] products of queries and keys [n, d_head], each key `offset` [n] tokens before its query.

        R(q) R(k)^T depends on q - k alone: the query stands at position q - k, the key at 0.
        """
        return (self.turned(query, offset) * self.turned(key, torch.zeros_like(offset))).sum(-1)
