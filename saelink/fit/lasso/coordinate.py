"""The lasso of many columns that share their Gram matrix, each with its certificate.

    minimise over w   yy/2 - c'w + w'Gw/2 + lam |w|_1

`Lasso` goes a coordinate at a time, which needs the fewest operations: a CPU's way. `DenseLasso` steps all weights of
all columns together, a GPU's way. Both prove how close they came by the same duality gap, from G, c and yy alone.
"""

# torch leaves arguments of some of its methods without types. Matrices have capital names.
# pyright: reportUnknownMemberType=false, reportConstantRedefinition=false

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch

LASSO_VERSION = 2
"""Raised when what is solved, or the certificate, changes, here or in `sparse`; part of the keys of what is fitted
so."""

RIDGE = 1e-10
"""Added to G's diagonal, times its mean, where G is inverted: latents that never fire make it singular."""

NEARLY_FREE = 2e-3
"""Below this share of the median column's largest useful penalty nearly all weights stay: start at least squares."""

DENSE_SWEEPS = 10
"""Sweeps of all weights between two looks at the gap."""

MEMORY = 5
"""Sweeps between two extrapolations of them."""

BLOCK = 64
"""Sources of one step of such a sweep."""


def unheard(columns: int) -> None:
    """Columns are finished, and nobody wants to know."""


def gaps_of(
    W: torch.Tensor, Q: torch.Tensor, C: torch.Tensor, yy: torch.Tensor, lam: float, positive: bool = False
) -> torch.Tensor:
    """Duality gaps [m] of rows W with Q = C - WG, all [m, p], by the residual scaled until it is dual feasible."""
    wc, wq = (W * C).sum(1), (W * Q).sum(1)
    rr = yy - wc - wq
    scale = (lam / (Q if positive else Q.abs()).amax(1).clamp(min=1e-300)).clamp(max=1)
    primal = rr / 2 + lam * W.abs().sum(1)
    return primal - (scale * (yy - wc) - scale.square() * rr / 2)


