"""The exact solver of the linear connector: least squares at l1_alpha 0, otherwise the lasso, with its certificate.

Every target latent is a problem of its own. With G = X'X/N, c = X'y/N (around the means where there is a bias) and
lam = l1_alpha * c_L / 2 it is

    minimise  yy/2 - c'w + w'Gw/2 + lam |w|_1

and its duality gap, which bounds how far w is from the optimum, follows from G, c and yy alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from saelink.config import SolverConfig
from saelink.connectors.base import Connector
from saelink.connectors.linear import Connector as Linear
from saelink.solvers.base import Fit, Problem, measured
from saelink.solvers.base import Solver as Base
from saelink.store import SaelinkError

RIDGE = 1e-10
"""Added to G's diagonal, times its mean, where G is inverted: latents that never fire make it singular."""

DENSE_START = 0.05
"""Where least squares is within this gap of the lasso, nearly all weights stay: start there, not from zero."""

SWEEPS_PER_CHECK = 5
"""Sweeps of the dense descent between two looks at the gap."""

BLOCK = 64
"""Source latents of one step of the dense descent."""


@dataclass
class Config(SolverConfig):
    """Settings of solver=exact."""

    tolerance: float = 1e-3
    """Duality gap allowed, as a share of the objective."""
    max_sweeps: int = 400
    """Coordinate descent stops after this many sweeps of one set of weights; the gap is recorded either way."""
    debias: bool = False
    """After the lasso keep the support and refit its weights by least squares; the gap is the lasso's."""


class Solver(Base):
    """Coordinate descent on the products of the training tokens, in float64 on the CPU."""

    Config = Config
    seeded = False
    uses_gram = True

    def check(self, connector: type[Connector], settings: Any) -> None:
        if connector is not Linear:
            raise SaelinkError(
                f"solver=exact fits connector=linear only; for connector={settings.name} use adam or proximal"
            )
        if not self.config.tolerance > 0:
            raise SaelinkError(f"solver.tolerance={self.config.tolerance} must be above 0")
        if self.config.max_sweeps < 1:
            raise SaelinkError(f"solver.max_sweeps={self.config.max_sweeps} must be at least 1")

    def tokens(self, n_training: int) -> int:
        return n_training

    def solve(self, connector: Connector, problem: Problem, advance: Callable[[int, str], None]) -> Fit:
        assert isinstance(connector, Linear)
        products = problem.gram()
        if connector.b is not None:
            products = products.centred()
        lam = problem.l1_alpha * problem.c / 2
        lasso = Lasso(products.xx, products.xy, products.yy)
        W = lasso.solve(lam, self.config.tolerance, self.config.max_sweeps)
        gap = lasso.certificate(W, lam) if lam else None
        if self.config.debias and lam:
            W = lasso.refit(W)
        with torch.no_grad():
            connector.W.copy_(W)
            if connector.b is not None:
                connector.b.copy_(products.y - products.x @ W)
        connector.to(problem.device)
        train_mse = (products.yy - 2 * (W * products.xy).sum(0) + (W * (products.xx @ W)).sum(0)).mean().item()
        n = len(problem.source)
        point = measured(connector, problem, (problem.source_validation, problem.target_validation), n, train_mse)
        point["training_objective"] = train_mse / problem.c + problem.l1_alpha * connector.l1()
        if gap is None:  # least squares: no penalty, no dual; what is left of the gradient says how exact it is
            left = (products.xy - products.xx @ W).abs().max() / products.xy.abs().max().clamp(min=1e-300)
            point["relative_gradient"] = left.item()
            note = f"gradient {left:.1e}"
        else:
            distance, value = (gap[0] - gap[1]).clamp(min=0).sum().item(), gap[0].sum().clamp(min=1e-300).item()
            # In the units of the objective: error / c + l1_alpha |w|, averaged over the target latents.
            point["duality_gap"] = distance * 2 / problem.c / connector.d_target
            point["relative_gap"] = distance / value
            note = f"gap {point['relative_gap']:.1e}"
        advance(n, f"validation FVU {point['validation_fvu']:.3f}, {note}")
        return Fit([point], point)


