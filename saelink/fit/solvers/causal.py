"""A fit to what happens together and to what ablating a source does: the lasso on prediction and effects jointly.

With M_ij the mean effect of source j on target i in the model (interventions/effects.py, training documents), a_j the
source's mean activation and p_j the share of tokens it is active on, a linear map's own effect is w_ij a_j, and

    (1/N) sum_n (y_ni - yhat_ni)^2 / c  +  effects * sum_j q_j (M_ij - w_ij a_j)^2 / c  +  l1_alpha |w_i|_1

is minimised for every target i. The second term is a mean over tokens of the sum over their active sources when q = p;
q_j = sqrt(p_j mean(p)) lies half-way to counting every source alike, as what judges edges does. It only adds
to the products the lasso is solved from, so the optimum is certified as in solver=exact.

For connector=nonlinear that solution is where a second fit starts. It keeps the lasso's edges and no penalty, and
minimises by Adam the matching loss of relu(z) on the tokens, and on single ablations, weighted alike,

    effects / 2 * (relu(z) - relu(z - w_ij a) - change_i)^2
"""

# torch leaves arguments of some of its methods without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from saelink.connectors.base import Connector, SquaredLoss, residual
from saelink.connectors.linear import LinearConnector, LinearSettings
from saelink.connectors.nonlinear import NonlinearConnector
from saelink.errors import SaelinkError
from saelink.fit.products.dense import Gram
from saelink.fit.solvers.base import Fit, Problem, validation_point
from saelink.fit.solvers.exact import ExactSettings, ExactSolver, squared_error
from saelink.interventions.measure import Changes
from saelink.interventions.pairs import Effects
from saelink.latents.rows import Rows, sparse_transposed
from saelink.progress import Progress


@dataclass
class CausalSettings(ExactSettings):
    """Settings of solver=causal."""

    effects: float = 2.0
    """Weight of the effects beside the prediction."""
    tokens: int = 307_200
    """connector=nonlinear: length of the second fit in tokens, with as many ablations beside them."""
    batch_tokens: int = 1024
    """connector=nonlinear: tokens of one step of the second fit."""
    lr: float = 2e-3
    """connector=nonlinear: learning rate of the second fit; over the second half it falls linearly to 0."""


