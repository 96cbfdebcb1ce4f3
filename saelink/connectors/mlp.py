"""The mlp connector: y = relu(x W1 (+ b1)) W2 (+ b2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saelink.config import ConnectorConfig
from saelink.connectors.base import Connector as Base
from saelink.connectors.base import Edges, strongest, uniform
from saelink.latents import Rows, sparse_linear
from saelink.store import SaelinkError


@dataclass
class Config(ConnectorConfig):
    """Settings of connector=mlp."""

    d_hidden: int = 512
    """Number of hidden units."""


class Connector(Base):
    """y = relu(x W1 (+ b1)) W2 (+ b2); W1 [d_source, d_hidden], W2 [d_hidden, d_target].

    The penalty is the mean of both matrices' L1 (each: mean over its outputs of the sum of |weights|).
    """

    Config = Config

    def __init__(self, config: Config, d_source: int, target_ids: torch.Tensor):
        super().__init__(config, d_source, target_ids)
        self.W1 = torch.nn.Parameter(torch.zeros(d_source, config.d_hidden))
        self.W2 = torch.nn.Parameter(torch.zeros(config.d_hidden, self.d_target))
        self.b1 = torch.nn.Parameter(torch.zeros(config.d_hidden)) if self._hidden_bias else None
        self.b2 = torch.nn.Parameter(torch.zeros(self.d_target)) if config.bias else None

    @property
    def _hidden_bias(self) -> bool:
        return self.config.bias

    @classmethod
    def check(cls, config: Config) -> None:
        if config.d_hidden < 1:
            raise SaelinkError(f"connector.d_hidden={config.d_hidden} must be at least 1")

    def randomise(self, generator: torch.Generator) -> None:
        uniform(self.W1, generator)
        uniform(self.W2, generator)

    def maps(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        z = sparse_linear(rows, self.W1)
        hidden = torch.relu(z if self.b1 is None else z + self.b1)
        return hidden @ self.W2 if self.b2 is None else torch.addmm(self.b2, hidden, self.W2), hidden

    def penalised(self) -> list[tuple[torch.nn.Parameter, float]]:
        return [(self.W1, 0.5 / self.config.d_hidden), (self.W2, 0.5 / self.d_target)]

    def edges(self, latent: int, n: int) -> Edges:
        return strongest(self.W2.detach()[:, self.column(latent)], n)

    def hidden_edges(self, unit: int, n: int) -> Edges:
        return strongest(self.W1.detach()[:, unit], n)
