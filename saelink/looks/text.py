"""The tokens that a layer's heads are looked at on: the stream in front of attention, cut into latents and the rest."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from saelink.latents.encode import TYPICAL_NORM_RATIO
from saelink.looks.scores import Form, Scales
from saelink.saes.sae import SAE

MODES = ("all keys", "without sinks")
"""What the pattern is taken over: all keys a query sees, or those that are no sinks, its attention to these made 1."""

GROUPS = ("latents", "error", "constant")
"""What the stream is made of: the SAE's latents, its error, and what is always there (b_dec, a shift, biases)."""

STEP = 4096
"""Tokens that are encoded at once."""


class Sequence(NamedTuple):
    """The latents active in one sequence, `entries`, in the order of positions."""

    number: int
    ids: torch.Tensor
    """[n] tokens."""
    position: torch.Tensor
    """[e]"""
    latent: torch.Tensor
    """[e]"""
    value: torch.Tensor
    """[e] float32: what stands in front of the decoder's row in the stream."""
    rows: torch.Tensor
    """[n + 1] where each token's entries begin."""
    starts: torch.Tensor
    """[d_sae + 1] where each latent's begin in `entries`,"""
    entries: torch.Tensor
    """[e] which has their numbers, by latent, then by position."""


class Vectors(NamedTuple):
    """One head's queries and keys in one sequence, turned as they stand, the scaling in the queries."""

    queries: torch.Tensor
    """[e, d_head] of the entries,"""
    keys: torch.Tensor
    whole_queries: torch.Tensor
    """[n, d_head] and of the whole stream."""
    whole_keys: torch.Tensor


class Arrays(NamedTuple):
    """A sequence's latents and one head's vectors of them for compiled loops, see Sequence and Vectors."""

    starts: np.ndarray
    entries: np.ndarray
    position: np.ndarray
    rows: np.ndarray
    queries: np.ndarray
    keys: np.ndarray