class CausalSolver(ExactSolver):
    """The joint lasso, and for a relu on its output a second fit on its edges."""

    Settings = CausalSettings
    uses_effects = True

    def check(self, connector: type[Connector], settings: Any) -> None:
        if connector not in (LinearConnector, NonlinearConnector):
            raise SaelinkError(
                f"solver=causal fits connector=linear and nonlinear; for connector={settings.name} use adam or proximal"
            )
        super().check(LinearConnector, settings)
        if not self.config.effects > 0:
            raise SaelinkError(f"solver.effects={self.config.effects} must be above 0; solver=exact fits without them")
        if self.config.debias:
            raise SaelinkError("solver.debias=true is for solver=exact; connector=nonlinear refits its edges anyway")
        if self.config.positive and connector is NonlinearConnector:
            raise SaelinkError(
                "solver.positive=true is for connector=linear; the second fit of nonlinear is free in sign"
            )
        for name in ("tokens", "batch_tokens"):
            if getattr(self.config, name) < 1:
                raise SaelinkError(f"solver.{name}={getattr(self.config, name)} must be at least 1")
        if not self.config.lr > 0:
            raise SaelinkError(f"solver.lr={self.config.lr} must be above 0")

    def variant(self, problem: Problem) -> tuple[Any, ...]:
        return self.config.effects, problem.effects_name

    def products(self, connector: LinearConnector, problem: Problem) -> Gram:
        assert problem.effects is not None
        plain = super().products(connector, problem)
        return joint(plain, problem.effects(), self.config.effects)

    def solve(self, connector: Connector, problem: Problem, progress: Progress) -> Fit:
        if isinstance(connector, NonlinearConnector):
            settings = LinearSettings(name="linear", bias=connector.b is not None)
            start = LinearConnector(settings, connector.d_source, connector.target_ids)
        else:
            assert isinstance(connector, LinearConnector)
            start = connector
        fit = super().solve(start, problem, progress)
        point, W = fit.final, start.W.detach().double()
        together = self.problem(start, problem)[1]
        plain = super().products(start, problem).to(problem.device)
        point["train_mse"] = squared_error(plain, W)
        point["effects_error"] = squared_error(together, W) - point["train_mse"]
        if start is connector:
            return fit
        connector.to(problem.device)
        connector.load_state_dict(start.state_dict())
        assert isinstance(connector, NonlinearConnector) and problem.effects is not None and problem.changes is not None
        train_mse = self._refine(connector, problem, problem.effects(), problem.changes())
        final = validation_point(connector, problem, problem.validation, len(problem.train), train_mse)
        progress.point(final)
        return Fit([*fit.history, final], final | {f"lasso_{name}": value for name, value in point.items()})

    def _refine(self, connector: NonlinearConnector, problem: Problem, effects: Effects, changes: Changes) -> float:
        """The second fit, in place; its mean squared error over the last quarter."""
        config, device, batch = self.config, problem.device, self.config.batch_tokens
        kept = connector.W.detach() != 0
        n = torch.bincount(changes.source, minlength=connector.d_source).clamp(min=1)
        by_source = shares(effects) / n
        generator = torch.Generator().manual_seed(0)
        parameters = list(connector.parameters())
        optimizer = torch.optim.Adam(parameters, lr=config.lr, fused=True)
        scale = 2 / (batch * connector.d_target * problem.c)
        steps = max(config.tokens // batch, 1)
        source_rows = problem.train.whole().source
        both = problem.train.shuffled(batch, generator)
        errors, last = 0.0, max(steps // 4, 1)
        for step in range(steps):
            source, target = next(both)
            drawn = torch.randint(len(changes.token), (batch,), generator=generator)
            ablated = AblatedRows(
                source_rows.select(changes.token[drawn]).to(device),
                changes.rows.select(drawn).dense().to(device),
                changes.source[drawn].to(device),
                changes.value[drawn].to(device),
                (config.effects * len(changes.token) * by_source[changes.source[drawn]]).float().to(device),
            )
            total = gradients(connector, source.to(device), target.to(device), ablated, scale)
            errors += total.item() if step >= steps - last else 0.0
            assert connector.W.grad is not None
            connector.W.grad.mul_(kept)
            optimizer.param_groups[0]["lr"] = config.lr * min(2 * (steps - step) / steps, 1.0)
            optimizer.step()
        return errors / (last * batch * connector.d_target)


class AblatedRows(NamedTuple):
    """Some tokens with one source each that was ablated there."""

    rows: Rows
    """[n, d_source] the tokens' source latents, before."""
    change: torch.Tensor
    """[n, d_target] what the target latents lost."""
    source: torch.Tensor
    """[n] the source that was ablated."""
    value: torch.Tensor
    """[n] its activation."""
    weight: torch.Tensor
    """[n] what the squared error of the change is multiplied by."""


def gradients(
    connector: NonlinearConnector, source: Rows, target: Rows, ablated: AblatedRows, scale: float
) -> torch.Tensor:
    """Set the parameters' grad to that of the second fit's objective on these tokens and ablations, times `scale`.

    Returns the sum of the tokens' squared errors. With z' = z - value * W[source] the ablations' part is
    scale / 2 * sum of weight * (relu(z) - relu(z') - change)^2.
    """
    W = connector.W
    with torch.no_grad():
        z, _ = connector.maps(source)
        error, total = residual(z, target, SquaredLoss(scale, matching=True), True)
        z, _ = connector.maps(ablated.rows)
        left = z - ablated.value[:, None] * W[ablated.source]
        off = torch.relu(z).sub_(torch.relu(left)).sub_(ablated.change).mul_(scale * ablated.weight[:, None])
        through_left = off * (left > 0)
        at_z = off.mul_(z > 0).sub_(through_left)
        ends = torch.arange(len(ablated.source) + 1, device=z.device)
        alone = Rows(ends, ablated.source, ablated.value, connector.d_source)  # the ablated source of each row
        W.grad = sparse_transposed(source, error).add_(sparse_transposed(ablated.rows, at_z))
        W.grad.add_(sparse_transposed(alone, through_left))
        if connector.b is not None:
            connector.b.grad = error.sum(0) + at_z.sum(0)
    return total


def shares(effects: Effects) -> torch.Tensor:
    """[d_source] q of the objective; 0 for a source that was never ablated."""
    rate = effects.source_rate.double() * (effects.tokens.sum(0) > 0)
    alive = rate[rate > 0]
    mean = alive.mean() if len(alive) else rate.sum()
    return (rate * mean).sqrt()


def joint(products: Gram, effects: Effects, weight: float) -> Gram:
    """The products of prediction and effects together."""
    q, a = weight * shares(effects), effects.source_mean.double()
    xy, yy = products.xy.clone(), products.yy.clone()
    for pairs in effects.pairs():
        source, M = pairs.source_of, pairs.mean.double()
        pairs.add_to(xy, (q * a)[source] * M)
        yy.index_add_(0, pairs.target.long(), q[source] * M * M)
    return products._replace(xx=products.xx + torch.diag(q * a * a), xy=xy, yy=yy)
