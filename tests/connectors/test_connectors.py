"""Connectors and the Adam solver: objective, gradients, planted circuits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from saelink.connectors import CONNECTORS
from saelink.connectors.base import SquaredLoss, strongest
from saelink.fit.solvers.adam import Products
from saelink.fit.solvers.base import Fit
from saelink.latents.rows import Rows

from helpers.fits import make, planted, problem, solve
from helpers.rows import random_rows, split_of

SHAPES = [
    ("linear", {}),
    ("linear", {"bias": True}),
    ("nonlinear", {}),
    ("nonlinear", {"bias": True}),
    ("mlp", {"d_hidden": 5}),
    ("mlp", {"d_hidden": 5, "bias": True}),
    ("two_nonlinear", {"d_hidden": 5}),
    ("two_nonlinear", {"d_hidden": 5, "bias": True}),
    ("skip", {"d_hidden": 5}),
    ("skip", {"d_hidden": 5, "bias": True}),
    ("sae", {"d_hidden": 5}),
    ("sae", {"d_hidden": 5, "hidden_bias": True}),
]


def test_every_connector_is_tested_here() -> None:
    assert {name for name, _ in SHAPES} == set(CONNECTORS)


@pytest.mark.parametrize(("name", "settings"), SHAPES)
def test_forward_and_gradients_against_float64(name: str, settings: dict[str, Any]) -> None:
    rows, upstream = random_rows(30, 12), torch.randn(30, 9)
    connector = make(name, **settings)
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    (connector(rows) * upstream).sum().backward()
    exact = {key: value.detach().double().requires_grad_() for key, value in connector.named_parameters()}
    x = rows.dense().double()
    y = exact.get("b", exact.get("b2", torch.zeros(9)))
    if "W" in exact:
        y = y + x @ exact["W"]
    if "W1" in exact:
        y = y + torch.relu(x @ exact["W1"] + exact.get("b1", torch.zeros(5))) @ exact["W2"]
    if connector.relu_output:
        y = torch.relu(y)
    assert torch.allclose(connector(rows).double(), y, atol=1e-4)
    (y * upstream).sum().backward()
    for key, parameter in connector.named_parameters():
        expected = exact[key].grad
        assert parameter.grad is not None and expected is not None
        assert torch.allclose(parameter.grad.double(), expected, atol=1e-4), key


@pytest.mark.parametrize("matching", [False, True])
@pytest.mark.parametrize("d_target", [9, 300])
@pytest.mark.parametrize(("name", "settings"), SHAPES)
def test_the_loss_and_its_gradient_against_float64(
    name: str, settings: dict[str, Any], d_target: int, matching: bool
) -> None:
    """Both ways an mlp has to its gradient: with 300 targets it never forms the prediction."""
    rows, target = random_rows(40, 12), random_rows(40, d_target, seed=3)
    connector = make(name, d_target=d_target, **settings)
    if matching and not connector.relu_output:
        pytest.skip("the matching loss is for relu outputs")
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    total = connector.backward(rows, target, SquaredLoss(0.3, matching, hidden=0.02))
    exact = {key: value.detach().double().requires_grad_() for key, value in connector.named_parameters()}
    x, y = rows.dense().double(), target.dense().double()
    hidden = None
    z = exact.get("b", exact.get("b2", torch.zeros(d_target)))
    if "W" in exact:
        z = z + x @ exact["W"]
    if "W1" in exact:
        hidden = torch.relu(x @ exact["W1"] + exact.get("b1", torch.zeros(5)))
        z = z + hidden @ exact["W2"]
    predicted = torch.relu(z) if connector.relu_output else z
    assert total.item() == pytest.approx((predicted - y).square().sum().item(), rel=1e-4)
    loss = (predicted.square() - 2 * z * y if matching else (predicted - y).square()).sum() * 0.3 / 2
    (loss + (0.02 * hidden.sum() if hidden is not None else 0)).backward()
    for key, parameter in connector.named_parameters():
        expected = exact[key].grad
        assert parameter.grad is not None and expected is not None
        assert torch.allclose(parameter.grad.double(), expected, rtol=1e-4, atol=1e-3), key


@pytest.mark.parametrize("name", ["linear", "nonlinear"])
@pytest.mark.parametrize("by", ["adam", "proximal"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("loss", ["mse", "matching"])
def test_the_columns_take_the_steps_of_torch(
    monkeypatch: pytest.MonkeyPatch, name: str, by: str, bias: bool, loss: str
) -> None:
    """The compiled steps over tiles of columns against the same solver in torch, 45 targets being no whole tiles."""
    from saelink.fit.solvers.adam import Columns, Loss

    if loss == "matching" and name == "linear":
        pytest.skip("the matching loss is for relu outputs")
    source, target = random_rows(300, 40, seed=8, density=0.1), random_rows(300, 45, seed=9, density=0.3)
    found: list[tuple[dict[str, torch.Tensor], Fit]] = []
    for columns in (True, False):
        monkeypatch.setattr(Columns, "fits", staticmethod(lambda connector, device, said=columns: said))
        connector = make(name, 40, 45, bias=bias, init="random")
        settings: dict[str, Any] = {"tokens": 600, "batch_tokens": 50, "lr": 1e-3, "lr_decay": 0.5}
        fit = solve(connector, problem(source, target, 1e-2, c=2.0), by, loss=Loss[loss], **settings)
        found.append((connector.state_dict(), fit))
    (ours, fit), (theirs, expected) = found
    assert theirs["W"].abs().max() > 0.1
    for key, tensor in ours.items():
        assert torch.allclose(tensor, theirs[key], atol=2e-5), key
    assert fit.final == pytest.approx(expected.final, rel=1e-3)


@pytest.mark.parametrize(("name", "settings"), SHAPES)
def test_the_penalty_is_the_mean_over_output_rows(name: str, settings: dict[str, Any]) -> None:
    connector = make(name, **settings)
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    matrices = {key: p.detach() for key, p in connector.named_parameters() if key.startswith("W")}
    sizes = {key: matrix.abs().sum(0).mean().item() for key, matrix in matrices.items()}
    expected = sum(sizes.values()) / len(sizes)
    if name == "skip":  # all weights at one price
        expected = sum(matrix.abs().sum().item() for matrix in matrices.values()) / 9
    assert connector.l1() == pytest.approx(expected, rel=1e-6)
    assert connector.n_edges() == sum(matrix.numel() for matrix in matrices.values())
    assert connector.n_edges(1.0) == sum(int((matrix.abs() > 1).sum()) for matrix in matrices.values())


@pytest.mark.parametrize(("name", "settings"), SHAPES)
def test_a_connector_comes_back_from_its_tensors(name: str, settings: dict[str, Any]) -> None:
    one, two = make(name, **settings), make(name, **settings)
    rows = random_rows(30, 12)
    solve(one, problem(rows, random_rows(30, 9, seed=5)), tokens=2000, batch_tokens=20, lr=1e-2)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(rows), two(rows))


def test_strongest_is_by_magnitude_and_leaves_zeros_out() -> None:
    edges = strongest(torch.tensor([0.1, -0.5, 0.0, 0.3]), 4)
    assert edges.ids == [1, 3, 0] and edges.weights == pytest.approx([-0.5, 0.3, 0.1])
    assert strongest(torch.tensor([0.1, -0.5, 0.0, 0.3]), 1).ids == [1]


# --------------------------------------------------------------------------- Adam


@pytest.mark.parametrize("bias", [False, True])
def test_a_planted_sparse_w_is_recovered(bias: bool) -> None:
    source, target, W = planted()
    connector = make("linear", 40, 25, bias=bias)
    fit = solve(connector, problem(source, target, 1e-4), tokens=400_000, batch_tokens=200, lr=5e-3)
    assert fit.final["validation_fvu"] < 0.01
    for number in range(25):
        edges = connector.edges(number, 3)
        assert edges.ids == W[:, number].argsort(descending=True)[:3].tolist()
        assert edges.weights == pytest.approx([0.9, 0.5, 0.3], abs=0.05)


def test_adam_reaches_scikit_learns_lasso_objective() -> None:
    """Our objective per row is twice scikit-learn's, so its alpha is half of ours."""
    from sklearn.linear_model import Lasso

    source, target, _ = planted(2000)
    x, y = source.dense().double().numpy(), target.dense().double().numpy()
    for l1_alpha in (1e-3, 1e-2):
        connector = make("linear", 40, 25)
        solve(connector, problem(source, target, l1_alpha), tokens=2_000_000, batch_tokens=1000, lr=2e-3)
        exact = Lasso(alpha=l1_alpha / 2, fit_intercept=False, tol=1e-10, max_iter=100_000).fit(x, y)

        def objective(W: Any, alpha: float = l1_alpha) -> float:
            return float(((y - x @ W) ** 2).mean(0).mean() + alpha * abs(W).sum(0).mean())

        best, ours = objective(exact.coef_.T), objective(connector.state_dict()["W"].double().numpy())
        assert best <= ours + 1e-12, "the lasso's optimum can't be beaten: the objectives differ"
        assert ours < best * 1.02


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    source, target, _ = planted(1000)

    def weights(seed: int) -> torch.Tensor:
        connector = make("linear", 40, 25)
        solve(connector, problem(source, target, seed=seed), tokens=10_000, batch_tokens=100)
        return connector.state_dict()["W"]

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_dividing_by_c_is_multiplying_alpha() -> None:
    """error / c + alpha L1 has the minimum of error + c alpha L1; Adam's steps don't see the common factor."""
    source, target, _ = planted(2000)

    def fitted(l1_alpha: float, c: float) -> torch.Tensor:
        connector = make("linear", 40, 25)
        solve(connector, problem(source, target, l1_alpha, c=c), tokens=300_000, batch_tokens=1000)
        return connector.state_dict()["W"]

    assert torch.allclose(fitted(1e-2, 4.0), fitted(4e-2, 1.0), atol=2e-3)


