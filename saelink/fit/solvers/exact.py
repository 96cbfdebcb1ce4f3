"""The exact solver of the linear connector: least squares at l1_alpha 0, otherwise the lasso, with its certificate.

Every target latent is a problem of its own. With G = X'X/N, c = X'y/N (around the means where there is a bias) and
lam = l1_alpha * c_L / 2 it is

    minimise  yy/2 - c'w + w'Gw/2 + lam |w|_1

and its duality gap, which bounds how far w is from the optimum, follows from G, c and yy alone.
"""

# Matrices have capital names.
# pyright: reportConstantRedefinition=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from saelink import memory
from saelink.config.schema import SolverConfig
from saelink.connectors.base import Connector
from saelink.connectors.linear import LinearConnector
from saelink.connectors.wide_linear import WideLinearConnector
from saelink.errors import SaelinkError
from saelink.fit.lasso.batched import BatchedLasso
from saelink.fit.lasso.blocks import LassoSettings
from saelink.fit.lasso.coordinate import Lasso
from saelink.fit.lasso.dense import DenseLasso
from saelink.fit.lasso.sparse import SparseLasso
from saelink.fit.products.dense import Gram
from saelink.fit.products.matrix import SparseGram
from saelink.fit.solvers.base import Fit, Problem, Solver, Work, validation_point
from saelink.progress import Progress


@dataclass
class ExactSettings(SolverConfig):
    """Settings of solver=exact."""

    tolerance: float = 1e-4
    """Duality gap allowed to every target latent, as a share of its objective with all weights at zero."""
    max_sweeps: int = 20_000
    """Coordinate descent leaves a target latent after this many sweeps; the gap is recorded either way."""
    positive: bool = False
    """Only weights above zero: sources add to a target and never take away."""
    debias: bool = False
    """After the lasso keep the support and refit its weights by least squares; the gap is the lasso's."""


