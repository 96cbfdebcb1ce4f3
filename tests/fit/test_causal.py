"""solver=causal: the joint optimum against scikit-learn, the second fit's gradients, what it finds that others miss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saelink.connectors.linear import LinearSettings
from saelink.connectors.nonlinear import NonlinearConnector
from saelink.evidence.claims import Claims
from saelink.evidence.verdicts import VERDICTS, judged, shuffled
from saelink.fit.lasso.coordinate import Lasso
from saelink.fit.products.dense import Gram
from saelink.fit.solvers.causal import AblatedRows, gradients, joint, shares
from saelink.fit.train import TrainStage, fitted_connector
from saelink.interventions import block as interventions
from saelink.interventions.block import FOLDS
from saelink.interventions.effects import EffectsStage, load_changes, load_effects
from saelink.interventions.measure import Measurement, effects_of_sources, measure_effects, open_measurement
from saelink.interventions.pairs import Effects
from saelink.job import Job
from saelink.latents.link import load_split, pull_sides
from saelink.latents.rows import Rows
from saelink.model.block import Chain
from saelink.progress import Observer
from saelink.saes.sae import SAE
from saelink.store.store import Store

from helpers.effects import sparse_effects
from helpers.world import Run, World


def products_of(x: torch.Tensor, y: torch.Tensor) -> Gram:
    x, y, n = x.double(), y.double(), len(x)
    return Gram(x.T @ x / n, x.T @ y / n, y.square().mean(0), x.mean(0), y.mean(0))


# --------------------------------------------------------------------------- the joint lasso


def test_the_joint_optimum_is_scikit_learns_on_rows_for_the_effects() -> None:
    from sklearn.linear_model import Lasso as Theirs

    generator = torch.Generator().manual_seed(0)
    n, p, t, weight, alpha = 400, 8, 5, 1.5, 0.02
    x = torch.relu(torch.randn(n, p, generator=generator))
    y = torch.relu(x @ torch.randn(p, t, generator=generator))
    rate = (x > 0).double().mean(0).float()
    mean = torch.randn(p, t, generator=generator)
    tokens = torch.full((FOLDS, p), 10)
    effects = sparse_effects(
        mean, torch.zeros(FOLDS, p, t), tokens, x.sum(0) / (x > 0).sum(0), rate, torch.ones(t)
    )  # fmt: skip
    products = joint(products_of(x, y), effects, weight)
    W, gap = Lasso(products.xx, products.xy, products.yy, False).solve(alpha / 2, 1e-10, 100_000)
    assert (gap < 1e-9).all() and bool((W == 0).any()) and bool((W != 0).any())
    size = (n * weight * shares(effects)).sqrt()
    more_x = torch.diag(size * effects.source_mean.double())
    X, Y = torch.cat([x.double(), more_x]).numpy(), torch.cat([y.double(), size[:, None] * mean.double()]).numpy()
    # Theirs is (1 / 2 rows) |y - Xw|^2 + alpha |w|, ours (1/n) |y - Xw|^2 + alpha |w|.
    theirs = Theirs(alpha=alpha * n / (2 * len(X)), fit_intercept=False, tol=1e-12, max_iter=100_000)
    expected = np.stack([theirs.fit(X, Y[:, i]).coef_ for i in range(t)], 1)
    assert np.allclose(W.numpy(), expected, atol=1e-6)


def test_a_source_that_was_never_ablated_has_no_say() -> None:
    tokens = torch.full((FOLDS, 3), 4)
    tokens[:, 1] = 0
    rate = torch.tensor([0.1, 0.2, 0.3])
    zeros = torch.zeros(FOLDS, 3, 2)
    effects = sparse_effects(torch.ones(3, 2), zeros, tokens, torch.ones(3), rate, torch.ones(2))
    q = shares(effects)
    assert q[1] == 0 and torch.allclose(q[[0, 2]], (rate[[0, 2]].double() * 0.2).sqrt())
    plain = products_of(torch.rand(9, 3), torch.rand(9, 2))
    assert torch.equal(joint(plain, effects, 3.0).xx[1], plain.xx[1])


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_of_the_second_fit(bias: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    n, p, t = 30, 6, 4
    connector = NonlinearConnector(LinearSettings(name="nonlinear", bias=bias), p, torch.arange(t))
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x, y, before = (torch.relu(torch.randn(n, d, generator=generator)) for d in (p, t, p))
    source = torch.randint(0, p, (n,), generator=generator)
    before[torch.arange(n), source] += 0.5
    value = before[torch.arange(n), source]
    change, weight = torch.randn(n, t, generator=generator), torch.rand(n, generator=generator)
    gradients(
        connector,
        Rows.from_dense(x),
        Rows.from_dense(y),
        AblatedRows(Rows.from_dense(before), change, source, value, weight),
        0.3,
    )
    W = connector.W.detach().double().requires_grad_()
    b = None if connector.b is None else connector.b.detach().double().requires_grad_()

    def z(given: torch.Tensor) -> torch.Tensor:
        return given.double() @ W + (0 if b is None else b)

    without = before.clone()
    without[torch.arange(n), source] = 0
    matching = (torch.relu(z(x)).square() / 2 - y * z(x)).sum()
    off = (torch.relu(z(before)) - torch.relu(z(without)) - change).square().sum(1)
    (0.3 * (matching + (weight * off).sum() / 2)).backward()
    assert connector.W.grad is not None and W.grad is not None
    assert torch.allclose(connector.W.grad.double(), W.grad, atol=1e-5)
    if b is not None:
        assert connector.b is not None and connector.b.grad is not None and b.grad is not None
        assert torch.allclose(connector.b.grad.double(), b.grad, atol=1e-5)


# --------------------------------------------------------------------------- a block whose computation is known

TARGETS = ("linear", "or", "and not", "xor", "suppressed", "caused", "silent")
TRUE = {  # (source, target): sign of what the source does to the target where it is active
    (0, 0): 1, (1, 1): 1, (2, 1): 1, (3, 2): 1, (4, 2): -1, (5, 3): 1, (6, 3): 1, (7, 4): -1, (8, 5): 1,
}  # fmt: skip
CONFOUNDED = (9, 5)
"""Source 9 fires with source 8, which alone makes target 5."""


class Block(torch.nn.Module):
    """An MLP with relu units, input bias and output bias set by hand; identity SAEs read both its sides."""

    def __init__(self) -> None:
        super().__init__()
        units: list[tuple[dict[int, float], float, dict[int, float]]] = [
            ({0: 1}, 0, {0: 1}),
            ({1: 1}, 0, {1: 1}), ({2: 1}, 0, {1: 1}), ({1: 1, 2: 1}, -1, {1: -1}),  # or: s1 + s2, at most 1
            ({3: 1, 4: -2}, 0, {2: 1}),
            ({5: 1, 6: -1}, 0, {3: 1}), ({6: 1, 5: -1}, 0, {3: 1}),
            ({7: -1}, 1, {4: 1}),
            ({8: 1}, 0, {5: 1}),
        ]  # fmt: skip
        self.first, self.second = torch.zeros(12, len(units)), torch.zeros(len(units), 8)
        self.bias = torch.tensor([float(bias) for _, bias, _ in units])
        for unit, (reads, _, writes) in enumerate(units):
            for source, weight in reads.items():
                self.first[source, unit] = weight
            for target, weight in writes.items():
                self.second[unit, target] = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ self.first + self.bias) @ self.second


def identity_sae(d: int) -> SAE:
    return SAE(torch.eye(d), torch.zeros(d), torch.eye(d), torch.zeros(d), None, None)


def opened(block: Block, x: torch.Tensor, fold: torch.Tensor, directions: torch.Tensor | None = None) -> Measurement:
    inside = interventions.Block(Chain(block, x), [identity_sae(12)], identity_sae(8), [x], fold)
    return open_measurement(inside, 256, directions=directions)


def text(n: int = 6000) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations of 12 sources, most of them independent; 9 fires with 8. And the tokens' groups of documents."""
    generator = torch.Generator().manual_seed(3)
    on = torch.rand(n, 12, generator=generator) < 0.3
    on[:, 9] = on[:, 8] ^ (torch.rand(n, generator=generator) < 0.05)
    on[:, 4] &= (torch.rand(n, generator=generator) < 0.8) | on[:, 3]
    x = on * (0.8 + 0.4 * torch.rand(n, 12, generator=generator))
    return x, torch.arange(n) % FOLDS


