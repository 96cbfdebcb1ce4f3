"""What every solver gets and gives back, and the figures that all of them record."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple

import torch

from saelink import memory
from saelink.config.schema import SolverConfig
from saelink.connectors.base import Connector
from saelink.errors import SaelinkError
from saelink.fit.lasso.blocks import TargetBlocks
from saelink.fit.products.dense import Gram
from saelink.fit.products.matrix import SparseGram
from saelink.interventions.measure import Changes
from saelink.interventions.pairs import Effects
from saelink.job import Memory
from saelink.latents.metrics import ErrorSums, in_steps
from saelink.latents.split import Split, Tokens
from saelink.progress import Progress


class Problem(NamedTuple):
    """Minimise (1/N) sum_n (y_n - f(x_n))^2 / c + l1_alpha |w|_1, averaged over the target latents.

    A connector with a hidden penalty adds l1_alpha times its weight times the mean l1 norm of its hidden activations.
    """

    train: Split
    """The N training tokens in the units the connector sees, with the target latents that it explains."""
    validation: Split
    l1_alpha: float
    c: float
    """The normaliser of the squared error."""
    seed: int
    """Order of the tokens."""
    device: str
    gram: Callable[[], Gram]
    """The training tokens' products of source and target latents, for solvers that need no more than these."""
    gram_name: str = ""
    """What these products are known by; problems of one name have the same ones. Empty: of this problem alone."""
    effects: Callable[[], Effects] | None = None
    """What ablating sources does on training documents, the targets that are explained; for solvers that use it."""
    changes: Callable[[], Changes] | None = None
    """What each of these ablations changes."""
    effects_name: str = ""
    """What these effects are known by."""
    sparse_gram: Callable[[], SparseGram] | None = None
    """The same products where the latents are too many for dense ones; None where they are not."""
    blocks: Callable[[], TargetBlocks] | None = None
    """Who solves them from there, block by block; None for all of them here."""
    memory: Memory | None = None
    """Where a path of penalties is kept for the next problem."""


class Fit(NamedTuple):
    """How a fit went."""

    history: list[dict[str, float]]
    """One entry per validation: tokens seen and what was measured then."""
    final: dict[str, float]
    """The entry that belongs to the weights the connector is left with."""


class Work(NamedTuple):
    """How much a solver will report to its `Progress`."""

    total: int
    unit: str
    """What is counted: tokens, or targets."""


class Solver(ABC):
    """Finds a connector's weights, in place, from where `initialise` has put them."""

    Settings: type[Any] = SolverConfig

    seeded: ClassVar[bool] = True
    """Whether the seed changes the weights; where it does not, all seeds share one artifact."""

    uses_gram: ClassVar[bool] = False
    """Whether it fits from the products of the training tokens."""

    @property
    def goes_wide(self) -> bool:
        """Whether it can fit from sparse products, of more latents than dense ones can hold."""
        return False

    uses_effects: ClassVar[bool] = False
    """Whether it fits to what ablating sources in the model does."""

    def __init__(self, config: Any):
        self.config = config

    @abstractmethod
    def check(self, connector: type[Connector], settings: Any) -> None:
        """Raise SaelinkError for a setting out of range and for a connector (and settings) that it can't fit."""

    @abstractmethod
    def solve(self, connector: Connector, problem: Problem, progress: Progress) -> Fit:
        """Fit `connector`; `progress` is told how it goes: units of `work` done, points of the curve as they are made.

        The same problem gives the same weights.
        """

    def memory(self, shape: memory.Shape) -> float:
        """Bytes that fitting a connector of this shape takes, beside the tokens' latents."""
        return memory.by_steps(shape, getattr(self.config, "batch_tokens", 1024))

    @abstractmethod
    def work(self, n_training: int, n_targets: int) -> Work:
        """What `solve` will report for so many training tokens and target latents."""


def validation_point(
    connector: Connector, problem: Problem, validation: Iterable[Tokens], tokens: int, train_mse: float
) -> dict[str, float]:
    """One point of the curve, on the given validation tokens. Raises SaelinkError when the weights have diverged."""
    sums = ErrorSums(connector.d_target)
    hidden_l1 = 0.0
    for piece in validation:
        for source, target in in_steps(piece.source, piece.target):
            sparse = connector.sparse_prediction(source)
            if sparse is not None:
                sums.add_sparse(*sparse, target)
                continue
            with torch.no_grad():
                z, hidden = connector.maps(source.to(problem.device))
                sums.add((torch.relu(z) if connector.relu_output else z).cpu(), target)
                hidden_l1 += hidden.double().sum().item() if hidden is not None else 0.0
    l1 = connector.l1()
    mse = sums.mse()
    if not math.isfinite(mse + l1):
        raise SaelinkError(f"solver.lr: the fit diverged within {tokens:,} tokens; use a smaller learning rate")
    penalty = l1 + (connector.hidden_penalty(problem.c) or 0.0) * hidden_l1 / sums.n
    return {
        "tokens": tokens,
        "train_mse": train_mse,
        "validation_mse": mse,
        "validation_fvu": sums.fvu(),
        "l1": l1,
        "objective": mse / problem.c + problem.l1_alpha * penalty,
        "zero_objective": sums.energy() / problem.c,
        "n_edges": connector.n_edges(),
        "n_edges_above_0.01": connector.n_edges(0.01),
    }
