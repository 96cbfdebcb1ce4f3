"""Proximal Adam: every step ends with a soft threshold, so that zeros are zeros and edges can be counted.

The threshold is that of the proximal operator in Adam's own metric, lr * l1_alpha * scale / (sqrt(v) + eps) for a
weight whose gradient has the running second moment v (J. Yun, A. Lozano, E. Yang, "Adaptive Proximal Gradient
Methods for Structured Neural Networks", NeurIPS 2021): with a plain lr * l1_alpha the fixed points would not be
those of the objective. Minibatch noise keeps some weights alive that the exact solution has at zero; the falling
learning rate and the long averages of the gradient are there to keep them few.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saelink.connectors.base import Connector
from saelink.solvers import adam
from saelink.solvers.base import Problem


@dataclass
class Config(adam.Config):
    """Settings of solver=proximal."""

    lr_decay: float = 0.5
    """Over this last share of the steps the learning rate falls linearly to 0; 0 keeps it constant."""


class Solver(adam.Solver):
    """Minibatch Adam on the squared error, then the proximal operator of the L1 term."""

    Config = Config

    def penalise(self, connector: Connector, problem: Problem) -> None:
        return

    def shrink(self, connector: Connector, problem: Problem, optimizer: torch.optim.Optimizer) -> None:
        group = optimizer.param_groups[0]
        with torch.no_grad():
            for weight, scale in connector.penalised() if problem.l1_alpha else ():
                state = optimizer.state[weight]
                correction = 1 - group["betas"][1] ** state["step"].item()
                metric = (state["exp_avg_sq"] / correction).sqrt_().add_(group["eps"])
                threshold = metric.reciprocal_().mul_(group["lr"] * problem.l1_alpha * scale)
                weight.sub_(torch.maximum(torch.minimum(weight, threshold), threshold.neg_()))