@pytest.fixture(scope="module")
def known() -> tuple[torch.Tensor, torch.Tensor, Effects]:
    x, fold = text()
    measured = measure_effects(opened(Block(), x, fold), Observer())
    changes = effects_of_sources(opened(Block(), x, fold), 0, 12, keep=True).changes
    assert changes is not None and len(changes.rows) == int(measured.tokens.sum())
    return x, fold, measured


def test_the_true_edges_are_found_and_no_other(known: tuple[torch.Tensor, torch.Tensor, Effects]) -> None:
    _, _, measured = known
    mean, consistent = measured.dense(), torch.zeros(12, 8, dtype=torch.bool)
    for pairs in measured.pairs():
        consistent[pairs.source_of, pairs.target.long()] = pairs.consistent()
    strong = (mean.abs() >= 0.1 * measured.target_mean) & consistent & (measured.target_mean > 0)
    found = {(s, t): int(mean[s, t].sign()) for s, t in strong.nonzero().tolist()}
    assert found == TRUE
    assert mean[CONFOUNDED].abs() < 1e-6, "it correlates without cause"
    assert mean[0, 0] == pytest.approx(measured.source_mean[0].item(), rel=1e-4), "a copy loses all of it"


def test_a_confounded_claim_is_rejected_and_a_suppressor_is_missed_by_regression(
    known: tuple[torch.Tensor, torch.Tensor, Effects],
) -> None:
    x, _, measured = known
    y = torch.relu(Block()(x))
    noisy = x.clone()  # a source that is read with noise leaves some of its work to whatever goes with it
    noisy[:, 8] *= (torch.rand(len(x), generator=torch.Generator().manual_seed(4)) < 0.7).float()
    products = products_of(noisy, y)
    W, _ = Lasso(products.xx, products.xy, products.yy, False).solve(1e-3, 1e-6, 100_000)
    assert W[CONFOUNDED] > 0.1, "prediction alone falls for it"
    claim = W.float() * measured.source_mean[:, None]
    figures, tensors = judged(Claims.of_dense(claim), measured, torch.arange(8), 0.1)
    place = (tensors["source"] == 9) & (tensors["target"] == 5)
    assert VERDICTS[int(tensors["verdict"][place])] == "no effect"
    both = joint(products, measured, 2.0)
    W, _ = Lasso(both.xx, both.xy, both.yy, False).solve(1e-3, 1e-6, 100_000)
    again, tensors = judged(Claims.of_dense(W.float() * measured.source_mean[:, None]), measured, torch.arange(8), 0.1)
    assert again["slope_1x"] == pytest.approx(1, abs=0.15) and again["r2_1x"] > figures["r2_1x"]
    assert abs(W[CONFOUNDED]) < 0.5 * abs(claim[CONFOUNDED])
    assert again["recall_suppressive_10x"] == 1 and again["missed"] == 0


