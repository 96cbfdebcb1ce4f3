"""The same lasso with all weights of all columns stepped together: a GPU's way."""

# torch leaves arguments of some of its methods without types. Matrices have capital names.
# pyright: reportUnknownMemberType=false, reportConstantRedefinition=false

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch

from saelink.fit.lasso.coordinate import NEARLY_FREE, Lasso, unheard

STEPS = 50
"""Proximal steps between two looks at the gap, and at every knot above the wanted penalty."""


class DenseLasso(Lasso):
    """`Lasso` by proximal gradient steps, all columns side by side, on the device of its tensors.

    FISTA (A. Beck, M. Teboulle, "A fast iterative shrinkage-thresholding algorithm for linear inverse problems", 2009)
    in the metric of G's diagonal, its momentum restarted column by column where it points uphill (B. O'Donoghue,
    E. Candès, "Adaptive restart for accelerated gradient schemes", 2015).
    """

    def _start(self) -> None:
        self._knot: tuple[int, torch.Tensor] | None = None
        diagonal = self.G.diagonal().clamp(min=0)
        root = torch.where(self.alive, diagonal, 1.0).sqrt()
        self._float = self.G.float()
        # The largest eigenvalue of G scaled to a unit diagonal, by power iteration.
        vector = torch.ones_like(root)
        norm = cast("torch.Tensor", vector.norm())
        for _ in range(50):
            vector = self.G @ (vector / norm / root) / root
            norm = cast("torch.Tensor", vector.norm())
        self._rate = torch.where(self.alive, 1 / (1.05 * norm * root.square()), 0.0)[:, None]

    def solve(
        self, lam: float, tolerance: float, max_sweeps: int, done: Callable[[int], object] = unheard
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Lasso.solve`; a sweep is a step of all weights."""
        if lam == 0:
            done(len(self.yy))
            return self.least_squares(), torch.zeros_like(self.yy)
        top = self.C.abs().amax(0)
        if not self.positive and lam < NEARLY_FREE * top.median().item():
            W = self.least_squares()
            return self._descend(W, lam, tolerance, max_sweeps, done, self.free_gaps(W, lam, tolerance))
        if lam < self._floor(tolerance):
            return self._from_floor(lam, tolerance, max_sweeps, done)
        W = self._at_knot_above(lam, top.max().item())
        return self._descend(W, lam, tolerance, max_sweeps, done, torch.full_like(self.yy, torch.inf))

    def _at_knot_above(self, lam: float, top: float) -> torch.Tensor:
        """Where the path stands at the last power of KNOT above `lam`, whatever was asked for before."""
        if top <= lam:
            return torch.zeros_like(self.C)
        from saelink.kernels.lasso import KNOT

        first, last = math.floor(math.log(top) / math.log(KNOT)), math.ceil(math.log(lam) / math.log(KNOT)) - 1
        at, W = first - 1, torch.zeros_like(self.C)
        if self._knot is not None and self._knot[0] <= last:
            at, W = self._knot
        for knot in range(at + 1, last + 1):
            W = self._steps(W, self.C - self.G @ W, KNOT**knot)
            self._knot = (knot, W)
        return W

    def _descend(
        self,
        W: torch.Tensor,
        lam: float,
        tolerance: float,
        max_sweeps: int,
        done: Callable[[int], object],
        free: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """From W; `free` as `free_gaps` gives it."""
        allowed = tolerance * self.yy / 2
        best, best_gaps = W.clone(), torch.full_like(self.yy, torch.inf)
        todo = torch.arange(len(self.yy), device=W.device)
        for sweeps in range(0, max_sweeps + STEPS, STEPS):
            primal, dual = self.certificate(W, lam, todo)
            gaps = primal - dual
            better = gaps < best_gaps[todo]
            best[:, todo[better]], best_gaps[todo[better]] = W[:, better], gaps[better]
            best_gaps = torch.where((best_gaps > allowed) & (free <= allowed), free, best_gaps)
            left = best_gaps[todo] > allowed[todo]
            done(len(todo) - int(left.sum()))
            todo, W = todo[left], W[:, left]
            if not len(todo) or sweeps >= max_sweeps:
                break
            W = self._steps(W, self.C[:, todo] - self.G @ W, lam)
        done(len(todo))
        return best, best_gaps.clamp(min=0)

    def _steps(self, start: torch.Tensor, q: torch.Tensor, lam: float) -> torch.Tensor:
        """The weights [p, n] after STEPS steps from `start`, where the gradient is -q.

        In float32 and relative to the start, so that what is rounded is the change, which is small near the optimum.
        """
        rate = self._rate.float()
        threshold = rate * lam
        base, step = start.float(), rate * q.float()
        D = torch.zeros_like(base)
        ahead, t = D, torch.ones(base.shape[1], device=D.device)
        for _ in range(STEPS):
            z = base + (ahead + step - rate * (self._float @ ahead))
            new = z - (z.clamp(max=threshold) if self.positive else z.clamp(-threshold, threshold))
            new = new - base
            uphill = ((ahead - new) * (new - D) / rate.clamp(min=1e-30)).sum(0) > 0
            t = torch.where(uphill, 1.0, t)
            t_next = (1 + (1 + 4 * t.square()).sqrt()) / 2
            ahead = new + torch.where(uphill, 0.0, (t - 1) / t_next) * (new - D)
            D, t = new, t_next
        moved = start + D.double()
        return torch.where(base + D == 0, 0.0, moved)  # a weight at zero is zero in float64 too
