"""The mlp connector: y = relu(x W1 (+ b1)) W2 (+ b2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saelink.config.schema import ConnectorConfig
from saelink.connectors.base import Connector, SquaredLoss, StrongestEdges, residual, strongest, uniform
from saelink.errors import SaelinkError
from saelink.latents.rows import Rows, column_sums, sparse_linear, sparse_transposed


@dataclass
class MLPSettings(ConnectorConfig):
    """Settings of connector=mlp."""

    d_hidden: int = 512
    """Number of hidden units."""


class MLPConnector(Connector):
    """y = relu(x W1 (+ b1)) W2 (+ b2); W1 [d_source, d_hidden], W2 [d_hidden, d_target].

    The penalty is the mean of both matrices' L1 (each: mean over its outputs of the sum of |weights|).
    """

    Settings = MLPSettings

    def __init__(self, config: MLPSettings, d_source: int, target_ids: torch.Tensor):
        super().__init__(config, d_source, target_ids)
        self.W1 = torch.nn.Parameter(torch.zeros(d_source, config.d_hidden))
        self.W2 = torch.nn.Parameter(torch.zeros(config.d_hidden, self.d_target))
        self.b1 = torch.nn.Parameter(torch.zeros(config.d_hidden)) if self._hidden_bias else None
        self.b2 = torch.nn.Parameter(torch.zeros(self.d_target)) if config.bias else None

    @property
    def n_hidden(self) -> int:
        return self.config.d_hidden

    @property
    def _hidden_bias(self) -> bool:
        return self.config.bias

    @classmethod
    def check(cls, config: MLPSettings) -> None:
        if config.d_hidden < 1:
            raise SaelinkError(f"connector.d_hidden={config.d_hidden} must be at least 1")

    def randomise(self, generator: torch.Generator) -> None:
        uniform(self.W1, generator)
        uniform(self.W2, generator)

    def hidden(self, rows: Rows) -> torch.Tensor:
        """Hidden activations [n, d_hidden]."""
        z = sparse_linear(rows, self.W1)
        return torch.relu(z if self.b1 is None else z + self.b1)

    def maps(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.hidden(rows)
        return hidden @ self.W2 if self.b2 is None else torch.addmm(self.b2, hidden, self.W2), hidden

    def backward(self, rows: Rows, target: Rows, loss: SquaredLoss) -> torch.Tensor:
        """As the base class, without autograd; where it is less work also without ever forming the prediction.

        With hidden activations H, z = H W2 and sparse targets Y the gradient in W2 is H'H W2 - H'Y and that in H is
        H W2 W2' - Y W2', and the squared error is |z|^2 - 2 <z, Y> + |Y|^2: products of size d_hidden instead of
        d_target (P. Vincent, A. de Brebisson, X. Bouthillier, "Efficient exact gradient update for training deep
        networks with very large sparse targets", NeurIPS 2015).
        """
        W1, W2, b1, b2 = self.W1.detach(), self.W2.detach(), self.b1, self.b2
        pre = sparse_linear(rows, W1)
        if b1 is not None:
            pre += b1.detach()
        hidden = torch.relu(pre)
        n, d_hidden, d_target = len(rows), self.config.d_hidden, self.d_target
        if self.relu_output or 2 * d_hidden * (n + d_target) > 3 * n * d_target:
            z = hidden @ W2 if b2 is None else torch.addmm(b2.detach(), hidden, W2)
            error, total = residual(z, target, loss, self.relu_output)
            self.W2.grad = hidden.T @ error
            d_hidden_acts = error @ W2.T
            d_b2 = error.sum(0)
        else:
            # W2 and its gradient the other way round: the sparse products come out so, and rows are read in one piece.
            means, W2_T = hidden.sum(0), W2.T.contiguous()
            to_W2_T = W2_T @ (hidden.T @ hidden)
            square = torch.dot(to_W2_T.view(-1), W2_T.view(-1))
            read = sparse_linear(target, W2_T)
            cross = torch.dot(read.view(-1), hidden.view(-1))
            d_hidden_acts = torch.addmm(read, hidden, W2 @ W2_T, beta=-1)
            to_W2_T -= sparse_transposed(target, hidden)
            d_b2 = means @ W2 - column_sums(target)
            if b2 is not None:
                b = b2.detach()
                square += 2 * torch.dot(means @ W2, b) + n * torch.dot(b, b)
                cross += torch.dot(column_sums(target), b)
                to_W2_T.addr_(b, means)
                d_hidden_acts += W2 @ b
                d_b2 += n * b
            total = square - 2 * cross + target.values.square().sum()
            self.W2.grad = to_W2_T.mul_(loss.scale).T.contiguous()
            d_hidden_acts *= loss.scale
            d_b2 *= loss.scale
        if loss.hidden:
            d_hidden_acts += loss.hidden
        d_pre = d_hidden_acts.mul_(pre > 0)
        self.W1.grad = sparse_transposed(rows, d_pre)
        if b1 is not None:
            b1.grad = d_pre.sum(0)
        if b2 is not None:
            b2.grad = d_b2
        return total

    def penalised(self) -> list[tuple[torch.nn.Parameter, float]]:
        return [(self.W1, 0.5 / self.config.d_hidden), (self.W2, 0.5 / self.d_target)]

    def edges(self, latent: int, n: int) -> StrongestEdges:
        return strongest(self.W2.detach()[:, self.column(latent)], n)

    def hidden_edges(self, unit: int, n: int) -> StrongestEdges:
        return strongest(self.W1.detach()[:, unit], n)
