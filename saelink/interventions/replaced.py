"""What stands in an ablated latent's place: nothing, or what the latent is on another token."""

from __future__ import annotations

import torch

from saelink.config.evidence import AblationValue
from saelink.latents.rows import Rows

_MIX = (0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
"""Constants of splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014), signed."""


def replaced_by(how: AblationValue, by_source: Rows, token: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """[m] float32: the activation that comes for that of source [m] at token [m], in raw units.

    `by_source` [d_source, n] are the tokens by source. With `resample` it is the source's activation at one of the n
    tokens, drawn from all of them alike, so it is 0 most of the time; the draw depends on token and source alone.
    """
    if how is AblationValue.zero:
        return torch.zeros(len(token))
    n = by_source.d
    drawn = (_mixed(token * by_source.offsets.numel() + source) >> 1 & (2**62 - 1)) % n
    return by_source.at(source, drawn)


def _mixed(number: torch.Tensor) -> torch.Tensor:
    """[m] int64: splitmix64 of each."""
    z = number + _MIX[0]
    z = (z ^ (z >> 30 & (2**34 - 1))) * _MIX[1]
    z = (z ^ (z >> 27 & (2**37 - 1))) * _MIX[2]
    return z ^ (z >> 31 & (2**33 - 1))
