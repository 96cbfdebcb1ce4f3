"""Adam with an L1 term, as the original trained its connectors.

Adam with an L1 term makes weights small, never zero: read its edges by magnitude, not by counting non-zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from saelink.config import SolverConfig
from saelink.connectors.base import Connector
from saelink.latents import Rows
from saelink.solvers.base import Fit, Problem, measured
from saelink.solvers.base import Solver as Base
from saelink.store import SaelinkError


class Loss(Enum):
    """What is minimised over the training tokens."""

    mse = "mse"
    matching = "matching"


@dataclass
class Config(SolverConfig):
    """Settings of solver=adam."""

    lr: float = 1e-3
    """Learning rate."""
    lr_decay: float = 0.0
    """Over this last share of the steps the learning rate falls linearly to 0; 0 keeps it constant."""
    batch_tokens: int = 1024
    """Tokens of one step."""
    tokens: int = 2_048_000
    """Training length in tokens; the training split is passed over as often as that takes, reshuffled each time."""
    loss: Loss = Loss.mse
    """mse, or for a prediction relu(z) the matching loss relu(z)^2 - 2yz: convex in z, no output can die."""
    validate_every: int = 256_000
    """Tokens between two points of the validation curve."""
    validation_tokens: int = 20_000
    """Validation tokens that a point of the curve is measured on."""
    patience: int = 0
    """Stop after this many validations without a lower objective, keeping the best weights; 0 never stops."""


class Solver(Base):
    """Minibatch Adam on the squared error; the L1 term's subgradient is added to the gradient."""

    Config = Config

    def check(self, connector: type[Connector], settings: Any) -> None:
        config = self.config
        for name in ("batch_tokens", "tokens", "validate_every", "validation_tokens"):
            if getattr(config, name) < 1:
                raise SaelinkError(f"solver.{name}={getattr(config, name)} must be at least 1")
        if not config.lr > 0:
            raise SaelinkError(f"solver.lr={config.lr} must be above 0")
        if not 0 <= config.lr_decay <= 1:
            raise SaelinkError(f"solver.lr_decay={config.lr_decay} must be between 0 and 1")
        if config.patience < 0:
            raise SaelinkError(f"solver.patience={config.patience} must be at least 0")
        if config.loss is Loss.matching and not connector.relu_output:
            raise SaelinkError(
                f"solver.loss=matching is for predictions relu(z), connector={settings.name} has none; use mse"
            )
        if config.loss is Loss.mse and connector.relu_output and settings.init == "zero":
            raise SaelinkError(
                f"connector.init=zero: relu(0) has no gradient, so connector={settings.name} would never move; "
                "use solver.loss=matching, or connector.init=random or a fitted connector's key"
            )

    def tokens(self, n_training: int) -> int:
        return max(self.config.tokens // self.config.batch_tokens, 1) * self.config.batch_tokens

    def solve(self, connector: Connector, problem: Problem, advance: Callable[[int, str], None]) -> Fit:
        config = self.config
        generator = torch.Generator().manual_seed(problem.seed)
        connector.to(problem.device)
        optimizer = torch.optim.Adam(connector.parameters(), lr=config.lr, fused=True)
        batches = _batches(len(problem.source), config.batch_tokens, generator)
        steps = max(config.tokens // config.batch_tokens, 1)
        per_validation = max(config.validate_every // config.batch_tokens, 1)
        validation = _subset(problem, config.validation_tokens)
        hidden_penalty = connector.hidden_penalty(problem.c)
        history: list[dict[str, float]] = []
        best: tuple[float, dict[str, torch.Tensor]] = (float("inf"), {})
        stale = 0
        error = torch.empty(config.batch_tokens, problem.target.d, device=problem.device)
        train_mse = 0.0  # mean over the steps since the last validation
        for step in range(1, steps + 1):
            chosen = next(batches)
            rows = problem.source.select(chosen).to(problem.device)
            target = problem.target.select(chosen).to(problem.device)
            optimizer.param_groups[0]["lr"] = config.lr * _decay(step, steps, config.lr_decay)
            optimizer.zero_grad(set_to_none=True)
            z, hidden = connector.maps(rows)
            # The squared error's gradient by hand: the target stays sparse, one buffer serves every step.
            error.copy_(z.detach())
            if connector.relu_output:
                error.clamp_(min=0)
            error.view(-1).index_add_(0, target.row_of * target.d + target.indices, target.values, alpha=-1)
            train_mse += torch.dot(error.view(-1), error.view(-1)).item() / error.numel()
            if connector.relu_output and config.loss is Loss.mse:
                error.mul_(z.detach() > 0)  # the matching loss differs by lacking this mask
            error.mul_(2 / (error.numel() * problem.c))
            if hidden is not None and hidden_penalty is not None and problem.l1_alpha:
                weight = problem.l1_alpha * hidden_penalty / len(chosen)
                torch.autograd.backward([z, hidden], [error, torch.full_like(hidden, weight)])
            else:
                z.backward(error)
            self.penalise(connector, problem)
            optimizer.step()
            self.shrink(connector, problem, optimizer)
            note = ""
            if step % per_validation == 0 or step == steps:
                since = (step - 1) % per_validation + 1
                history.append(measured(connector, problem, validation, step * config.batch_tokens, train_mse / since))
                train_mse = 0.0
                note = f"validation FVU {history[-1]['validation_fvu']:.3f}"
                if config.patience:
                    if history[-1]["objective"] < best[0]:
                        weights = {name: tensor.clone() for name, tensor in connector.state_dict().items()}
                        best, stale = (history[-1]["objective"], weights), 0
                    else:
                        stale += 1
            advance(len(chosen), note)
            if config.patience and stale >= config.patience:
                break
        if not config.patience:
            return Fit(history, history[-1])
        connector.load_state_dict(best[1])
        return Fit(history, min(history, key=lambda point: point["objective"]))

    def penalise(self, connector: Connector, problem: Problem) -> None:
        """Before the step: add the L1 term's subgradient to the gradients."""
        with torch.no_grad():
            for weight, scale in connector.penalised() if problem.l1_alpha else ():
                assert weight.grad is not None
                weight.grad.add_(torch.sign(weight), alpha=problem.l1_alpha * scale)

    def shrink(self, connector: Connector, problem: Problem, optimizer: torch.optim.Optimizer) -> None:
        """After the step: nothing for Adam."""
        return


def _decay(step: int, steps: int, share: float) -> float:
    """What the learning rate is multiplied by at this step, counted from 1."""
    left = (steps - step + 1) / max(share * steps, 1)
    return min(left, 1.0)


def _batches(n: int, batch: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Row ids of one step after the other: shuffled passes, a pass's remainder going into the next."""
    rest = torch.empty(0, dtype=torch.int64)
    while True:
        rest = torch.cat([rest, torch.randperm(n, generator=generator)])
        while len(rest) >= batch:
            yield rest[:batch]
            rest = rest[batch:]


def _subset(problem: Problem, n: int) -> tuple[Rows, Rows]:
    """Validation rows evenly spread over the split, the same ones at every point of the curve."""
    total = len(problem.source_validation)
    chosen = torch.linspace(0, total - 1, min(n, total)).long()
    return problem.source_validation.select(chosen), problem.target_validation.select(chosen)
