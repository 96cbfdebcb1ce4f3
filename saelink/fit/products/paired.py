"""Sparse products by sorting the pairs that meet: a GPU's way, with the same sums as `kernels.sparse_products`."""

# torch leaves arguments of some of its methods without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import Any, cast

import torch

from saelink.fit.products.matrix import SparseGram, SparseMatrix
from saelink.latents.rows import Rows, offsets_of
from saelink.latents.split import Tokens

PAIRS = 2**26
"""Pairs of activations that are sorted at a time: about 2 GB."""


def paired_products(left: Rows, right: Rows, device: str) -> SparseMatrix:
    """left' right / n for rows [n, d] and [n, e] of the same tokens, by the pairs that meet: [d, e].

    Summed in float64, in the order of the tokens; the same on every device and for any size of the portions.
    """
    by_latent, right = left.transposed().to(device), right.to(device)
    lengths = right.offsets.diff()
    met = lengths[by_latent.indices]  # pairs that each activation is in
    before = offsets_of(met)[by_latent.offsets]
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    first = 0
    while first < left.d:
        last = int(torch.searchsorted(before, before[first] + PAIRS, right=True)) - 1
        last = min(max(last, first + 1), left.d)
        parts.append(_latents(by_latent, right, lengths, first, last, len(left)))
        first = last
    counts, indices, values = (torch.cat(each).cpu() for each in zip(*parts, strict=True))
    return SparseMatrix(offsets_of(counts), indices, values)


def _latents(
    by_latent: Rows, right: Rows, lengths: torch.Tensor, first: int, last: int, n: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For the latents `first` to `last`: how many others each meets, these, ascending, and the products."""
    device = lengths.device
    active = torch.arange(int(by_latent.offsets[first]), int(by_latent.offsets[last]), device=device)
    token = by_latent.indices[active]
    latent = torch.repeat_interleave(
        torch.arange(last - first, device=device), by_latent.offsets[first : last + 1].diff()
    )
    met = lengths[token]
    if not int(met.sum()):
        nothing = torch.zeros(0, device=device)
        return torch.zeros(last - first, dtype=torch.int64, device=device), nothing.int(), nothing
    of = torch.repeat_interleave(torch.arange(len(active), device=device), met)
    pair = torch.arange(len(of), device=device) - (met.cumsum(0) - met)[of] + right.offsets[token][of]
    key = latent[of] * right.d + right.indices[pair]
    product = by_latent.values[active][of].double() * right.values[pair].double()
    order = key.sort(stable=True)  # within a pair the tokens stay in order
    unique, counts = cast("Any", torch).unique_consecutive(order.values, return_counts=True)
    sums = cast("Any", torch).segment_reduce(product[order.indices], "sum", lengths=counts)
    row = unique // right.d
    return torch.bincount(row, minlength=last - first), (unique % right.d).int(), (sums * (1 / n)).float()


def paired_gram(tokens: Tokens, device: str) -> SparseGram:
    """The means over these tokens, as `sparse_gram_of` has them, computed on `device`."""
    source, target, n = tokens.source, tokens.target, len(tokens)

    def sums(rows: Rows, power: int) -> torch.Tensor:
        return torch.bincount(rows.indices, rows.values.double() ** power, minlength=rows.d) / n

    xx, yx = paired_products(source, source, device), paired_products(target, source, device)
    return SparseGram(xx, yx, sums(target, 2), sums(source, 1), sums(target, 1))
