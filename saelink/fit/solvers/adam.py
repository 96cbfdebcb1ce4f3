"""Adam with an L1 term, as the original trained its connectors.

Adam with an L1 term makes weights small, never zero: read its edges by magnitude, not by counting non-zeros.
"""

# torch leaves arguments of some of its methods without types. Matrices have capital names.
# pyright: reportUnknownMemberType=false, reportConstantRedefinition=false

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import numpy as np
import torch

from saelink.config.schema import SolverConfig
from saelink.connectors.base import Connector, SquaredLoss
from saelink.connectors.linear import LinearConnector
from saelink.errors import SaelinkError
from saelink.fit.solvers.base import Fit, Problem, Solver, Work, validation_point
from saelink.kernels import cuda
from saelink.latents.rows import Rows
from saelink.progress import Progress

CHUNK_TOKENS = 65_536
"""Tokens whose steps the columns of a tile take in one go."""


class Loss(Enum):
    """What is minimised over the training tokens."""

    mse = "mse"
    matching = "matching"


class Products(Enum):
    """What the dense matrix products round their factors to; sums, weights and moments stay float32."""

    float32 = "float32"
    bfloat16 = "bfloat16"


@dataclass
class AdamSettings(SolverConfig):
    """Settings of solver=adam."""

    lr: float = 1e-3
    """Learning rate."""
    lr_decay: float = 0.0
    """Over this last share of the steps the learning rate falls linearly to 0; 0 keeps it constant."""
    batch_tokens: int = 1024
    """Tokens of one step."""
    tokens: int = 2_048_000
    """Training length in tokens; the training split is passed over as often as that takes, reshuffled each time."""
    path_tokens: int = 0
    """Given l1_alpha=[...]: the training length of every penalty but the smallest, each starting at the weights of the
    next smaller one where these are better than none at all; 0 fits each by itself."""
    loss: Loss = Loss.mse
    """mse, or for a prediction relu(z) the matching loss relu(z)^2 - 2yz: convex in z, no output can die."""
    products: Products = Products.float32
    """float32, or bfloat16 for the dense products of a connector with hidden units: faster where the processor has
    them (AMX, tensor cores), at 1e-2 of rounding in each."""
    validate_every: int = 256_000
    """Tokens between two points of the validation curve."""
    validation_tokens: int = 20_000
    """Validation tokens that a point of the curve is measured on."""
    patience: int = 0
    """Stop after this many validations without a lower objective, keeping the best weights; 0 never stops."""


