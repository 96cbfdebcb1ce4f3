"""Places where outlier latents fire: the first tokens of a sequence, its first delimiter, massive activations."""

# torch leaves arguments of some of its methods without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch

from saelink.latents.encode import TYPICAL_NORM_RATIO, EncodeFacts
from saelink.latents.rows import Rows
from saelink.latents.split import latent_shards
from saelink.store.artifact import Artifact

FIRST_POSITIONS = 3


def outlier_places(ids: torch.Tensor, massive: torch.Tensor, vocabulary: Sequence[str]) -> dict[str, torch.Tensor]:
    """Masks [sequences * context_size] of such places; `ids` [sequences, context_size], `massive` as the masks."""
    position = torch.arange(ids.numel()) % ids.shape[1]
    return {
        "first_positions": position < FIRST_POSITIONS,
        "first_delimiter": first_delimiters(ids, vocabulary).flatten(),
        "massive": massive,
    }


def first_delimiters(ids: torch.Tensor, vocabulary: Sequence[str]) -> torch.Tensor:
    """[sequences, context_size] bool: the first token of each sequence that holds a full stop or a newline."""
    known = cast("torch.Tensor", ids.unique())
    holds = torch.tensor([any(mark in vocabulary[int(token)] for mark in ".\n") for token in known])
    delimiter = holds[torch.searchsorted(known, ids)]
    return delimiter & (delimiter.cumsum(1) == 1)


class Outliers(NamedTuple):
    """Which latents of a hook are outliers on test documents."""

    latents: list[int]
    """The one with most activation in all first."""
    shares: dict[str, torch.Tensor]
    """Of `carried`, for all latents."""
    sums: torch.Tensor
    """[d] float64: their activation in all, raw."""
    fired: torch.Tensor
    """[d] on how many tokens."""


def flagged(
    side: Artifact[EncodeFacts], ids: torch.Tensor, vocabulary: Sequence[str], limits: Mapping[str, float]
) -> Outliers:
    """The latents of an encode artifact of whose activation such places carry at least the share in `limits`.

    `ids` [sequences, context_size] are the test split's tokens.
    """
    shards = list(latent_shards(side, ["test"]))
    rows = Rows.stack([rows for _, rows, _ in shards])
    massive = torch.cat([norm for _, _, norm in shards]) > TYPICAL_NORM_RATIO * side.facts["median_norm"]
    shares = carried(rows, outlier_places(ids, massive, vocabulary))
    sums = torch.bincount(rows.indices, rows.values.double(), minlength=rows.d)
    fired = torch.bincount(rows.indices, minlength=rows.d)
    hit = torch.stack([share >= limits[name] for name, share in shares.items()]).any(0) & (fired > 0)
    return Outliers((sums * hit).argsort(descending=True)[: int(hit.sum())].tolist(), shares, sums, fired)


def carried(rows: Rows, places: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """For each kind of place the share [d] of every latent's activation that it carries; 0 for a silent latent."""
    values, row_of = rows.values.double(), rows.row_of
    total = torch.bincount(rows.indices, values, minlength=rows.d)
    return {
        name: torch.bincount(rows.indices, values * mask[row_of], minlength=rows.d) / total.clamp(min=1e-30)
        for name, mask in places.items()
    }
