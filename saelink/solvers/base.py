"""What every solver gets and gives back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from saelink.config import SolverConfig
from saelink.connectors.base import Connector
from saelink.latents import Rows


class Problem(NamedTuple):
    """Minimise (1/N) sum_n (y_n - f(x_n))^2 / c + l1_alpha |w|_1, averaged over the target latents."""

    source: Rows
    """Training rows of the source latents [N, d_source], in the units the connector sees."""
    target: Rows
    """The same tokens' target latents [N, d_target]."""
    source_validation: Rows
    target_validation: Rows
    l1_alpha: float
    c: float
    """The normaliser of the squared error."""
    seed: int
    device: str


class Fit(NamedTuple):
    """How a fit went."""

    history: list[dict[str, float]]
    """One entry per validation: tokens seen and what was measured then."""
    final: dict[str, float]
    """The entry that belongs to the weights the connector is left with."""


class Solver(ABC):
    """Finds a connector's weights, in place."""

    Config: type[Any] = SolverConfig

    def __init__(self, config: Any):
        self.config = config

    @abstractmethod
    def check(self) -> None:
        """Raise SaelinkError for a setting that is out of range."""

    @abstractmethod
    def solve(self, connector: Connector, problem: Problem, advance: Callable[[int, str], None]) -> Fit:
        """Fit `connector`; `advance(tokens, note)` reports progress. The same problem gives the same weights."""

    @abstractmethod
    def tokens(self, n_training: int) -> int:
        """How many tokens `solve` will report to `advance`."""