class AdamSolver(Solver):
    """Minibatch Adam on the squared error; the L1 term's subgradient is added to the gradient."""

    Settings = AdamSettings
    proximal: ClassVar[bool] = False
    """Whether a soft threshold after each step takes the place of the penalty's subgradient."""

    def check(self, connector: type[Connector], settings: Any) -> None:
        config = self.config
        for name in ("batch_tokens", "tokens", "validate_every", "validation_tokens"):
            if getattr(config, name) < 1:
                raise SaelinkError(f"solver.{name}={getattr(config, name)} must be at least 1")
        if not config.lr > 0:
            raise SaelinkError(f"solver.lr={config.lr} must be above 0")
        if not 0 <= config.lr_decay <= 1:
            raise SaelinkError(f"solver.lr_decay={config.lr_decay} must be between 0 and 1")
        if config.path_tokens < 0:
            raise SaelinkError(f"solver.path_tokens={config.path_tokens} must be at least 0")
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

    def work(self, n_training: int, n_targets: int) -> Work:
        return Work(max(self.config.tokens // self.config.batch_tokens, 1) * self.config.batch_tokens, "tokens")

    def solve(self, connector: Connector, problem: Problem, progress: Progress) -> Fit:
        config = self.config
        connector.to(problem.device)
        batch = config.batch_tokens
        steps = max(config.tokens // batch, 1)
        per_validation = max(config.validate_every // batch, 1)
        per_chunk = max(1, min(CHUNK_TOKENS, len(problem.train)) // batch)
        validation = problem.validation.spread(config.validation_tokens)
        kind = Columns if Columns.fits(connector, problem.device) else Steps
        worker = kind(self, connector, problem)
        generator = torch.Generator().manual_seed(problem.seed)
        history: list[dict[str, float]] = []
        best: tuple[float, dict[str, torch.Tensor]] = (float("inf"), {})
        stale, step = 0, 0
        train_mse = 0.0  # summed over the steps since the last validation
        for source, target in problem.train.shuffled(batch * per_chunk, generator):
            first = 0
            while first < per_chunk and step < steps:
                until = min(per_chunk - first, per_validation - step % per_validation, steps - step)
                rates = [config.lr * _decay(at, steps, config.lr_decay) for at in range(step + 1, step + until + 1)]
                chosen = torch.arange(first * batch, (first + until) * batch)
                with rounded(config.products):
                    errors = worker.run(source.select(chosen), target.select(chosen), rates, step)
                train_mse += errors / (batch * connector.d_target)
                first, step = first + until, step + until
                if self.proximal and connector.stuck():
                    steps = step
                note = ""
                if step % per_validation == 0 or step == steps:
                    worker.write_back()
                    since = (step - 1) % per_validation + 1
                    history.append(validation_point(connector, problem, validation, step * batch, train_mse / since))
                    progress.point(history[-1])
                    train_mse = 0.0
                    note = f"validation FVU {history[-1]['validation_fvu']:.3f}"
                    if history[-1]["objective"] < best[0]:
                        best, stale = (history[-1]["objective"], _copy(connector) if config.patience else {}), 0
                    else:
                        stale += 1
                progress.advance(len(chosen), note)
                if config.patience and stale >= config.patience:
                    step = steps
            if step >= steps:
                break
        if not config.patience:
            return Fit(history, history[-1])
        connector.load_state_dict(best[1])
        return Fit(history, min(history, key=lambda point: point["objective"]))

    def penalise(self, connector: Connector, problem: Problem) -> None:
        """Before the step: add the L1 term's subgradient to the gradients."""
        with torch.no_grad():
            for weight, scale in connector.penalised() if problem.l1_alpha else ():
                if not weight.requires_grad:
                    continue
                assert weight.grad is not None
                weight.grad.add_(torch.sign(weight), alpha=problem.l1_alpha * scale)

    def shrink(self, connector: Connector, problem: Problem, optimizer: torch.optim.Optimizer) -> None:
        """After the step: nothing for Adam."""
        return


@contextmanager
def rounded(products: Products) -> Generator[None]:
    """Let torch's float32 products round their factors to bfloat16 inside."""
    before = torch.get_float32_matmul_precision()
    if products is Products.bfloat16:
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _decay(step: int, steps: int, share: float) -> float:
    """What the learning rate is multiplied by at this step, counted from 1."""
    left = (steps - step + 1) / max(share * steps, 1)
    return min(left, 1.0)


def _copy(connector: Connector) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in connector.state_dict().items()}


class Steps:
    """Any connector, step by step in torch."""

    def __init__(self, solver: AdamSolver, connector: Connector, problem: Problem):
        self.solver, self.connector, self.problem = solver, connector, problem
        parameters = [parameter for parameter in connector.parameters() if parameter.requires_grad]
        # On a GPU the step and the penalty of what is penalised are one kernel; the rest is left to torch.
        self.in_one: list[tuple[torch.nn.Parameter, float, torch.Tensor, torch.Tensor]] = []
        if cuda.usable(parameters[0]):
            for weight, scale in connector.penalised():
                if not weight.requires_grad:
                    continue
                moments = torch.zeros_like(weight), torch.zeros_like(weight)
                self.in_one.append((weight, problem.l1_alpha * scale, *moments))
            parameters = [p for p in parameters if all(p is not weight for weight, *_ in self.in_one)]
        self.optimizer = torch.optim.Adam(parameters, lr=solver.config.lr, fused=True) if parameters else None
        self.hidden_penalty = connector.hidden_penalty(problem.c) or 0.0

    def run(self, source: Rows, target: Rows, rates: list[float], done: int) -> float:
        """Steps at the given learning rates over these rows; the sum of squared errors, each at its step's start."""
        problem, batch = self.problem, self.solver.config.batch_tokens
        loss = SquaredLoss(
            scale=2 / (batch * self.connector.d_target * problem.c),
            matching=self.solver.config.loss is Loss.matching,
            hidden=problem.l1_alpha * self.hidden_penalty / batch,
        )
        total = torch.zeros((), dtype=torch.float64, device=problem.device)
        for step, rate in enumerate(rates):
            chosen = torch.arange(step * batch, (step + 1) * batch)
            rows = source.select(chosen).to(problem.device)
            total += self.connector.backward(rows, target.select(chosen).to(problem.device), loss)
            self._update(rate, done + step + 1)
        return total.item()

    def _update(self, rate: float, step: int) -> None:
        for weight, l1, first, second in self.in_one:
            assert weight.grad is not None
            gradient, proximal = weight.grad.contiguous(), self.solver.proximal
            with torch.no_grad():
                cuda.adam_step(weight, gradient, first, second, step=step, lr=rate, l1=l1, proximal=proximal)
        if not self.in_one:
            self.solver.penalise(self.connector, self.problem)
        if self.optimizer is not None:
            self.optimizer.param_groups[0]["lr"] = rate
            self.optimizer.step()
        if not self.in_one:
            assert self.optimizer is not None
            self.solver.shrink(self.connector, self.problem, self.optimizer)

    def write_back(self) -> None:
        """Leave the weights in the connector, where they are anyway."""
        return


class Columns:
    """A map x W (+ b) on the CPU: the same steps by kernels.columns, a tile of target columns at a time."""

    @staticmethod
    def fits(connector: Connector, device: str) -> bool:
        """Whether the connector is such a map, on such a device."""
        return isinstance(connector, LinearConnector) and device == "cpu"

    def __init__(self, solver: AdamSolver, connector: Connector, problem: Problem):
        from saelink.kernels.columns import TILE

        assert isinstance(connector, LinearConnector)
        self.solver, self.connector, self.problem = solver, connector, problem
        p, t = connector.d_source, connector.d_target
        self.tiles = -(-t // TILE)
        self.W = torch.nn.functional.pad(connector.W.detach(), (0, self.tiles * TILE - t))
        self.W = self.W.view(p, self.tiles, TILE).transpose(0, 1).contiguous()
        self.b = torch.zeros(self.tiles, TILE)
        if connector.b is not None:
            self.b.view(-1)[:t] = connector.b.detach()
        self.moments = [torch.zeros_like(like) for like in (self.W, self.W, self.b, self.b)]

    def run(self, source: Rows, target: Rows, rates: list[float], done: int) -> float:
        """Steps at the given learning rates over these rows; the sum of squared errors, each at its step's start."""
        from saelink.kernels import columns, in_parts

        problem, batch, steps = self.problem, self.solver.config.batch_tokens, len(rates)
        assert len(source) == len(target) == batch * steps, "the compiled loops read that many rows"
        x = (source.offsets.numpy(), source.indices.int().numpy(), source.values.numpy())
        y = (target.offsets.numpy(), target.indices.int().numpy(), target.values.numpy())
        by_column: list[np.ndarray[Any, Any]] = []
        for pairs, d in ((x, source.d), (y, self.tiles * columns.TILE)):
            size = len(pairs[1])
            out = [np.empty((steps, d + 1), np.int64), np.empty(size, np.int32), np.empty(size, np.float32)]
            in_parts(steps, 1, lambda step, _, pairs=pairs, out=out: columns.transpose(step, batch, *pairs, *out))
            by_column += out
        moments = [moment.numpy() for moment in self.moments]
        errors = np.empty((self.tiles, steps))
        scale = 2 / (batch * self.connector.d_target * problem.c)
        l1 = problem.l1_alpha * self.connector.penalised()[0][1]
        kinds = (self.solver.proximal, self.connector.relu_output, self.solver.config.loss is Loss.matching)

        weights = [self.W.numpy(), *moments[:2], self.b.numpy(), *moments[2:]]
        settings = [np.array(rates), done, scale, l1, *kinds, self.connector.b is not None]
        arguments = [batch, *x, *by_column, *weights, *settings]

        def work(tile: int, _: int) -> None:
            columns.steps(tile, *arguments, errors[tile])  # pyright: ignore[reportCallIssue]

        in_parts(self.tiles, 1, work)
        return float(errors.sum())

    def write_back(self) -> None:
        """Leave the weights in the connector."""
        t = self.connector.d_target
        with torch.no_grad():
            self.connector.W.copy_(self.W.transpose(0, 1).reshape(self.connector.d_source, -1)[:, :t])
            if self.connector.b is not None:
                self.connector.b.copy_(self.b.view(-1)[:t])
