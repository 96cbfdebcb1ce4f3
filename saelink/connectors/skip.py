"""The skip connector: y = x W + relu(x W1 (+ b1)) W2 (+ b2), a linear map and a small mlp for what it leaves over.

Its linear part says directly which sources a target follows; a target without an edge from a hidden unit is linear.
Fit it by solver=readout, which solves all that leads into the targets exactly, beside the hidden units it has found.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saelink.connectors.base import SquaredLoss, StrongestEdges, residual, strongest
from saelink.connectors.mlp import MLPConnector, MLPSettings
from saelink.latents.rows import Rows, sparse_linear, sparse_transposed


@dataclass
class SkipSettings(MLPSettings):
    """Settings of connector=skip."""

    d_hidden: int = 256
    """Number of hidden units."""


class SkipConnector(MLPConnector):
    """y = x W + relu(x W1 (+ b1)) W2 (+ b2); W [d_source, d_target], W1 [d_source, d_hidden], W2 [d_hidden, d_target].

    Every weight has the same price: the penalty is the sum of all |weights| over the number of targets. (At mlp's
    prices, means over outputs of each matrix, a weight into a few hidden units would cost many times one into a target,
    and one out of them half of it.)
    """

    Settings = SkipSettings
    default_solver = "readout"

    def __init__(self, config: SkipSettings, d_source: int, target_ids: torch.Tensor):
        super().__init__(config, d_source, target_ids)
        self.W = torch.nn.Parameter(torch.zeros(d_source, self.d_target))

    @property
    def direct(self) -> int:
        return self.d_source

    def randomise(self, generator: torch.Generator) -> None:
        super().randomise(generator)
        with torch.no_grad():
            self.W.zero_()  # as the linear connector starts: a source that never fires keeps no accidental edge

    def maps(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        z, hidden = super().maps(rows)
        return z + sparse_linear(rows, self.W), hidden

    def backward(self, rows: Rows, target: Rows, loss: SquaredLoss) -> torch.Tensor:
        """As the base class, without autograd: the linear part needs the prediction, which mlp does without."""
        with torch.no_grad():
            z, hidden = self.maps(rows)
            error, total = residual(z, target, loss, self.relu_output)
            to_hidden = torch.addmm(hidden.new_full((), loss.hidden), error, self.W2.T).mul_(hidden > 0)
            self.W.grad, self.W1.grad = sparse_transposed(rows, error), sparse_transposed(rows, to_hidden)
            self.W2.grad = hidden.T @ error
            if self.b1 is not None:
                self.b1.grad = to_hidden.sum(0)
            if self.b2 is not None:
                self.b2.grad = error.sum(0)
        return total

    def penalised(self) -> list[tuple[torch.nn.Parameter, float]]:
        return [
            (self.W1, 1 / self.d_target),
            (self.W, 1 / self.d_target),
            (self.W2, 1 / self.d_target),
        ]

    def edges(self, latent: int, n: int) -> StrongestEdges:
        return strongest(self.output_weight()[:, self.column(latent)], n)

    def output_weight(self) -> torch.Tensor:
        return torch.cat([self.W.detach(), self.W2.detach()])

    def rescale(self, sources: torch.Tensor, target: float) -> None:
        super().rescale(sources, target)
        self.W.mul_(sources[:, None].to(self.W)).mul_(target)
