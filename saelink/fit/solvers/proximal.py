"""Proximal Adam: every step ends with a soft threshold, so that zeros are zeros and edges can be counted.

The threshold is that of the proximal operator in Adam's own metric, lr * l1_alpha * scale / (sqrt(v) + eps) for a
weight whose gradient has the running second moment v (J. Yun, A. Lozano, E. Yang, "Adaptive Proximal Gradient
Methods for Structured Neural Networks", NeurIPS 2021): with a plain lr * l1_alpha the fixed points would not be
those of the objective. Minibatch noise keeps some weights alive that the exact solution has at zero; the falling
learning rate is there to keep them few. (One threshold every four steps, four times as wide, was tried: cheaper, but
it leaves more of them.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saelink.connectors.base import Connector
from saelink.fit.solvers.adam import AdamSettings, AdamSolver
from saelink.fit.solvers.base import Problem


@dataclass
class ProximalSettings(AdamSettings):
    """Settings of solver=proximal."""

    lr_decay: float = 0.5
    """Over this last share of the steps the learning rate falls linearly to 0; 0 keeps it constant."""


class ProximalSolver(AdamSolver):
    """Minibatch Adam on the squared error, then the proximal operator of the L1 term."""

    Settings = ProximalSettings
    proximal = True

    def penalise(self, connector: Connector, problem: Problem) -> None:
        return

    def shrink(self, connector: Connector, problem: Problem, optimizer: torch.optim.Optimizer) -> None:
        group = optimizer.param_groups[0]
        with torch.no_grad():
            for weight, scale in connector.penalised() if problem.l1_alpha else ():
                if not weight.requires_grad:
                    continue
                state = optimizer.state[weight]
                correction = 1 - group["betas"][1] ** state["step"].item()
                threshold = state["exp_avg_sq"].div(correction).sqrt_().add_(group["eps"]).reciprocal_()
                threshold.mul_(group["lr"] * problem.l1_alpha * scale)
                weight.sub_(torch.minimum(weight, threshold).clamp_min_(threshold.neg_()))