def test_the_nulls_are_flat(known: tuple[torch.Tensor, torch.Tensor, Effects]) -> None:
    x, fold, measured = known
    claim, mean = torch.zeros(12, 8), measured.dense()
    for (source, target), sign in TRUE.items():
        claim[source, target] = sign * mean[source, target].abs()
    true, _ = judged(Claims.of_dense(claim), measured, torch.arange(8), 0.1)
    assert true["precision_1x"] == 1 and true["r2_1x"] > 0.99 and true["recall_10x"] == 1
    others = torch.eye(12).roll(5, 0)
    permuted = measure_effects(opened(Block(), x, fold, others), Observer())
    block = Block()
    block.second.copy_(
        block.second.flatten()[torch.randperm(72, generator=torch.Generator().manual_seed(1))].view(9, 8)
    )
    random = measure_effects(opened(block, x, fold), Observer())
    claimed = Claims.of_dense(claim)
    for these, null in ((claimed, permuted), (claimed, random), (shuffled(claimed, 12), measured)):
        figures, _ = judged(these, null, torch.arange(8), 0.1)
        assert figures["recall_10x"] <= 0.25 and (figures["precision_1x"] or 0) <= 0.25
        assert abs(figures["slope_1x"] or 0) < 0.3 and (figures["r2_1x"] or 0) < 0.2


# --------------------------------------------------------------------------- in the chain


