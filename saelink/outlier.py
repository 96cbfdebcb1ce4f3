"""Places where outlier latents fire: the first tokens of a sequence, its first delimiter, massive activations."""

from __future__ import annotations

from typing import Any

import torch

from saelink.latents import Rows

FIRST_POSITIONS = 3


def outlier_places(ids: torch.Tensor, massive: torch.Tensor, tokenizer: Any) -> dict[str, torch.Tensor]:
    """Masks [sequences * context_size] of such places; `ids` [sequences, context_size], `massive` as the masks."""
    position = torch.arange(ids.numel()) % ids.shape[1]
    return {
        "first_positions": position < FIRST_POSITIONS,
        "first_delimiter": first_delimiters(ids, tokenizer).flatten(),
        "massive": massive,
    }


def first_delimiters(ids: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    """[sequences, context_size] bool: the first token of each sequence that holds a full stop or a newline."""
    known = ids.unique()
    holds = torch.tensor([any(mark in tokenizer.decode([int(token)]) for mark in ".\n") for token in known])
    delimiter = holds[torch.searchsorted(known, ids)]
    return delimiter & (delimiter.cumsum(1) == 1)


def carried(rows: Rows, places: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """For each kind of place the share [d] of every latent's activation that it carries; 0 for a silent latent."""
    values, row_of = rows.values.double(), rows.row_of
    total = torch.bincount(rows.indices, values, minlength=rows.d)
    return {
        name: torch.bincount(rows.indices, values * mask[row_of], minlength=rows.d) / total.clamp(min=1e-30)
        for name, mask in places.items()
    }
