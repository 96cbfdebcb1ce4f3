"""The linear connector: y = x W (+ b)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saelink.config.schema import ConnectorConfig
from saelink.connectors.base import Connector, StrongestEdges, strongest, uniform
from saelink.latents.rows import Rows, sparse_linear


@dataclass
class LinearSettings(ConnectorConfig):
    """Settings of connector=linear."""

    init: str = "zero"
    """zero (the problem is convex, and a source that never fires keeps no accidental edge), random, or a fitted
    connector: a train key, an exported folder, hf://owner/repository."""


class LinearConnector(Connector):
    """y = x W (+ b); W [d_source, d_target], b [d_target]. An edge is an entry of W."""

    Settings = LinearSettings
    default_solver = "exact"

    def __init__(self, config: LinearSettings, d_source: int, target_ids: torch.Tensor):
        super().__init__(config, d_source, target_ids)
        self.W = torch.nn.Parameter(torch.zeros(d_source, self.d_target))
        self.b = torch.nn.Parameter(torch.zeros(self.d_target)) if config.bias else None

    def randomise(self, generator: torch.Generator) -> None:
        uniform(self.W, generator)

    def maps(self, rows: Rows) -> tuple[torch.Tensor, None]:
        z = sparse_linear(rows, self.W)
        return z if self.b is None else z + self.b, None

    def penalised(self) -> list[tuple[torch.nn.Parameter, float]]:
        return [(self.W, 1 / self.d_target)]

    def edges(self, latent: int, n: int) -> StrongestEdges:
        return strongest(self.W.detach()[:, self.column(latent)], n)
