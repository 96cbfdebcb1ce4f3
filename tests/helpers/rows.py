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


def linked_tokens(n: int, p: int, m: int, seed: int) -> list[Tokens]:
    """Sparse sources, some of which follow others, and sparse targets made of a few of them, in three pieces."""
    generator = torch.Generator().manual_seed(seed)
    source = random_rows(n, p, seed=seed, density=0.15).dense()
    source[:, 1] = torch.relu(source[:, 0] + 0.1 * torch.randn(n, generator=generator))
    source[:, p - 1] = 0
    W = torch.randn(p, m, generator=generator) * (torch.rand(p, m, generator=generator) < 4 / p)
    target = source @ W + 0.2 * torch.randn(n, m, generator=generator)
    target = torch.where(target > 0.3, target, 0)
    target[:, m - 1] = 0
    pieces = []
    for rows in torch.arange(n).chunk(3):
        x, y = Rows.from_dense(source[rows]), Rows.from_dense(target[rows])
        pieces.append(Tokens(x, y, rows, torch.ones(len(rows), dtype=torch.bool)))
    return pieces
