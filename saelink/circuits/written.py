"""What is written into the residual stream on a prompt, piece by piece, and which latents read it.

Writers, numbered through in the order in which they are written: the tokens (what enters the first block), then layer
by layer what attention and MLP add: a latent's activation times its decoder direction, the SAE's error, at every
position. A layer or hook without an SAE in the graph is an error as a whole. What an SAE adds whatever is active
(b_dec) is kept apart as a constant.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from saelink.latents.rows import Rows
from saelink.latents.shards import encode_rows
from saelink.saes.sae import SAE

PARTS = ("attn", "mlp")


class Wrote(NamedTuple):
    """What one hook writes, and the latents in it."""

    latents: Rows
    """[context, d_sae]"""
    vectors: torch.Tensor
    """[nnz, d] what each active latent writes."""
    error: torch.Tensor
    """[context, d] what its SAE does not rebuild."""
    constant: torch.Tensor
    """[context, d] what the SAE adds whatever is active."""


def wrote(sae: SAE | None, acts: torch.Tensor, drop: int) -> Wrote:
    """What a hook's activations [context, d] are made of; nothing but error at the first `drop` positions.

    Without an SAE, everywhere.
    """
    n, d = acts.shape
    if sae is None:
        empty = Rows.from_pairs(torch.zeros(0).long(), torch.zeros(0).long(), torch.zeros(0), n=n, d=1)
        return Wrote(empty, acts.new_zeros(0, d), acts, torch.zeros_like(acts))
    rows = without_first(encode_rows(sae, acts), drop)
    units = sae.units(acts)
    vectors = sae.W_dec[rows.indices] * rows.values[:, None]
    if units is not None:
        vectors = vectors * units.scale[rows.row_of]
    constant = sae.output(torch.zeros_like(acts), units)
    constant[:drop] = 0
    whole = torch.zeros_like(acts).index_add_(0, rows.row_of, vectors)
    return Wrote(rows, vectors, acts - whole - constant, constant)


def without_first(rows: Rows, drop: int) -> Rows:
    """Nothing on the first rows: no SAE or connector was fitted there."""
    kept = rows.row_of >= drop
    return Rows.from_pairs(rows.row_of[kept], rows.indices[kept], rows.values[kept], n=len(rows), d=rows.d)


class Writers:
    """All pieces of the stream on one prompt."""

    def __init__(self, embedding: torch.Tensor, pieces: dict[tuple[int, str], Wrote]):
        """embedding [context, d] enters the first block; `pieces` by layer and part, in the order of writing."""
        n = len(embedding)
        every = torch.arange(n)
        vectors, position, number = [embedding], [every], [torch.full((n,), -1)]
        self.context, self.pieces = n, dict(pieces)
        self.begin: dict[tuple[int, str], int] = {}
        """By layer and part the first of its writers: its latents, then as many errors as positions. What reads the
        stream in front of them reads the writers below that number."""
        at = n
        for place, piece in pieces.items():
            self.begin[place] = at
            vectors += [piece.vectors, piece.error]
            position += [piece.latents.row_of, every]
            number += [piece.latents.indices, torch.full((n,), -1)]
            at += len(piece.vectors) + n
        self.vectors = torch.cat(vectors)
        """[w, d]"""
        for place, first in self.begin.items():  # views of the one copy that stays
            latents = self.vectors[first : first + len(pieces[place].vectors)]
            error = self.vectors[first + len(latents) : first + len(latents) + n]
            self.pieces[place] = pieces[place]._replace(vectors=latents, error=error)
        self.position = torch.cat(position)
        """[w]"""
        self.number = torch.cat(number)
        """[w] the latent's, or -1 of an error or token."""
        order = torch.argsort(self.position, stable=True)
        counts = torch.bincount(self.position, minlength=n)
        self._by_position = order.split(counts.tolist())

    def __len__(self) -> int:
        return len(self.vectors)

    def at(self, position: int, before: int, among: torch.Tensor | None = None) -> torch.Tensor:
        """The writers at a position, ascending, of the first `before`; with `among` [>= w] bool those it has alone."""
        found = self._by_position[position]
        found = found[: int(torch.searchsorted(found, before))]
        return found if among is None else found[among[found]]

    def constant(self, before: int) -> torch.Tensor:
        """[context, d] the constants of all hooks whose writers are among the first `before`."""
        total = torch.zeros_like(self.vectors[: self.context])
        for place, first in self.begin.items():
            if first < before:
                total += self.pieces[place].constant
        return total

    def latents_of(self, place: tuple[int, str]) -> range:
        """The writers that are a place's latents, in the order of its rows."""
        first = self.begin[place]
        return range(first, first + len(self.pieces[place].vectors))

    def error_of(self, place: tuple[int, str], position: int) -> int:
        """The writer that is a place's error at a position."""
        return self.begin[place] + len(self.pieces[place].vectors) + position

    @property
    def is_error(self) -> torch.Tensor:
        """[w] bool: neither a token nor a latent."""
        return (self.number < 0) & (torch.arange(len(self)) >= self.context)
