"""Tests of hypotheses: of signs, of independence, and the correction for how many are tested."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def binomial_tail(hits: int, n: int, rate: float) -> float:
    """P(X >= hits) for n draws that hit with this rate."""
    if hits <= 0:
        return 1.0
    if hits > n:
        return 0.0
    log, other = math.log(rate), math.log1p(-rate)
    terms = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * log + (n - k) * other
        for k in range(hits, n + 1)
    ]
    most = max(terms)
    return min(math.exp(most) * sum(math.exp(term - most) for term in terms), 1.0)


def equivalence(greater: int, less: int, epsilon: float) -> float:
    """p of the hypothesis that one of two is the greater in a share of the draws within `epsilon` of a half.

    Ties are left out. The largest p over the hypothesis, which is at its border.
    """
    n, most = greater + less, max(greater, less)
    if not n:
        return 1.0
    border = 0.5 + epsilon
    return min(binomial_tail(most, n, border) + binomial_tail(most, n, 1 - border), 1.0)


def independence(x: torch.Tensor, y: torch.Tensor, permutations: int = 1000) -> tuple[float, float]:
    """The Hilbert-Schmidt independence criterion of x and y [n], and p of their independence, by permuting y.

    Gaussian kernels as wide as the median distance (A. Gretton and others, "A kernel statistical test of independence",
    2007). HSIC is given over the root of the product of both with themselves, 0 to 1. Values that don't vary are
    independent of everything.
    """
    n = len(x)
    if n < 4 or x.std() < 1e-9 or y.std() < 1e-9:
        return 0.0, 1.0
    kernels = [_centred(_kernel(values.double())) for values in (x, y)]
    observed = (kernels[0] * kernels[1]).sum().item()
    generator = torch.Generator().manual_seed(0)
    exceeded = 0
    for _ in range(permutations):
        order = torch.randperm(n, generator=generator)
        exceeded += (kernels[0] * kernels[1][order][:, order]).sum().item() >= observed
    own = math.sqrt(kernels[0].square().sum().item() * kernels[1].square().sum().item())
    return observed / own, (1 + exceeded) / (permutations + 1)


def _kernel(values: torch.Tensor) -> torch.Tensor:
    """[n, n] Gaussian."""
    away = (values[:, None] - values[None]).abs()
    some = away[away > 0]
    return torch.exp(-0.5 * (away / some.median()).square())


def _centred(kernel: torch.Tensor) -> torch.Tensor:
    mean = kernel.mean(0, keepdim=True)
    return kernel - mean - mean.T + kernel.mean()


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for how many there are (S. Holm, "A simple sequentially rejective multiple test procedure",
    1979): the share of families with any false rejection stays below what the corrected ones are held to."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    corrected, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min((len(p) - rank) * p[i], 1.0))
        corrected[i] = largest
    return corrected
