"""A hidden layer by proximal Adam, and all that is read out of it exactly.

Given its hidden units a connector is linear in what its output matrix reads: the source latents (skip), hidden
activations (mlp), or both. With these as columns F its best weights are a lasso's,

    minimise  (1/N) sum_n |y_n - F_n w|^2 / c + l1_alpha sum_j s_j |w_j|

solved for every target from the products F'F and F'y, with the duality gap as certificate; s_j is what the connector
multiplies each weight of its penalty by (a column divided by s_j has the plain penalty). The hidden layer itself is
found by proximal Adam on the whole objective; a skip connector's linear part starts at the linear lasso, so that what
the hidden units learn is for what that leaves over.
"""

# Matrices have capital names.
# pyright: reportConstantRedefinition=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from saelink import memory
from saelink.connectors.base import Connector
from saelink.connectors.mlp import MLPConnector
from saelink.errors import SaelinkError
from saelink.fit.lasso.coordinate import Lasso
from saelink.fit.lasso.dense import DenseLasso
from saelink.fit.products.dense import Gram, need_dense_memory
from saelink.fit.solvers.base import Fit, Problem, validation_point
from saelink.fit.solvers.exact import squared_error
from saelink.fit.solvers.proximal import ProximalSettings, ProximalSolver
from saelink.latents.metrics import in_steps
from saelink.latents.rows import sparse_transposed
from saelink.progress import Progress

STEP = 8192
"""Tokens whose hidden activations are in memory at a time."""


@dataclass
class ReadoutSettings(ProximalSettings):
    """Settings of solver=readout."""

    lr: float = 3e-3
    """Learning rate; at 1e-3 hidden units that help few targets die under the penalty before they have learnt to."""
    tokens: int = 614_400
    """Training length of the hidden layer in tokens."""
    unpenalised: float = 0.5
    """connector=skip: over this first share of it the hidden units learn without a penalty what the linear part, held
    at the lasso's, leaves over; under the penalty from the start most die before they have learnt anything."""
    tolerance: float = 1e-4
    """Duality gap allowed to every target latent, as a share of its objective with all weights at zero."""
    max_sweeps: int = 20_000
    """Coordinate descent leaves a target latent after this many sweeps; the gap is recorded either way."""


