"""The lasso of many targets on products of which only the pairs that meet are kept."""

# torch leaves arguments of some of its methods without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from saelink.fit.products.matrix import SparseGram
from saelink.kernels import in_parts

STEP = 16
"""Targets of one piece of work."""


class SparseSolution(NamedTuple):
    """Weights by target, and how close each is to its optimum."""

    offsets: torch.Tensor
    """[m + 1] int64: target i's weights are those from offsets[i] to offsets[i + 1]."""
    source: torch.Tensor
    """[edges] int64, ascending in each target"""
    weight: torch.Tensor
    """[edges] float64"""
    gaps: torch.Tensor
    """[m] duality gaps"""
    errors: torch.Tensor
    """[m] mean squared errors on the training tokens"""

    @property
    def target(self) -> torch.Tensor:
        """[edges] int64: the column that each weight leads into."""
        return torch.repeat_interleave(torch.arange(len(self.gaps)), self.offsets.diff())


class SparseLasso:
    """min over w of yy/2 - c'w + w'Gw/2 + lam |w|_1 for every target, a target's state in memory while it is solved.

    `centred` solves around the means: for a map with a bias.
    """

    def __init__(self, products: SparseGram, centred: bool = False, positive: bool = False):
        self.products, self.centred, self.positive = products, centred, positive
        self.yy = products.yy - products.y.square() if centred else products.yy

    def solve(
        self, lam: float, tolerance: float, max_sweeps: int, debias: bool = False,
        done: Callable[[int], object] = lambda n: None,
    ) -> SparseSolution:  # fmt: skip
        """The optimum for lam > 0, each gap at most `tolerance` times the target's yy/2; `debias` refits the support.

        `done(n)` is told of every n targets that are finished, by any thread. How many threads there are changes
        nothing.
        """
        from saelink.kernels.sparse_lasso import refit_target, solve_target

        assert lam > 0
        products = self.products
        p, m = len(products.x), len(products.yy)
        xx, x, y, yy = products.xx.arrays(), products.x.numpy(), products.y.numpy(), self.yy.numpy()
        offsets, indices, values = products.yx.arrays()
        found: list[tuple[Any, Any]] = [(None, None)] * m
        gaps, errors = np.zeros(m), np.zeros(m)

        def work(first: int, last: int) -> None:
            c, q, met, meets = np.zeros(p), np.zeros(p), np.empty(p, np.int64), np.zeros(p, np.bool_)
            place = np.full(p, -1, np.int64)
            scratch = c, q, met, meets, place
            how = self.centred, lam, tolerance, max_sweeps, self.positive
            for i in range(first, last):
                mine = slice(offsets[i], offsets[i + 1])
                products_of = indices[mine], values[mine]
                ids, w, gaps[i], errors[i] = solve_target(*xx, x, *products_of, yy[i], y[i], *how, *scratch)
                if debias and len(ids):
                    w, errors[i] = refit_target(*xx, x, *products_of, yy[i], y[i], self.centred, ids, place)
                found[i] = ids, w
            done(last - first)

        in_parts(m, STEP, work)
        lengths = torch.tensor([0, *(len(ids) for ids, _ in found)])
        source, weight = (torch.from_numpy(np.concatenate(list(each))) for each in zip(*found, strict=True))
        return SparseSolution(lengths.cumsum(0), source, weight, torch.from_numpy(gaps), torch.from_numpy(errors))
