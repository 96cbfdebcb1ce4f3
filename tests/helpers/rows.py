"""Sparse rows of random or given numbers."""

from __future__ import annotations

import itertools
from functools import partial

import torch

from saelink.latents.rows import Rows
from saelink.latents.split import Split, Tokens


def random_rows(n: int, d: int, seed: int = 0, density: float = 0.2) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(n, d, generator=generator) * (torch.rand(n, d, generator=generator) < density)
    dense[n // 2] = 0  # a token without any active latent
    return Rows.from_dense(dense)


def split_of(source: Rows, target: Rows, pieces: int = 1) -> Split:
    """The rows as a split whose pieces are read one by one."""
    n = len(source)
    everything = Tokens(source, target, torch.arange(n), torch.ones(n, dtype=torch.bool))
    cuts = [round(i * n / pieces) for i in range(pieces + 1)]
    return Split([partial(everything.select, torch.arange(a, b)) for a, b in itertools.pairwise(cuts)])
