"""Latents of the whole text as a stream that is read shard by shard, and the pieces a pass over it goes by."""

# torch leaves arguments of some of its methods without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from saelink.activations.cache import Shard
from saelink.activations.tokens import SPLITS, TokensFacts
from saelink.latents.encode import EncodeFacts
from saelink.latents.rows import Rows
from saelink.latents.split import latent_shards, scale_of
from saelink.store.artifact import Artifact

LATENTS = 64
"""Latents that one thread goes through in one go."""

WINDOW = 10
"""Tokens of an example on either side of the one it is about."""

WIDTH = 2 * WINDOW + 1


class Stream(NamedTuple):
    """Latents of all splits, laid end to end, to be looked at."""

    d: int
    unit: float
    """What activations are measured in: the mean active value on training tokens."""
    context: int
    sequences: dict[str, int]
    shards: Callable[[], Iterator[tuple[Shard, Rows]]]
    splits: tuple[str, ...] = SPLITS
    """Those that `shards` goes through."""

    @property
    def begins(self) -> dict[str, int]:
        """The place of each split's first token."""
        sizes = [self.sequences[split] * self.context for split in SPLITS]
        return dict(zip(SPLITS, np.cumsum([0, *sizes]).tolist(), strict=False))

    @property
    def n_tokens(self) -> int:
        """Positions that `shards` goes through."""
        return sum(self.sequences[split] for split in self.splits) * self.context

    def counted(self, drop: int) -> int:
        """Those of them that count, without the first `drop` of each sequence."""
        return self.n_tokens // self.context * (self.context - drop)

    def windows(self, places: np.ndarray[Any, Any], latents: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """[m, WIDTH] float32: activations of latents[r] on the tokens around places[r] (-1 for none), in one pass."""
        around = places[:, None] + np.arange(-WINDOW, WINDOW + 1)
        inside = around // self.context == places[:, None] // self.context
        wanted, latent = around[inside], np.broadcast_to(latents[:, None], around.shape)[inside]
        order = np.argsort(wanted, kind="stable")
        ranked = wanted[order]
        values = np.zeros(len(wanted), np.float32)
        for shard, rows in self.shards():
            start = self.begins[shard.split] + shard.first * self.context
            here = order[slice(*np.searchsorted(ranked, [start, start + len(rows)]))]
            values[here] = rows.at(torch.from_numpy(wanted[here] - start), torch.from_numpy(latent[here])).numpy()
        out = np.zeros(around.shape, np.float32)
        out[inside] = values
        return out


def stream_of(latents: Artifact[EncodeFacts], drop: int) -> Stream:
    """The latents of an encode artifact."""
    facts = latents.facts

    def shards() -> Iterator[tuple[Shard, Rows]]:
        for shard, rows, _ in latent_shards(latents, SPLITS):
            yield shard, rows

    return Stream(facts["d_sae"], scale_of(latents, drop), facts["context_size"], facts["sequences"], shards)


def text_of(tokens: Artifact[TokensFacts]) -> np.ndarray[Any, Any]:
    """All splits' tokens laid end to end, int32: what a place is an index of."""
    splits = [tokens.tensors(f"{split}.safetensors")["ids"].flatten() for split in SPLITS]
    return torch.cat(splits).numpy()


class Piece(NamedTuple):
    """One shard's activations that count, sorted by latent."""

    start: int
    begins: np.ndarray[Any, Any]
    row_of: np.ndarray[Any, Any]
    values: np.ndarray[Any, Any]
    tokens: np.ndarray[Any, Any]
    sums: np.ndarray[Any, Any]
    """[d] of each latent's activations."""


def pieces_of(stream: Stream, text: np.ndarray[Any, Any], drop: int) -> Iterator[Piece]:
    """The stream's pieces, in the order of the text; `drop` first positions of each sequence don't count."""
    from saelink.kernels.stream import by_latent

    for shard, rows in stream.shards():
        start = stream.begins[shard.split] + shard.first * stream.context
        begins, sums = np.zeros(rows.d + 1, np.int64), np.zeros(rows.d)
        row_of, values = np.empty(len(rows.values), np.int32), np.empty(len(rows.values), np.float32)
        arguments = (rows.offsets.numpy(), rows.indices.numpy(), rows.values.numpy(), stream.context, drop)
        n = by_latent(*arguments, begins, row_of, values, sums)
        tokens = text[start : start + len(rows)].astype(np.int64)
        yield Piece(start, begins, row_of[:n], values[:n], tokens, sums)