class ReadoutSolver(ProximalSolver):
    """Proximal Adam for the hidden layer, the lasso for what is read out of it."""

    Settings = ReadoutSettings

    uses_gram = True

    def check(self, connector: type[Connector], settings: Any) -> None:
        known = issubclass(connector, MLPConnector) and connector.hidden_penalty is MLPConnector.hidden_penalty
        if not known or connector.relu_output:
            raise SaelinkError(
                f"solver=readout fits connectors with unpenalised hidden units and a linear output, connector="
                f"{settings.name} is none; use skip or mlp, or another solver"
            )
        super().check(connector, settings)
        if self.config.max_sweeps < 1:
            raise SaelinkError(f"solver.max_sweeps={self.config.max_sweeps} must be at least 1")
        if not 0 <= self.config.unpenalised < 1:
            raise SaelinkError(f"solver.unpenalised={self.config.unpenalised} must be at least 0 and below 1")
        if not self.config.tolerance > 0:
            raise SaelinkError(f"solver.tolerance={self.config.tolerance} must be above 0")
        if self.config.path_tokens:
            raise SaelinkError("solver.path_tokens is for adam and proximal; readout fits each penalty by itself")

    def memory(self, shape: memory.Shape) -> float:
        return max(memory.exact(shape.direct + shape.hidden, shape.d_target), super().memory(shape))

    def solve(self, connector: Connector, problem: Problem, progress: Progress) -> Fit:
        assert isinstance(connector, MLPConnector)
        history: list[dict[str, float]] = []

        def trained(tokens: int, problem: Problem) -> None:
            before = int(history[-1]["tokens"]) if history else 0
            part = type(self)(replace(self.config, tokens=tokens))
            found = super(ReadoutSolver, part).solve(connector, problem, _After(progress, before))
            history.extend({**entry, "tokens": entry["tokens"] + before} for entry in found.history)

        alone = int(self.config.tokens * self.config.unpenalised) if problem.l1_alpha else 0
        if connector.direct and self.starts_anew(connector):
            self._read_out(connector, problem, with_hidden=False)
            if alone >= self.config.batch_tokens:
                linear = [weight for weight, _ in connector.penalised()[1:-1]]
                for weight in linear:
                    weight.requires_grad_(False)
                trained(alone, problem._replace(l1_alpha=0.0))
                for weight in linear:
                    weight.requires_grad_(True)
        done = int(history[-1]["tokens"]) if history else 0
        trained(max(self.config.tokens - done, 1), problem._replace(seed=problem.seed + 1_000_003 * bool(done)))
        connector.to("cpu")
        certificate = self._read_out(connector, problem, with_hidden=True)
        connector.to(problem.device)
        train_mse = certificate.pop("train_mse")
        point = validation_point(connector, problem, problem.validation, int(history[-1]["tokens"]), train_mse)
        point |= certificate
        point["training_objective"] = train_mse / problem.c + problem.l1_alpha * connector.l1()
        progress.point(point)
        return Fit([*history, point], point)

    def starts_anew(self, connector: MLPConnector) -> bool:
        """Whether its linear part is not there yet; a warm start has one."""
        return not any(bool(weight.any()) for weight, _ in connector.penalised()[1:-1])

    def _read_out(self, connector: MLPConnector, problem: Problem, with_hidden: bool) -> dict[str, float]:
        """Set the output matrix, and the bias, to the optimum for these hidden units; how far from it they can be."""
        products = features(connector, problem, with_hidden)
        weights = connector.penalised()[1:] if with_hidden else connector.penalised()[1:-1]
        scale = torch.cat([torch.full((len(weight),), s * connector.d_target) for weight, s in weights]).double()
        b = connector.b2
        centred = products.centred() if b is not None else products
        centred = centred._replace(
            xx=centred.xx / scale[:, None] / scale, xy=centred.xy / scale[:, None], x=centred.x / scale
        )
        kind = Lasso if problem.device == "cpu" else DenseLasso
        moved = centred.to(problem.device)
        lam = problem.l1_alpha * problem.c / 2
        lasso = kind(moved.xx, moved.xy, moved.yy)
        W, gaps = lasso.solve(lam, self.config.tolerance, self.config.max_sweeps)
        value = squared_error(moved, W) * connector.d_target / 2 + lam * W.abs().sum().item()
        result = {"train_mse": squared_error(moved, W)}
        if lam:
            result |= {
                "duality_gap": gaps.sum().item() * 2 / problem.c / connector.d_target,
                "readout_gap": gaps.sum().item() / max(value, 1e-300),
                "worst_gap": (gaps / (moved.yy / 2).clamp(min=1e-300)).max().item(),
            }
        W = W.cpu()
        with torch.no_grad():
            if b is not None:
                b.copy_(centred.y - centred.x @ W)
            parts = torch.split(W / scale[:, None], [len(w) for w, _ in weights])
            for (weight, _), part in zip(weights, parts, strict=True):
                weight.copy_(part)
        return result


class _After(Progress):
    """The progress of a second part: its points come after the tokens of the first."""

    def __init__(self, whole: Progress, tokens: int):
        self._whole, self._tokens = whole, tokens

    def advance(self, units: int, note: str = "") -> None:
        self._whole.advance(units, note)

    def point(self, figures: Mapping[str, float]) -> None:
        self._whole.point({**figures, "tokens": figures["tokens"] + self._tokens})


def features(connector: MLPConnector, problem: Problem, with_hidden: bool = True) -> Gram:
    """The products of what the connector's output matrix reads, over the training tokens; targets as they are.

    All in float64: a hidden unit that never cuts off is a sum of sources, and with the rounding of float32 products of
    such would not be those of any data, and the certificate none.
    """
    plain = problem.gram()
    if not with_hidden:
        return plain
    h = connector.n_hidden
    need_dense_memory(connector.d_source + h, connector.d_target, "readout")
    hh, xh = torch.zeros(h, h, dtype=torch.float64), torch.zeros(connector.d_source, h, dtype=torch.float64)
    hy, sums = torch.zeros(h, connector.d_target, dtype=torch.float64), torch.zeros(h, dtype=torch.float64)
    n = 0
    for piece in problem.train:
        for source, target in in_steps(piece.source, piece.target, step=STEP):
            with torch.no_grad():
                hidden = connector.hidden(source).double()
            hh += hidden.T @ hidden
            hy += sparse_transposed(target, hidden).T
            if connector.direct:
                xh += sparse_transposed(source, hidden)
            sums += hidden.sum(0)
            n += len(source)
    hh, xh, hy, mean = hh / n, xh / n, hy / n, sums / n
    if not connector.direct:
        return plain._replace(xx=hh, xy=hy, x=mean)
    return plain._replace(
        xx=torch.cat([torch.cat([plain.xx, xh], 1), torch.cat([xh.T, hh], 1)]),
        xy=torch.cat([plain.xy, hy]),
        x=torch.cat([plain.x, mean]),
    )