class Lasso:
    """min over w of yy/2 - c'w + w'Gw/2 + lam |w|_1, for many columns (c, yy) that share G.

    `solve` remembers where each column stands on the path of penalties, so that ever smaller ones cost little; what
    it returns does not depend on the penalties it was asked for before.
    """

    def __init__(self, G: torch.Tensor, C: torch.Tensor, yy: torch.Tensor, positive: bool = False):
        """G [p, p], C [p, m], yy [m], float64; `positive`: over w >= 0."""
        self.G, self.C, self.yy, self.positive = G.contiguous(), C, yy, positive
        self.alive = G.diagonal() > 0
        self._start()

    def _start(self) -> None:
        rows = self.C.T.contiguous().numpy()
        self._rows, self._q = rows, rows.copy()
        self._w = np.zeros_like(rows)
        self._w_before, self._q_before = np.zeros_like(rows), rows.copy()
        self._level = np.full(len(rows), np.inf)
        self._lowest = np.inf

    @cached_property
    def _g32(self) -> np.ndarray[Any, Any]:
        return self.G.float().numpy()

    @cached_property
    def _factor(self) -> torch.Tensor:
        ridge = RIDGE * self.G.diagonal().mean().clamp(min=1e-300)
        for _ in range(8):  # rounding can leave a singular G slightly indefinite
            eye = torch.eye(len(self.G), dtype=self.G.dtype)
            factor, failed = cast("tuple[torch.Tensor, torch.Tensor]", torch.linalg.cholesky_ex(self.G + ridge * eye))
            if not failed:
                return factor
            ridge = ridge * 10
        raise AssertionError("G is not positive semidefinite")

    def inverse(self, right: torch.Tensor) -> torch.Tensor:
        """G^-1 right, with a tiny ridge."""
        return torch.cholesky_solve(right, self._factor)

    @cached_property
    def _least_squares(self) -> torch.Tensor:
        return torch.where(self.alive[:, None], self.inverse(self.C), 0.0)

    def least_squares(self) -> torch.Tensor:
        """The optimum [p, m] at lam = 0. Latents that never fire get no weight."""
        return self._least_squares

    def certificate(
        self, W: torch.Tensor, lam: float, columns: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Value of the objective at W [p, n] and a lower bound of its minimum, both [n], for lam > 0.

        W is of all columns, or of the given ones.

        The better of two dual feasible points: the residual scaled down until |X'r| <= lam, and y - Xu where
        Gu = c - clip(c - Gw, -lam, lam). (For w >= 0 the bound is on X'r alone, not on its magnitude.)
        """
        C, yy = (self.C, self.yy) if columns is None else (self.C[:, columns], self.yy[columns])
        GW = self.G @ W
        q = C - GW
        wc, wGw = (W * C).sum(0), (W * GW).sum(0)
        primal = yy / 2 - wc + wGw / 2 + lam * W.abs().sum(0)
        largest = (q if self.positive else q.abs()).amax(0).clamp(min=1e-300)
        scale = (lam / largest).clamp(max=1)
        scaled = scale * (yy - wc) - scale.square() * (yy - 2 * wc + wGw) / 2
        excess = q - (q.clamp(max=lam) if self.positive else q.clamp(-lam, lam))
        u = W + self.inverse(excess)
        # The ridge leaves a little of the excess in u's own gradient; lam is widened by it, at its price.
        rest = C - self.G @ u
        left = (rest if self.positive else rest.abs()).amax(0) - lam
        shrink = 1 / (1 + left.clamp(min=0) / lam)
        yr, rr = yy - (u * C).sum(0), yy - 2 * (u * C).sum(0) + (u * (self.G @ u)).sum(0)
        # Where G is singular u can be huge, and what rounding leaves of such sums proves nothing.
        size = u.abs()
        noise = len(u) * torch.finfo(u.dtype).eps * (size * (self.G.abs() @ size + 2 * C.abs())).sum(0)
        projected = shrink * yr - shrink.square() * rr / 2 - noise
        return primal, torch.maximum(scaled, projected)

    def solve(
        self, lam: float, tolerance: float, max_sweeps: int, done: Callable[[int], object] = unheard
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """W [p, m] and the duality gap of every column [m], at most `tolerance` times the column's yy/2.

        At lam = 0 least squares, gaps zero. `done(n)` is told of every n columns that are finished, by any thread.
        """
        if lam == 0:
            done(len(self.yy))
            return self.least_squares(), torch.zeros_like(self.yy)
        if not self.positive and lam < NEARLY_FREE * self.C.abs().amax(0).median().item():
            return self._from_least_squares(lam, tolerance, max_sweeps, done)
        if lam < self._floor(tolerance):
            return self._from_floor(lam, tolerance, max_sweeps, done)
        from saelink.kernels import in_parts
        from saelink.kernels.lasso import descend  # compiles when it is first used

        if lam > self._lowest:
            self._start()
        self._lowest = lam
        m = len(self._rows)
        out, gaps, sweeps = np.zeros_like(self._rows), np.zeros(m), np.zeros(m, np.int64)
        G, yy = self.G.numpy(), self.yy.numpy()

        def work(first: int, last: int) -> None:
            descend(
                first, last, G, self._g32, self._rows, yy, lam, tolerance, max_sweeps, self.positive, self._level,
                self._w, self._q, self._w_before, self._q_before, out, gaps, sweeps,
            )  # fmt: skip
            done(last - first)

        in_parts(m, 8, work)
        self.sweeps = sweeps
        return torch.from_numpy(out).T, torch.from_numpy(gaps).clamp(min=0)

    def _from_least_squares(
        self, lam: float, tolerance: float, max_sweeps: int, done: Callable[[int], object]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`solve` where nearly all weights stay: all columns together, from the optimum without a penalty.

        A column that floating point lets come no nearer is left with the gap it has.
        """
        W = self.least_squares().clone()
        best_gaps = torch.full_like(self.yy, torch.inf)
        allowed = tolerance * self.yy / 2
        free = self.free_gaps(W, lam, tolerance)
        todo = torch.arange(len(self.yy))
        best = W.clone()
        for _ in range(0, max_sweeps, DENSE_SWEEPS):
            primal, dual = self.certificate(W, lam, todo)
            gaps = primal - dual
            better = gaps < best_gaps[todo]
            best[:, todo[better]], best_gaps[todo[better]] = W[:, better], gaps[better]
            best_gaps = torch.where((best_gaps > allowed) & (free <= allowed), free, best_gaps)
            left = best_gaps[todo] > allowed[todo]
            done(len(todo) - int(left.sum()))
            todo, W = todo[left], W[:, left].contiguous()
            if not len(todo):
                break
            self._sweeps(W, self.C[:, todo] - self.G @ W, lam)
        done(len(todo))
        return best, best_gaps.clamp(min=0)

    def _floor(self, tolerance: float) -> float:
        """A penalty below which rounding moves the gradient by more than the certificate may be off."""
        return torch.finfo(self.C.dtype).eps * self.C.abs().amax(0).median().item() / tolerance

    def _from_floor(
        self, lam: float, tolerance: float, max_sweeps: int, done: Callable[[int], object]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`solve` for w >= 0 below the floor: the path ends there, and the gap is that at `lam`."""
        W, _ = self.solve(self._floor(tolerance), tolerance, max_sweeps, done)
        primal, dual = self.certificate(W, lam)
        return W, torch.minimum(primal - dual, self.free_gaps(W, lam, tolerance)).clamp(min=0)

    def free_gaps(self, W: torch.Tensor, lam: float, tolerance: float) -> torch.Tensor:
        """[m] what W [p, m] lack at most where `lam` is too small to be told from none, else infinite.

        Rounding alone then moves the gradient by more than the certificate may be off, so no sweep would ever prove
        more. The penalty costs the optimum no less than nothing; the rest is what W lacks of the one without a penalty:
        at most g'G^-1 g / 2 with its gradient g, of which over w >= 0 nothing counts that would make a zero negative.
        """
        rounding = torch.finfo(W.dtype).eps * (self.G.abs() @ W.abs() + self.C.abs()).amax(0)
        gradient = torch.where(self.alive[:, None], self.C - self.G @ W, 0.0)
        if self.positive:
            gradient = torch.where((W == 0) & (gradient < 0), 0.0, gradient)
        lacking = (gradient * self.inverse(gradient)).sum(0).abs() / 2
        return torch.where(lam * tolerance < rounding, lam * W.abs().sum(0) + lacking, torch.inf)

    def _sweeps(self, W: torch.Tensor, q: torch.Tensor, lam: float) -> None:
        """DENSE_SWEEPS sweeps over all sources, all columns of W [p, n] side by side, in place; q is C - GW.

        Since the start the weights moved by D, so that the gradient is q - GD: the product is in float32, which
        rounds what is small. Anderson's extrapolation every MEMORY sweeps, where it lowers the objective.
        """
        G32 = torch.from_numpy(self._g32)
        start, D = W.clone(), torch.zeros_like(W, dtype=torch.float32)
        past: list[torch.Tensor] = [D.clone()]
        for _ in range(DENSE_SWEEPS):
            for first in range(0, len(W), BLOCK):
                block = slice(first, first + BLOCK)
                G, w = self.G[block, block], W[block]
                gradient = q[block] - G32[block] @ D
                for k in range(len(w)):
                    if G[k, k] > 0:
                        z = gradient[k] + G[k, k] * w[k]
                        new = (z - z.clamp(-lam, lam)) / G[k, k]
                        gradient.addr_(G[k], new - w[k], alpha=-1)
                        w[k] = new
                D[block] = w - start[block]
            past.append(D.clone())
            if len(past) > MEMORY + 1:
                D = self._extrapolated(start, q, lam, past)
                W.copy_(start + D)
                past = [D.clone()]

    def _extrapolated(self, start: torch.Tensor, q: torch.Tensor, lam: float, past: list[torch.Tensor]) -> torch.Tensor:
        """The last D, or for the columns where it is better the combination of the last ones that Anderson picks."""
        steps = torch.stack([later - earlier for earlier, later in itertools.pairwise(past)])
        M = torch.einsum("apn,bpn->nab", steps, steps).double()
        M += (1e-12 * M.diagonal(dim1=1, dim2=2).sum(1) + 1e-300)[:, None, None] * torch.eye(len(steps))
        weight = cast("torch.Tensor", torch.linalg.solve(M, torch.ones(len(M), len(steps), dtype=M.dtype)))
        weight = (weight / weight.sum(1, keepdim=True)).nan_to_num(0, 0, 0).float()
        combined = torch.einsum("apn,na->pn", torch.stack(past[1:]), weight)

        def value(D: torch.Tensor) -> torch.Tensor:
            """The objective at start + D, less that at start without its penalty."""
            loss = (D.double() * (torch.from_numpy(self._g32) @ D / 2 - q)).sum(0)
            return loss + lam * (start + D).abs().sum(0)

        return torch.where(value(combined) < value(past[-1]), combined, past[-1])

    def gaps(self, W: torch.Tensor, lam: float) -> torch.Tensor:
        """The duality gaps [m] of W [p, m] by the scaled residual, from G, C and yy alone."""
        return gaps_of(W.T, self.C.T - W.T @ self.G, self.C.T, self.yy, lam, self.positive)

    def refit(self, W: torch.Tensor) -> torch.Tensor:
        """Least squares on each column's support."""
        out = torch.zeros_like(W)
        ridge = RIDGE * self.G.diagonal().mean()
        for column in range(W.shape[1]):
            support = W[:, column].nonzero().squeeze(1)
            if len(support):
                part = self.G[support][:, support]
                part.diagonal().add_(ridge)
                out[support, column] = torch.linalg.solve(part, self.C[support, column])
        return out