class Text:
    """Some sequences of one split with what a layer's attention reads there."""

    def __init__(
        self, form: Form, sae: SAE, stream: torch.Tensor, ids: torch.Tensor, seen: torch.Tensor, drop: int,
        first: int = 0,
    ):  # fmt: skip
        """stream [sequences, n, d_model] float32, ids alike, seen [n, n]; the sequences are numbered from `first`.

        Queries count from position `drop` on and where the stream is no sink's.
        """
        self.form, self.sae, self.stream, self.ids, self.seen = form, sae, stream, ids, seen
        self.drop, self.first = drop, first
        self.device = str(stream.device)
        norms = stream.norm(dim=2)
        massive = norms > TYPICAL_NORM_RATIO * norms.median()
        position = torch.arange(stream.shape[1], device=stream.device)
        self.sinks = massive | (position < max(drop, 1))[None]
        """[sequences, n] keys that heads look at when they have nothing to look at: the first, and massive ones."""
        self.counted = ~massive & (position >= drop)[None]
        """[sequences, n] queries that count."""

    def __len__(self) -> int:
        return len(self.stream)

    @property
    def n(self) -> int:
        """Tokens of a sequence."""
        return self.stream.shape[1]

    @cached_property
    def sequences(self) -> list[Sequence]:
        """Their latents, from the model's own activations."""
        n, d_sae = self.n, self.sae.d_sae
        flat = self.stream.flatten(0, 1)
        rows, latents, values = [], [], []
        for start in range(0, len(flat), STEP):
            acts = flat[start : start + STEP]
            row, latent, value = self.sae.encode_sparse(acts)
            units = self.sae.units(acts)
            rows.append(row + start)
            latents.append(latent)
            values.append(value.float() if units is None else value.float() * units.scale[row, 0])
        row, latent, value = torch.cat(rows), torch.cat(latents), torch.cat(values)
        found = []
        for number, ids in enumerate(self.ids):
            mine = (row // n == number).nonzero().flatten()
            position, which = row[mine] % n, latent[mine]
            starts = torch.zeros(d_sae + 1, dtype=torch.int64)
            starts[1:] = torch.bincount(which, minlength=d_sae).cumsum(0).cpu()
            begins = torch.zeros(n + 1, dtype=torch.int64)
            begins[1:] = torch.bincount(position, minlength=n).cumsum(0).cpu()
            order = torch.sort(which, stable=True).indices
            found.append(Sequence(self.first + number, ids, position, which, value[mine], begins, starts, order))
        return found

    @cached_property
    def scales(self) -> list[Scales]:
        """By sequence what the norms divide by."""
        return [self.form.scales(stream) for stream in self.stream]

    def whole(self, number: int, head: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[n, d_head] a head's queries (scaled) and keys of a sequence, turned."""
        form, scales = self.form, self.scales[number]
        normed = form.moved(self.stream[number]) / scales.stream
        position, found = torch.arange(self.n, device=self.device), []
        sides = ((form.query, scales.query, head), (form.key, scales.key, form.key_head(head)))
        for side, own, which in sides:
            raw = normed @ side.weight[which] + side.bias[which]
            found.append(form.rotary.turned(side.gained_of(which, raw) / _of_head(own, which)[:, None], position))
        return found[0] * form.scaling, found[1]

    def vectors(
        self, number: int, head: int, read: tuple[torch.Tensor, torch.Tensor], at: torch.Tensor | None = None
    ) -> Vectors:
        """A head's vectors in a sequence; read: its `directions`; at [n]: where keys stand instead of where they do."""
        sequence, scales, form = self.sequences[number], self.scales[number], self.form
        position = sequence.position
        size = (sequence.value / scales.stream[position, 0])[:, None]
        own = [_of_head(scales.query, head), _of_head(scales.key, form.key_head(head))]
        query = read[0][sequence.latent] * size / own[0][position, None]
        key = read[1][sequence.latent] * size / own[1][position, None]
        stands = position if at is None else at[position]
        turned = form.rotary.turned
        whole = self.whole(number, head)
        return Vectors(turned(query, position) * form.scaling, turned(key, stands), *whole)

    def arrays(self, number: int, vectors: Vectors) -> Arrays:
        """A sequence for compiled loops."""
        sequence = self.sequences[number]
        parts = (sequence.starts, sequence.entries, sequence.position, sequence.rows, vectors.queries, vectors.keys)
        return Arrays(*(part.cpu().numpy() for part in parts))

    def directions(self, head: int, order: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """[d_sae, d_head] twice: what a head reads of latents as query and as key; `order`: of permuted decoders."""
        decoder = self.sae.W_dec if order is None else self.sae.W_dec[order]
        moved = self.form.moved(decoder)
        read = []
        for side, number in ((self.form.query, head), (self.form.key, self.form.key_head(head))):
            read.append(side.gained_of(number, moved @ side.weight[number]))
        return read[0], read[1]

    def patterns(self, number: int, whole: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """[modes, n, n] where a head looks in a sequence, rows of queries that don't count 0."""
        scores = (whole[0] @ whole[1].T).masked_fill(~self.seen, -torch.inf)
        every = scores.softmax(-1)
        kept = every.masked_fill(self.sinks[number][None], 0.0)
        share = kept.sum(-1, keepdim=True)
        kept = torch.where(share > 1e-6, kept / share.clamp(min=1e-6), 0.0)
        counted = self.counted[number][:, None]
        return torch.stack([every, kept]).masked_fill(~counted, 0.0)

    def groups(self, number: int, head: int, vectors: Vectors) -> tuple[torch.Tensor, torch.Tensor]:
        """[GROUPS, n, d_head] twice: queries and keys of what the stream is made of; they sum to the whole stream's."""
        sequence, scales, form = self.sequences[number], self.scales[number], self.form
        units = self.sae.units(self.stream[number])
        nothing = self.stream.new_zeros(self.n, self.stream.shape[2])
        base = self.sae.output(nothing, units)
        position = torch.arange(self.n, device=self.device)
        found = []
        sides = ((form.query, scales.query, head, form.scaling), (form.key, scales.key, form.key_head(head), 1.0))
        for (side, own, which, scaling), parts, whole in zip(
            sides, vectors[:2], vectors[2:], strict=True
        ):  # fmt: skip
            latents = torch.zeros_like(whole).index_add_(0, sequence.position, parts)
            constant = form.part(side, base, scales.stream, own) + form.constant(side, own)
            constant = form.rotary.turned(constant[:, which], position) * scaling
            found.append(torch.stack([latents, whole - latents - constant, constant]))
        return found[0], found[1]


def _of_head(scale: torch.Tensor, head: int) -> torch.Tensor:
    """[n] of [n, heads or 1, 1]."""
    return scale[:, head if scale.shape[1] > 1 else 0, 0]