class Lasso:
    """min over w of yy/2 - c'w + w'Gw/2 + lam |w|_1, for many columns (c, yy) that share G."""

    def __init__(self, G: torch.Tensor, C: torch.Tensor, yy: torch.Tensor):
        """G [p, p], C [p, m], yy [m], float64."""
        self.G, self.C, self.yy = G, C, yy
        self.alive = G.diagonal() > 0
        ridge = RIDGE * G.diagonal().mean().clamp(min=1e-300)
        self._factor: torch.Tensor | None = None
        for _ in range(8):  # rounding can leave a singular G slightly indefinite
            factor, failed = torch.linalg.cholesky_ex(G + ridge * torch.eye(len(G), dtype=G.dtype))
            if not failed:
                self._factor = factor
                break
            ridge = ridge * 10
        assert self._factor is not None

    def inverse(self, right: torch.Tensor) -> torch.Tensor:
        """G^-1 right, with a tiny ridge."""
        assert self._factor is not None
        return torch.cholesky_solve(right, self._factor)

    def least_squares(self) -> torch.Tensor:
        """The optimum [p, m] at lam = 0. Latents that never fire get no weight."""
        return torch.where(self.alive[:, None], self.inverse(self.C), 0.0)

    def certificate(self, W: torch.Tensor, lam: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Value of the objective at W [p, m] and a lower bound of its minimum, both [m], for lam > 0.

        The better of two dual feasible points: the residual scaled down until |X'r| <= lam, and y - Xu where
        Gu = c - clip(c - Gw, -lam, lam).
        """
        GW = self.G @ W
        q = self.C - GW
        wc, wGw = (W * self.C).sum(0), (W * GW).sum(0)
        primal = self.yy / 2 - wc + wGw / 2 + lam * W.abs().sum(0)
        scale = (lam / q.abs().amax(0).clamp(min=1e-300)).clamp(max=1)
        scaled = scale * (self.yy - wc) - scale.square() * (self.yy - 2 * wc + wGw) / 2
        excess = q - q.clamp(-lam, lam)
        u = W + self.inverse(excess)
        # The ridge leaves a little of the excess in u's own gradient; lam is widened by it, at its price.
        left = (self.C - self.G @ u).abs().amax(0) - lam
        shrink = 1 / (1 + left.clamp(min=0) / lam)
        yr, rr = self.yy - (u * self.C).sum(0), self.yy - 2 * (u * self.C).sum(0) + (u * (self.G @ u)).sum(0)
        projected = shrink * yr - shrink.square() * rr / 2
        return primal, torch.maximum(scaled, projected)

    def solve(self, lam: float, tolerance: float, max_sweeps: int) -> torch.Tensor:
        """W [p, m] whose duality gap, summed over the columns, is at most `tolerance` of the objective's sum."""
        start = self.least_squares()
        if lam == 0:
            return start

        def gap(W: torch.Tensor) -> float:
            primal, dual = self.certificate(W, lam)
            return ((primal - dual).sum() / primal.sum().clamp(min=1e-300)).item()

        if gap(start) < DENSE_START:
            W = start
            for _ in range(0, max_sweeps, SWEEPS_PER_CHECK):
                if gap(W) <= tolerance:
                    break
                for _ in range(SWEEPS_PER_CHECK):
                    self._sweep(W, lam)
            return W
        from saelink.solvers.kernels import solve_rows  # compiles when it is first used

        rows = np.zeros((self.C.shape[1], len(self.G)))
        G, C = self.G.contiguous().numpy(), self.C.T.contiguous().numpy()
        residual = 1e-2
        while True:
            solve_rows(G, C, lam, rows, residual, max_sweeps, torch.get_num_threads())
            W = torch.from_numpy(rows.T.copy())
            if gap(W) <= tolerance or residual < 1e-7:
                return W
            residual /= 10

    def _sweep(self, W: torch.Tensor, lam: float) -> None:
        """One pass of coordinate descent over all source latents, all columns at a time, in place."""
        for first in range(0, len(self.G), BLOCK):
            block = slice(first, first + BLOCK)
            G, w = self.G[block, block], W[block]
            q = self.C[block] - self.G[block] @ W
            for k in range(len(G)):
                if G[k, k] > 0:
                    z = q[k] + G[k, k] * w[k]
                    new = (z - z.clamp(-lam, lam)) / G[k, k]
                    change = new - w[k]
                    w[k] = new
                    q.addr_(G[k], change, alpha=-1)

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
