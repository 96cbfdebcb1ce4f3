"""The linear connector: y = x W (+ b)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saelink.config import ConnectorConfig
from saelink.connectors.base import Connector as Base
from saelink.connectors.base import Edges, strongest
from saelink.latents import Rows, sparse_linear


@dataclass
class Config(ConnectorConfig):
    """Settings of connector=linear."""

    bias: bool = False
    """Add a constant to every target latent."""


class Connector(Base):
    """y = x W (+ b); W [d_source, d_target], b [d_target]. An edge is an entry of W."""

    Config = Config

    def __init__(self, config: Config, d_source: int, d_target: int):
        super().__init__(config, d_source, d_target)
        self.W = torch.nn.Parameter(torch.zeros(d_source, d_target))
        self.b = torch.nn.Parameter(torch.zeros(d_target)) if config.bias else None

    def initialise(self, generator: torch.Generator) -> None:
        """Zeros: the problem is convex, and a source that never fires keeps no accidental edge."""
        with torch.no_grad():
            self.W.zero_()

    def forward(self, rows: Rows) -> torch.Tensor:
        y = sparse_linear(rows, self.W)
        return y if self.b is None else y + self.b

    def penalised(self) -> list[tuple[torch.nn.Parameter, float]]:
        return [(self.W, 1 / self.d_target)]

    def edges(self, target: int, n: int) -> Edges:
        return strongest(self.W.detach()[:, target], n)
