"""What every connector is: a forward map, its penalised weights and the edges one can read off it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch

from saelink.config import ConnectorConfig
from saelink.latents import Rows


class Edges(NamedTuple):
    """What leads into one unit: its strongest inputs by magnitude."""

    ids: list[int]
    """Latent (or hidden unit) ids, the strongest first."""
    weights: list[float]
    """Their weights, with signs."""


class Connector(torch.nn.Module, ABC):
    """A map from source latents [n, d_source] (sparse rows) to target latents [n, d_target].

    Weights are stored as x @ W takes them: row j of W is what source latent j writes.
    """

    Config: type[Any] = ConnectorConfig

    def __init__(self, config: Any, d_source: int, d_target: int):
        super().__init__()
        self.config = config
        self.d_source = d_source
        self.d_target = d_target

    @classmethod
    def check(cls, config: Any) -> None:
        """Raise SaelinkError for a setting that is out of range; most connectors have none that can be."""
        return

    @abstractmethod
    def initialise(self, generator: torch.Generator) -> None:
        """Fill the weights in place; the same generator state gives the same weights."""

    @abstractmethod
    def forward(self, rows: Rows) -> torch.Tensor:
        """Predicted target latents [n, d_target]."""

    @abstractmethod
    def penalised(self) -> list[tuple[torch.nn.Parameter, float]]:
        """Every weight matrix under the L1 penalty, with what the sum of its |weights| is multiplied by."""

    @abstractmethod
    def edges(self, target: int, n: int) -> Edges:
        """The n strongest edges into a target latent: from source latents, or from hidden units if it has any."""

    def hidden_edges(self, unit: int, n: int) -> Edges | None:
        """The n strongest edges into a hidden unit; None for a connector without hidden units."""
        return None

    def l1(self) -> float:
        """The penalty's value for l1_alpha = 1: mean over output rows of the sum of |weights|."""
        with torch.no_grad():
            return sum(scale * weight.double().abs().sum().item() for weight, scale in self.penalised())

    def n_edges(self, threshold: float = 0.0) -> int:
        """Number of weights with magnitude above `threshold`."""
        with torch.no_grad():
            return sum(int((weight.abs() > threshold).sum()) for weight, _ in self.penalised())


def strongest(column: torch.Tensor, n: int) -> Edges:
    """The n entries of largest magnitude, zeros left out, ties by id."""
    order = column.abs().sort(descending=True, stable=True).indices[:n]
    kept = [int(i) for i in order if column[i] != 0]
    return Edges(kept, [column[i].item() for i in kept])


def uniform(shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Uniform in +-1/sqrt(fan_in) for x @ W, W of `shape` [fan_in, fan_out]: a linear layer's usual start."""
    return (torch.rand(shape, generator=generator) * 2 - 1) / shape[0] ** 0.5
