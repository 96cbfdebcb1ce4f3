"""The lasso's certificate on random problems: what it proves is so, and what is not reached is said.

Objectives are computed again here, in extended precision. What is compared may differ by what float64 rounds in sums of
that size, and by nothing else.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from saelink.fit.lasso.coordinate import Lasso
from saelink.fit.lasso.dense import DenseLasso

LASSOS = [Lasso, DenseLasso]

KINDS = ["well conditioned", "few tokens", "silent", "copies", "sums", "nearly equal", "scales"]


class Task(NamedTuple):
    """A lasso of m columns, with the rows that its products are of."""

    kind: str
    x: torch.Tensor
    """[n, p] float64"""
    y: torch.Tensor
    """[n, m] float64"""
    weights: torch.Tensor
    """[p, m]: what y was made with."""
    lam: float
    share: float
    """lam, as a share of the smallest penalty at which all weights are zero."""
    positive: bool

    @property
    def products(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        n = len(self.x)
        return self.x.T @ self.x / n, self.x.T @ self.y / n, self.y.square().mean(0)

    def lasso(self, kind: type[Lasso]) -> Lasso:
        return kind(*self.products, self.positive)

    def value(self, W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The objective [m] at W in extended precision, and what float64 may round in computing it."""
        G, C, yy, W_ = (tensor.numpy().astype(np.longdouble) for tensor in (*self.products, W))
        penalty = self.lam * abs(W_).sum(0)
        value = yy / 2 - (C * W_).sum(0) + (W_ * (G @ W_)).sum(0) / 2 + penalty
        size = yy / 2 + (abs(C) * abs(W_)).sum(0) + (abs(W_) * (abs(G) @ abs(W_))).sum(0) / 2 + penalty
        rounding = 4 * (len(W) + 4) * np.finfo(float).eps * size
        return torch.from_numpy(value.astype(float)), torch.from_numpy(rounding.astype(float))

    def best(self, points: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The lowest objective [m] at any of the points, and its rounding."""
        values, roundings = (torch.stack(numbers) for numbers in zip(*map(self.value, points), strict=True))
        lowest, which = values.min(0)
        return lowest, roundings.gather(0, which[None])[0]


def sources(kind: str, n: int, p: int, generator: torch.Generator) -> torch.Tensor:
    """Rows [n, p] of latents: never negative, and as correlated as `kind` says."""
    n = {"well conditioned": 8 * p + n, "few tokens": (p + 1) // 2}.get(kind, n)
    x = torch.relu(torch.randn(n, p, generator=generator, dtype=torch.float64))
    if kind == "silent":
        x[:, torch.rand(p, generator=generator) < 0.5] = 0
    elif kind == "copies":
        x = torch.cat([x, x], 1)[:, p // 2 : p // 2 + p]
        x[:, p - p // 2 :] = x[:, : p // 2].clone()
    elif kind == "sums" and p > 2:
        x[:, -2:] = x[:, :-2] @ torch.rand(p - 2, 2, generator=generator, dtype=torch.float64)
    elif kind == "nearly equal":
        x = x[:, :1] + 10.0 ** int(torch.randint(-7, 0, (1,), generator=generator)) * x
    elif kind == "scales":
        x = x * 10.0 ** torch.randint(-4, 5, (p,), generator=generator)
    return x


@st.composite
def tasks(draw: st.DrawFn, kinds: list[str] = KINDS, smallest: float = -9.0) -> Task:
    kind = draw(st.sampled_from(kinds))
    n, p, m = draw(st.integers(1, 40)), draw(st.integers(1, 12)), draw(st.integers(1, 4))
    targets = draw(st.sampled_from(["exact", "relu", "noisy", "one is silent"]))
    scale = 10.0 ** draw(st.integers(-3, 3))
    share = 10.0 ** draw(st.floats(smallest, 0.3))
    positive = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))

    x = sources(kind, n, p, generator)
    weights = torch.randn(p, m, generator=generator, dtype=torch.float64)
    weights *= torch.rand(p, m, generator=generator) < 0.5
    y = x @ weights
    if targets == "relu":
        y = y.relu()
    elif targets == "noisy":
        y = y + 0.3 * y.std(correction=0) * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    elif targets == "one is silent":
        y[:, 0] = 0
    y = y * scale
    top = (x.T @ y / len(x)).abs().max().item() or 1.0
    return Task(kind, x, y, weights * scale, share * top, share, positive)


def of_scikit_learn(task: Task) -> torch.Tensor:
    """Weights [p, m] by a program that shares nothing with ours."""
    from sklearn.linear_model import Lasso as Reference

    reference = Reference(alpha=task.lam, fit_intercept=False, positive=task.positive, tol=1e-12, max_iter=500)
    weights = reference.fit(task.x.numpy(), task.y.numpy()).coef_
    return torch.from_numpy(weights.reshape(task.y.shape[1], -1).T.copy())


def points(task: Task) -> list[torch.Tensor]:
    """Weights near the optimum and far from it; none negative where none may be."""
    solved, _ = task.lasso(Lasso).solve(task.lam, 1e-12, 500)
    others = [task.lasso(Lasso).least_squares(), task.weights, 1e3 * task.weights.roll(1, 0), 0 * task.weights]
    found = [solved, of_scikit_learn(task), 0.9 * solved, solved * (solved.abs() > 1e-3), *others]
    return [W.clamp(min=0) for W in found] if task.positive else found


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@given(tasks())
def test_no_weights_are_below_the_bound(task: Task) -> None:
    """From wherever the bound is taken; and the value beside it is the objective there."""
    known = points(task)
    best, rounding = task.best(known)
    for kind in LASSOS:
        lasso = task.lasso(kind)
        for W in known:
            primal, bound = lasso.certificate(W, task.lam)
            value, error = task.value(W)
            assert ((primal - value).abs() <= error).all()
            assert (bound <= best + rounding + error).all()
            assert (bound <= value + error).all()
            scaled = lasso.gaps(W, task.lam)  # another bound, the solver's own
            assert (value - scaled <= best + rounding + 2 * error).all()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("kind", LASSOS)
@settings(max_examples=settings().max_examples // 2)
@given(task=tasks(), tolerance=st.floats(-10, -1).map(lambda e: 10.0**e), sweeps=st.sampled_from([1, 7, 60, 300]))
def test_a_solution_is_as_near_the_optimum_as_its_gap(
    kind: type[Lasso], task: Task, tolerance: float, sweeps: int
) -> None:
    """Also one that was cut short, and where float64 lets it come no nearer."""
    W, gaps = task.lasso(kind).solve(task.lam, tolerance, sweeps)
    assert torch.isfinite(W).all() and torch.isfinite(gaps).all() and (gaps >= 0).all()
    assert (W[task.products[0].diagonal() == 0] == 0).all(), "a source that never fires has no weight"
    value, error = task.value(W)
    best, rounding = task.best([W, *points(task)])
    assert (value - best <= gaps + error + rounding).all()
    assert task.share <= 1 or (W == 0).all(), "above alpha_max there is no edge"
    silent = (task.y == 0).all(0)
    assert (W[:, silent] == 0).all() and (gaps[silent] == 0).all()


def by_hand(x: list[list[int]], y: list[int], lam: float, positive: bool) -> Task:
    """A task of one column in whole numbers."""
    rows, column = torch.tensor(x).double(), torch.tensor(y).double()[:, None]
    return Task("by hand", rows, column, torch.zeros(rows.shape[1], 1).double(), lam, 0.0, positive)


@pytest.mark.parametrize("kind", LASSOS)
@given(task=tasks(smallest=-4.0), tolerance=st.sampled_from([1e-6, 1e-4, 1e-2]))
@example(task=by_hand([[3, 1], [3, 2], [2, 1], [0, 1]], [2, 3, 0, 3], 0.5, True), tolerance=1e-2)
@settings(max_examples=settings().max_examples // 2)
def test_no_weight_is_negative_where_none_may_be(kind: type[Lasso], task: Task, tolerance: float) -> None:
    task = task._replace(positive=True)
    W, _ = task.lasso(kind).solve(task.lam, tolerance, 300)
    assert (W >= 0).all()


@pytest.mark.parametrize("kind", LASSOS)
@given(task=tasks(["well conditioned"], smallest=-4.0))
def test_the_tolerance_is_reached_where_sources_differ(kind: type[Lasso], task: Task) -> None:
    _, gaps = task.lasso(kind).solve(task.lam, 1e-6, 2000)
    assert (gaps <= 1e-6 * task.products[2] / 2).all()


@pytest.mark.parametrize("kind", LASSOS)
@settings(max_examples=settings().max_examples // 5)
@given(task=tasks(smallest=-4.0), shares=st.lists(st.floats(-4, 0), min_size=1, max_size=3))
def test_what_was_asked_for_before_changes_nothing(kind: type[Lasso], task: Task, shares: list[float]) -> None:
    """To the last bit: a key names the penalty and not the path to it."""
    path = task.lasso(kind)
    for share in shares:
        path.solve(task.lam / task.share * 10.0**share, 1e-4, 50)
    again, alone = path.solve(task.lam, 1e-4, 50), task.lasso(kind).solve(task.lam, 1e-4, 50)
    assert all(map(torch.equal, again, alone))


@given(tasks())
def test_without_a_penalty_the_gradient_is_zero(task: Task) -> None:
    """Up to the ridge, which G's inverse needs where G is singular."""
    G, C, _ = task.products
    for kind in LASSOS:
        W, gaps = task.lasso(kind).solve(0.0, 1e-6, 100)
        assert (W[G.diagonal() == 0] == 0).all() and (gaps == 0).all()
        ridge = 1e-10 * G.diagonal().mean()
        root = G.diagonal().sqrt()[:, None]  # of the factors that rounding enters by: |L||L'| is at most this squared
        rounding = 1e2 * len(G) * np.finfo(float).eps * (root * (root.T @ W.abs()) + C.abs())
        assert ((G @ W - C).abs() <= 10 * ridge * W.abs() + rounding).all()