def test_the_history_counts_tokens_and_ends_with_the_last_step() -> None:
    source, target, _ = planted(1000)
    settings: dict[str, Any] = {"tokens": 2500, "batch_tokens": 100, "validate_every": 1000}
    fit = solve(make("linear", 40, 25), problem(source, target), **settings)
    history = fit.history
    assert fit.final == history[-1]
    assert [point["tokens"] for point in history] == [1000, 2000, 2500]
    assert history[0]["validation_mse"] > history[-1]["validation_mse"]


def test_patience_stops_and_keeps_the_best_weights() -> None:
    source, _, _ = planted(1000)
    noise = random_rows(1000, 25, seed=99)
    half = torch.arange(500)
    task = problem(source, noise)._replace(train=split_of(source.select(half), noise.select(half)))
    connector = make("mlp", 40, 25, d_hidden=64)
    settings: dict[str, Any] = {"tokens": 2_000_000, "batch_tokens": 100, "validate_every": 2000, "lr": 1e-2}
    history, final = solve(connector, task, patience=3, **settings)
    assert len(history) < 1000, "it never stopped"
    best = min(point["objective"] for point in history)
    assert [point["objective"] for point in history].index(best) == len(history) - 4
    assert final["objective"] == best
    with torch.no_grad():
        mse = (connector(source) - noise.dense()).square().mean().item()
    assert mse == pytest.approx(best, rel=1e-4)


