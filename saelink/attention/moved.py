"""What heads move of source latents to each query, and what a target's pre-activation is made of.

    m_j^h(q) = sum over keys k of A^h(q, k) a_j(k) / s(k)                      over the scale of a norm behind attention
    V_ij^h   = (d_j * gain) W_V W_O^h e_i                                      d_j without its mean for a LayerNorm

a_j(k) is a source latent at a key, s(k) the scale of the norm in front of attention, d_j its decoder row, e_i the
encoder column of a target. sum over h and j of m_j^h(q) V_ij^h is the latents' part of target i's pre-activation at q,
given the pattern A; `parts` gives the others, and together they are the pre-activation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from saelink.attention.heads import Heads, Seen
from saelink.latents.rows import Rows, offsets_of, sparse_linear
from saelink.saes.sae import SAE, Units

ROOM = 2**24
"""Entries of (query, head, latent) that are held at a time."""

PARTS = ("latents", "b_dec", "error", "dropped", "shift", "b_V", "b_O", "b_enc")
"""What a target's pre-activation is made of: the source latents; what the source SAE adds to every reconstruction; its
error; tokens at positions that don't count, whole; the shift of the norm in front, through the heads; the heads' own
biases; the target SAE's encoder bias, with its b_dec through the encoder where the SAE subtracts it."""


class Amounts(NamedTuple):
    """What each query is moved, by head and latent."""

    latents: torch.Tensor
    """[u] the latents that are active at any key, ascending."""
    amount: torch.Tensor
    """[q, n_heads, u] m."""