@pytest.mark.parametrize("connector", ["linear", "nonlinear"])
def test_causal_in_the_chain(world: World, tmp_path: Path, connector: str) -> None:
    words = ["solver=causal", f"connector={connector}", "l1_alpha=1e-3", "connector.bias=true"]
    words += ["solver.tokens=4096", "solver.batch_tokens=256"]
    found = []
    for folder in ("first", "again"):
        store = Store(tmp_path / folder)
        artifact = TrainStage(Job(world.config(store.root, *words), store)).pull()
        found.append(fitted_connector(artifact).output_weight())
        first = "" if connector == "linear" else "lasso_"
        facts: dict[str, Any] = {**artifact.facts}
        assert facts[f"{first}worst_gap"] <= 1e-4
        if first:  # its own weights are no lasso's optimum
            assert "worst_gap" not in artifact.facts
            assert facts["validation_mse"] < facts["lasso_validation_mse"]
        edges = int((found[-1] != 0).sum())
        assert artifact.facts["n_edges"] == edges and 0 < edges < found[-1].numel()
    assert torch.equal(*found)


def test_more_weight_on_effects_fits_them_better(world: World, store: Store) -> None:
    errors, mses = [], []
    for words in (["solver.effects=.1"], ["solver.effects=10"], ["solver.effects=10", "verify.tokens_per_source=3"]):
        facts = TrainStage(Job(world.config(store.root, "solver=causal", "l1_alpha=1e-3", *words), store)).pull().facts
        errors.append(facts.get("effects_error", math.nan) / float(words[0].split("=")[1]))
        mses.append(facts["train_mse"])
    assert errors[1] < errors[0] and mses[1] > mses[0]
    assert errors[2] != errors[1], "other effects in the same process are another problem"


def test_changes_are_those_of_the_effects(world: World, store: Store) -> None:
    cfg = world.config(store.root)
    artifact = EffectsStage(Job(cfg, store), "train").pull()
    measured, changes = load_effects(artifact), load_changes(artifact)
    assert not any(name.startswith("changes") for name in EffectsStage(Job(cfg, store)).pull().files)
    n = torch.bincount(changes.source, minlength=len(measured.source_mean))
    assert torch.equal(n, measured.tokens.sum(0))
    mean = measured.dense()
    total = torch.zeros_like(mean).index_add_(0, changes.source, changes.rows.dense())
    assert torch.allclose(total / n.clamp(min=1)[:, None], mean, atol=1e-2 * float(mean.abs().max()))
    source = load_split(cfg, pull_sides(cfg, store), "train").source.select(changes.token).dense()
    there = source[torch.arange(len(changes.source)), changes.source]
    assert (there > 0).double().mean() > 0.99, "each was ablated where it is active"
    assert torch.allclose(there[there > 0], changes.value[there > 0], rtol=2e-2)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["connector=nonlinear", "solver.positive=true"], "solver.positive=true is for connector=linear"),
        (["connector=mlp"], "solver=causal fits connector=linear and nonlinear; for connector=mlp use adam"),
        (["solver.effects=0"], "solver.effects=0.0 must be above 0; solver=exact fits without them"),
        (["solver.debias=true"], "solver.debias=true is for solver=exact"),
        (["solver.lr=0"], "solver.lr=0.0 must be above 0"),
        (["solver.tokens=0"], "solver.tokens=0 must be at least 1"),
        (["verify.fit_tokens=0"], "verify.fit_tokens=0 must be at least 1"),
        (["link=mlp_from_parts"], "link=mlp_from_parts: effects of single edges are measured between hook_resid_pre"),
    ],
)
def test_mistakes(saelink: Run, words: list[str], expected: str) -> None:
    code, _, err = saelink("train", "solver=causal", *words)
    assert code == 1 and expected in err and len(err.strip().splitlines()) == 1, err


def test_products_that_do_not_fit_are_refused_before_effects_are_measured(
    saelink: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert saelink("encode")[0] == 0
    for module in ("store.stage", "fit.train"):  # what the stage needs without products
        monkeypatch.setattr(f"saelink.{module}.need_memory", lambda *_: None)
    monkeypatch.setattr("saelink.runtime.memory_available", lambda: 10_000)
    code, out, err = saelink("train", "solver=causal")
    assert code == 1 and "solver=causal: 48 source and 48 target latents need" in err, err
    assert len(err.strip().splitlines()) == 1 and "effects:" not in out
