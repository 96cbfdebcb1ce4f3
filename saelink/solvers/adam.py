"""Adam with an L1 term, as the original trained its connectors.

Adam with an L1 term makes weights small, never zero: read its edges by magnitude, not by counting non-zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from saelink import metrics
from saelink.config import SolverConfig
from saelink.connectors.base import Connector
from saelink.latents import Rows
from saelink.solvers.base import Fit, Problem
from saelink.solvers.base import Solver as Base
from saelink.store import SaelinkError


@dataclass
class Config(SolverConfig):
    """Settings of solver=adam."""

    lr: float = 1e-3
    """Learning rate, constant."""
    batch_tokens: int = 1024
    """Tokens of one step."""
    tokens: int = 2_048_000
    """Training length in tokens; the training split is passed over as often as that takes, reshuffled each time."""
    validate_every: int = 256_000
    """Tokens between two points of the validation curve."""
    validation_tokens: int = 20_000
    """Validation tokens that a point of the curve is measured on."""
    patience: int = 0
    """Stop after this many validations without a lower objective, keeping the best weights; 0 never stops."""


class Solver(Base):
    """Minibatch Adam on the squared error; the L1 term's subgradient is added to the gradient."""

    Config = Config

    def check(self) -> None:
        config = self.config
        for name in ("batch_tokens", "tokens", "validate_every", "validation_tokens"):
            if getattr(config, name) < 1:
                raise SaelinkError(f"solver.{name}={getattr(config, name)} must be at least 1")
        if not config.lr > 0:
            raise SaelinkError(f"solver.lr={config.lr} must be above 0")
        if config.patience < 0:
            raise SaelinkError(f"solver.patience={config.patience} must be at least 0")

    def tokens(self, n_training: int) -> int:
        return max(self.config.tokens // self.config.batch_tokens, 1) * self.config.batch_tokens

    def solve(self, connector: Connector, problem: Problem, advance: Callable[[int, str], None]) -> Fit:
        config = self.config
        generator = torch.Generator().manual_seed(problem.seed)
        connector.initialise(generator)
        connector.to(problem.device)
        optimizer = torch.optim.Adam(connector.parameters(), lr=config.lr, fused=True)
        batches = _batches(len(problem.source), config.batch_tokens, generator)
        steps = max(config.tokens // config.batch_tokens, 1)
        per_validation = max(config.validate_every // config.batch_tokens, 1)
        validation = _subset(problem, config.validation_tokens)
        history: list[dict[str, float]] = []
        best: tuple[float, dict[str, torch.Tensor]] = (float("inf"), {})
        stale = 0
        error = torch.empty(config.batch_tokens, problem.target.d, device=problem.device)
        signs = [torch.empty_like(weight) for weight, _ in connector.penalised()]
        train_mse = 0.0  # mean over the steps since the last validation
        for step in range(1, steps + 1):
            chosen = next(batches)
            rows = problem.source.select(chosen).to(problem.device)
            target = problem.target.select(chosen).to(problem.device)
            optimizer.zero_grad(set_to_none=True)
            predicted = connector(rows)
            # The squared error's gradient by hand: the target stays sparse, one buffer serves every step.
            error.copy_(predicted.detach()).view(-1).index_add_(
                0, target.row_of * target.d + target.indices, target.values, alpha=-1
            )
            train_mse += torch.dot(error.view(-1), error.view(-1)).item() / error.numel()
            predicted.backward(error.mul_(2 / (error.numel() * problem.c)))
            with torch.no_grad():
                for (weight, scale), sign in zip(connector.penalised(), signs, strict=True):
                    assert weight.grad is not None
                    weight.grad.add_(torch.sign(weight, out=sign), alpha=problem.l1_alpha * scale)
            optimizer.step()
            note = ""
            if step % per_validation == 0 or step == steps:
                since = (step - 1) % per_validation + 1
                history.append(_measure(connector, problem, validation, step * config.batch_tokens, train_mse / since))
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


def _measure(
    connector: Connector, problem: Problem, validation: tuple[Rows, Rows], tokens: int, train_mse: float
) -> dict[str, float]:
    sums = metrics.Sums(problem.target.d)
    for source, target in zip(metrics.in_steps(validation[0]), metrics.in_steps(validation[1]), strict=True):
        with torch.no_grad():
            sums.add(connector(source.to(problem.device)).cpu(), target)
    l1 = connector.l1()
    mse = sums.mse()
    if not math.isfinite(mse + l1):
        raise SaelinkError(f"solver.lr: the fit diverged within {tokens:,} tokens; use a smaller learning rate")
    return {
        "tokens": tokens,
        "train_mse": train_mse,
        "validation_mse": mse,
        "validation_fvu": sums.fvu(),
        "l1": l1,
        "objective": mse / problem.c + problem.l1_alpha * l1,
        "n_edges": connector.n_edges(),
        "n_edges_above_0.01": connector.n_edges(0.01),
    }