class Moves:
    """The heads of a layer between a source SAE and a target SAE."""

    def __init__(self, heads: Heads, source: SAE, target: SAE, drop: int):
        """Keys at the first `drop` positions of a sequence are no latents' keys: the SAE was not trained on them."""
        self.heads, self.source, self.target, self.drop = heads, source, target, drop
        self.values = heads.values(source.W_dec)
        """[d_source, n_kv, d_head] what each latent is as a value."""
        self.readers = heads.readers(target.W_enc)
        """[n_heads, d_head, d_target] how each target reads a head."""

    def weight(self, head: int) -> torch.Tensor:
        """[d_source, d_target] V of one head."""
        return self.values[:, int(self.heads.kv_of[head])] @ self.readers[head]

    def reach(self) -> torch.Tensor:
        """[n_heads, d_source] how much of a latent, moved by a head, all targets read: the norm of V over targets."""
        inner = self.readers @ self.readers.transpose(1, 2)
        values = self.values.transpose(0, 1)[self.heads.kv_of]
        return (values @ inner * values).sum(2).clamp(min=0).sqrt()

    def sizes(self, rows: Rows, x: torch.Tensor, units: Units | None) -> Rows:
        """[context, d_source] a / s of one sequence's latents, none at dropped positions; x [context, d_model]."""
        factor = 1 / self.heads.scale(x)[:, 0]
        if units is not None:
            factor = factor * units.scale[:, 0]
        factor = factor.masked_fill(torch.arange(len(x), device=x.device) < self.drop, 0.0)
        return Rows(rows.offsets, rows.indices, rows.values * factor[rows.row_of], rows.d)

    def after(self, seen: Seen, sequence: int) -> torch.Tensor:
        """[context] what the norm behind attention divides by at each query; 1 where there is none."""
        if self.heads.post is None:
            return torch.ones(seen.out.shape[1], device=seen.out.device)
        return self.heads.post.scale(seen.before[sequence])[:, 0]

    def pairs(self, seen: Seen, sequence: int, sizes: Rows, queries: torch.Tensor) -> Amounts:
        """What the queries [q], positions of a sequence, are moved of `sizes` [context, d_source]."""
        latents, place = torch.unique(sizes.indices, return_inverse=True)
        dense = sizes.values.new_zeros(len(sizes), len(latents))
        dense[sizes.row_of, place] = sizes.values
        pattern = seen.pattern[sequence][:, queries]
        amount = (pattern @ dense).transpose(0, 1) / self.after(seen, sequence)[queries, None, None]
        return Amounts(latents, amount)

    def pieces(self, seen: Seen, sequence: int, sizes: Rows) -> Iterator[Amounts]:
        """`pairs` of all queries of a sequence in turn, as many at a time as there is room for."""
        context = len(sizes)
        step = max(ROOM // (self.heads.n_heads * max(min(len(sizes.indices), sizes.d), 1)), 1)
        for queries in torch.arange(context, device=sizes.values.device).split(step):
            yield self.pairs(seen, sequence, sizes, queries)

    def of_pairs(self, pairs: Amounts) -> torch.Tensor:
        """[q, d_target] what the targets read of what the queries are moved."""
        values = self.values[pairs.latents][:, self.heads.kv_of]  # [u, n_heads, d_head]
        return torch.einsum("qhu,uhe->qhe", pairs.amount, values).flatten(1) @ self.readers.flatten(0, 1)

    def read(self, z: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """[n, n_heads, d_head] sums of values -> [n, d_target] as the targets read them; `after` [n], see there."""
        return z.flatten(1) @ self.readers.flatten(0, 1) / after[:, None]

    def parts(self, seen: Seen, sequence: int, rows: Rows, units: Units | None) -> dict[str, torch.Tensor]:
        """[context, d_target] each: what the targets' pre-activations at every query are made of, by PARTS.

        rows [context, d_source] are the source latents of this sequence's tokens, `units` what the SAE divides by.
        """
        heads, x = self.heads, seen.x[sequence]
        scale, after = heads.scale(x), self.after(seen, sequence)
        counts = (torch.arange(len(x), device=x.device) >= self.drop)[:, None]
        written = sparse_linear(rows, self.source.W_dec)
        written = written if units is None else written * units.scale
        rebuilt = self.source.output(sparse_linear(rows, self.source.W_dec), units)
        streams = {
            "latents": torch.where(counts, written, 0.0),
            "b_dec": torch.where(counts, rebuilt - written, 0.0),
            "error": torch.where(counts, x - rebuilt, 0.0),
            "dropped": torch.where(counts, 0.0, x),
        }
        pattern = seen.pattern[sequence]
        found: dict[str, torch.Tensor] = {}
        for name, stream in streams.items():
            values = heads.values(stream / scale)[:, heads.kv_of]
            found[name] = self.read(torch.einsum("hqk,khe->qhe", pattern, values), after)
        for name, constant in heads.constant_values().items():
            everywhere = constant[heads.kv_of].expand(len(x), -1, -1)  # a pattern's row sums to 1
            found[name] = self.read(everywhere, after)
        encoder = self.target.W_enc
        found["b_O"] = (heads.out_bias @ heads.post_encoder(encoder)) / after[:, None]
        constant = self.target.b_enc
        if heads.post is not None:
            constant = constant + heads.post.shift @ encoder
        found["b_enc"] = constant.expand_as(found["b_O"])
        return found


def rows_of(latents: Rows, context: int, sequence: int) -> Rows:
    """[context, d] the latents of one sequence's tokens."""
    return latents.select(torch.arange(sequence * context, (sequence + 1) * context, device=latents.offsets.device))


def moved_most(columns: Rows, reach: torch.Tensor, most: int) -> Rows:
    """[n, d_source] the latents that count as moved to each token: those that all targets together read most of.

    columns [n, n_heads * d_source] (or [n, d_source], summed over heads) are moved amounts, reach [n_heads, d_source]
    as of Moves; the values are sums of the two's products over heads, at most `most` of them a token.
    """
    d_source = reach.shape[1]
    weight = reach.flatten() if columns.d == reach.numel() else reach.mean(0)
    pair = columns.row_of * d_source + columns.indices % d_source
    unique, place = torch.unique(pair, return_inverse=True)
    values = torch.zeros(len(unique)).index_add_(0, place, columns.values * weight[columns.indices])
    row = unique // d_source
    order = torch.argsort(values, descending=True)
    order = order[torch.argsort(row[order], stable=True)]
    starts = offsets_of(torch.bincount(row, minlength=len(columns)))
    rank = torch.arange(len(order)) - starts[row[order]]
    kept = order[rank < most].sort().values
    return Rows.from_pairs(row[kept], unique[kept] % d_source, values[kept], n=len(columns), d=d_source)


def only_moved(columns: Rows, moved: Rows) -> Rows:
    """The columns of latents that count as moved to their token."""
    known = moved.row_of * moved.d + moved.indices
    wanted = columns.row_of * moved.d + columns.indices % moved.d
    at = torch.searchsorted(known, wanted).clamp(max=max(len(known) - 1, 0))
    kept = known[at] == wanted if len(known) else torch.zeros(len(wanted), dtype=torch.bool)
    return Rows.from_pairs(
        columns.row_of[kept], columns.indices[kept], columns.values[kept], n=len(columns), d=columns.d
    )