def test_the_mlp_fits_what_no_linear_map_can() -> None:
    """A AND NOT B on binary latents, and exclusive or."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(4000, 2, generator=generator) < 0.5).float().T
    source = Rows.from_dense(torch.stack([a, b, torch.ones(4000)], 1))
    target = Rows.from_dense(torch.stack([a * (1 - b), (a - b).abs()], 1))
    fit: Callable[[str], float] = lambda name: solve(  # noqa: E731
        make(name, 3, 2), problem(source, target), tokens=800_000, batch_tokens=400, lr=1e-2
    ).final["validation_fvu"]
    assert fit("linear") > 0.6 and fit("mlp") < 0.01


def test_rounded_products_reach_the_same_objective() -> None:
    """Within .5% (on a processor without bfloat16 products the two are the same); and torch's setting is left alone."""
    source, target, _ = planted()
    noise = 0.2 * torch.randn(len(target), target.d, generator=torch.Generator().manual_seed(3))
    target = Rows.from_dense(torch.relu(target.dense() + noise))
    before = torch.get_float32_matmul_precision()
    found = [
        solve(
            make("mlp", 40, 25, d_hidden=64), problem(source, target, 1e-4), "proximal",
            tokens=400_000, batch_tokens=200, lr=5e-3, products=products,
        ).final["objective"]
        for products in Products
    ]  # fmt: skip
    assert found[1] == pytest.approx(found[0], rel=5e-3)
    assert torch.get_float32_matmul_precision() == before