class ExactSolver(Solver):
    """Coordinate descent on the products of the training tokens, in float64 on the CPU."""

    Settings = ExactSettings
    seeded = False
    uses_gram = True

    @property
    def goes_wide(self) -> bool:
        return type(self) is ExactSolver

    def check(self, connector: type[Connector], settings: Any) -> None:
        if connector is not LinearConnector:
            raise SaelinkError(
                f"solver=exact fits connector=linear only; for connector={settings.name} use adam or proximal"
            )
        if not self.config.tolerance > 0:
            raise SaelinkError(f"solver.tolerance={self.config.tolerance} must be above 0")
        if self.config.max_sweeps < 1:
            raise SaelinkError(f"solver.max_sweeps={self.config.max_sweeps} must be at least 1")
        if self.config.debias and self.config.positive:
            raise SaelinkError("solver.debias=true refits by least squares, which knows no solver.positive=true")

    def memory(self, shape: memory.Shape) -> float:
        return memory.COMPILED + memory.exact(shape.d_source, shape.d_target)

    def work(self, n_training: int, n_targets: int) -> Work:
        return Work(n_targets, "targets")

    def solve(self, connector: Connector, problem: Problem, progress: Progress) -> Fit:
        if self.config.positive and not problem.l1_alpha:
            raise SaelinkError("solver.positive=true needs l1_alpha above 0; 1e-6 is next to none")
        lam = problem.l1_alpha * problem.c / 2
        if isinstance(connector, WideLinearConnector):
            assert problem.sparse_gram is not None
            return self._solve_wide(connector, problem, problem.sparse_gram(), progress)
        assert isinstance(connector, LinearConnector)
        lasso, products = self.problem(connector, problem)
        W, gaps = lasso.solve(lam, self.config.tolerance, self.config.max_sweeps, progress.advance)
        value = squared_error(products, W) * connector.d_target / 2 + lam * W.abs().sum().item()
        left = (products.xy - products.xx @ W).abs().max() / products.xy.abs().max().clamp(min=1e-300)
        if self.config.debias and lam:
            W = lasso.refit(W)
        with torch.no_grad():
            connector.W.copy_(W)
            if connector.b is not None:
                connector.b.copy_(products.y - products.x @ W)
        connector.to(problem.device)
        train_mse = squared_error(products, W)
        n = len(problem.train)
        point = validation_point(connector, problem, problem.validation, n, train_mse)
        point["training_objective"] = train_mse / problem.c + problem.l1_alpha * connector.l1()
        if not lam:  # least squares: no penalty, no dual; what is left of the gradient says how exact it is
            point["relative_gradient"] = left.item()
            note = f"gradient {left:.1e}"
        else:
            # In the units of the objective: error / c + l1_alpha |w|, averaged over the target latents.
            point["duality_gap"] = gaps.sum().item() * 2 / problem.c / connector.d_target
            point["relative_gap"] = gaps.sum().item() / max(value, 1e-300)
            point["worst_gap"] = (gaps / (products.yy / 2).clamp(min=1e-300)).max().item()
            note = f"worst gap {point['worst_gap']:.1e}"
        progress.advance(0, f"validation FVU {point['validation_fvu']:.3f}, {note}")
        progress.point(point)
        return Fit([point], point)

    def _solve_wide(
        self, connector: WideLinearConnector, problem: Problem, products: SparseGram, progress: Progress
    ) -> Fit:
        """`solve` from sparse products, one target after the other."""
        lam = problem.l1_alpha * problem.c / 2
        centred, positive = connector.b is not None, self.config.positive
        lasso = SparseLasso(products, centred, positive)
        if problem.device != "cpu":
            lasso = BatchedLasso(products, centred, positive, problem.device)
        how = (lam, self.config.tolerance, self.config.max_sweeps, self.config.debias)
        if problem.blocks is None or problem.device != "cpu":
            found = lasso.solve(*how, progress.advance)
        else:
            found = problem.blocks().solve(LassoSettings(centred, positive, *how), progress.advance)
        l1 = found.weight.abs().sum().item()
        with torch.no_grad():
            connector.set_edges(found.source, found.target, found.weight.float())
            if connector.b is not None:
                moved = torch.bincount(found.target, found.weight * products.x[found.source], minlength=len(products.y))
                connector.b.copy_(products.y - moved)
        connector.to(problem.device)
        train_mse = found.errors.mean().item()
        point = validation_point(connector, problem, problem.validation, len(problem.train), train_mse)
        point["training_objective"] = train_mse / problem.c + problem.l1_alpha * l1 / connector.d_target
        value = train_mse * connector.d_target / 2 + lam * l1
        point["duality_gap"] = found.gaps.sum().item() * 2 / problem.c / connector.d_target
        point["relative_gap"] = found.gaps.sum().item() / max(value, 1e-300)
        point["worst_gap"] = (found.gaps / (lasso.yy / 2).clamp(min=1e-300)).max().item()
        note = f"validation FVU {point['validation_fvu']:.3f}, worst gap {point['worst_gap']:.1e}"
        progress.advance(0, note)
        progress.point(point)
        return Fit([point], point)

    def products(self, connector: LinearConnector, problem: Problem) -> Gram:
        """What the squared error depends on."""
        products = problem.gram()
        return products.centred() if connector.b is not None else products

    def variant(self, problem: Problem) -> tuple[Any, ...]:
        """What else the products of this solver depend on."""
        return ()

    def problem(self, connector: LinearConnector, problem: Problem) -> tuple[Lasso, Gram]:
        """The problem, and its products; where the last one was the same, with the path that was followed so far."""
        # max_sweeps too: it can cut short a knot, which later penalties start from.
        settings = (type(self).__module__, connector.b is not None, self.config.positive, self.config.max_sweeps)
        name = (problem.gram_name, *settings, *self.variant(problem))
        memory = problem.memory if problem.gram_name else None
        known = None if memory is None else memory.recall(name)
        if known is not None:
            return known
        kind = Lasso if problem.device == "cpu" else DenseLasso
        products = self.products(connector, problem).to(problem.device)
        found = kind(products.xx, products.xy, products.yy, self.config.positive), products
        if memory is not None:
            memory.keep(name, found)
        return found


def squared_error(products: Gram, W: torch.Tensor) -> float:
    """Mean over the training tokens and the target latents of the squared error."""
    return (products.yy - 2 * (W * products.xy).sum(0) + (W * (products.xx @ W)).sum(0)).mean().item()
