"""The exact and the proximal solver: optimality, certificates, agreement with scikit-learn, planted circuits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saelink.errors import SaelinkError
from saelink.fit.lasso.coordinate import Lasso
from saelink.fit.lasso.dense import DenseLasso
from saelink.fit.products.dense import Gram, gram_of
from saelink.latents.rows import Rows

from helpers.fits import make, planted, problem, solve
from helpers.rows import random_rows, split_of


@pytest.fixture(scope="module")
def noisy() -> tuple[Rows, Rows]:
    """Correlated sources, one of which never fires, and targets that no linear map explains fully."""
    generator = torch.Generator().manual_seed(3)
    source = random_rows(1500, 30, seed=4, density=0.2).dense()
    source[:, 1] = torch.relu(source[:, 0] + 0.1 * torch.randn(1500, generator=generator))
    source[:, 7] = 0
    W = torch.randn(30, 12, generator=generator) * (torch.rand(30, 12, generator=generator) < 0.2)
    target = torch.relu(source @ W + 0.3 * torch.randn(1500, 12, generator=generator))
    return Rows.from_dense(source), Rows.from_dense(target)


def test_the_products_are_those_of_the_dense_matrices(noisy: tuple[Rows, Rows]) -> None:
    source, target = noisy
    x, y = source.dense().double(), target.dense().double()
    products = gram_of(split_of(source, target))
    expected = Gram(x.T @ x / 1500, x.T @ y / 1500, y.square().mean(0), x.mean(0), y.mean(0))
    for name, value in expected._asdict().items():
        assert torch.allclose(getattr(products, name), value, atol=1e-12), name
    centred, xc, yc = products.centred(), x - x.mean(0), y - y.mean(0)
    assert torch.allclose(centred.xx, xc.T @ xc / 1500, atol=1e-12)
    assert torch.allclose(centred.xy, xc.T @ yc / 1500, atol=1e-12)
    assert torch.allclose(centred.yy, yc.square().mean(0), atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("l1_alpha", [1e-7, 1e-5, 1e-3, 1e-2, 0.1, 10.0])
def test_the_lasso_of_scikit_learn(noisy: tuple[Rows, Rows], l1_alpha: float, bias: bool) -> None:
    """Our objective per row is twice scikit-learn's, so its alpha is half of ours."""
    from sklearn.linear_model import Lasso as Reference

    source, target = noisy
    connector = make("linear", 30, 12, bias=bias)
    fit = solve(connector, problem(source, target, l1_alpha), by="exact", tolerance=1e-6)
    x, y = source.dense().double().numpy(), target.dense().double().numpy()
    theirs = Reference(alpha=l1_alpha / 2, fit_intercept=bias, tol=1e-12, max_iter=200_000).fit(x, y)
    with torch.no_grad():
        ours = ((connector(source) - target.dense()).double() ** 2).mean(0).mean() + l1_alpha * connector.l1()
    best = ((y - theirs.predict(x)) ** 2).mean(0).mean() + l1_alpha * np.abs(theirs.coef_).sum(1).mean()
    assert ours.item() == pytest.approx(best, rel=1e-5)
    assert fit.final["training_objective"] == pytest.approx(best, rel=1e-5)
    assert 0 <= fit.final["worst_gap"] <= 1e-6
    assert fit.final["duality_gap"] == pytest.approx(fit.final["relative_gap"] * best, rel=1e-3, abs=1e-12)


def test_least_squares_is_the_closed_form(noisy: tuple[Rows, Rows]) -> None:
    source, target = noisy
    connector = make("linear", 30, 12)
    fit = solve(connector, problem(source, target), by="exact")
    assert fit.final["relative_gradient"] < 1e-6 and "relative_gap" not in fit.final
    x, y = source.dense().double(), target.dense().double()
    expected = torch.linalg.lstsq(x, y, driver="gelsd").solution
    assert torch.allclose(connector.state_dict()["W"].double(), expected, atol=1e-5)
    assert (connector.state_dict()["W"][7] == 0).all(), "a source that never fires has no edge"


@pytest.mark.parametrize("lam", [1e-6, 1e-3, 1e-2])
def test_the_certificate_bounds_the_distance_to_the_optimum(noisy: tuple[Rows, Rows], lam: float) -> None:
    """Below the value at any weights, and no more than the best known value."""
    products = gram_of(split_of(*noisy))
    lasso = Lasso(products.xx, products.xy, products.yy)
    solution, gaps = lasso.solve(lam, 1e-9, 1_000_000)
    best, _ = lasso.certificate(solution, lam)
    generator = torch.Generator().manual_seed(0)
    for W in (torch.zeros(30, 12).double(), lasso.least_squares(), torch.randn(30, 12, generator=generator).double()):
        primal, dual = lasso.certificate(W, lam)
        assert (dual <= best + 1e-12).all() and (primal >= best - 1e-12).all()
    primal, dual = lasso.certificate(solution, lam)
    assert (primal - dual <= gaps + 1e-12).all() and (gaps <= 1e-9 * products.yy / 2 + 1e-15).all()


def test_the_optimality_condition_holds_at_the_solution(noisy: tuple[Rows, Rows]) -> None:
    products, lam = gram_of(split_of(*noisy)), 2e-2
    W, _ = Lasso(products.xx, products.xy, products.yy).solve(lam, 1e-10, 1_000_000)
    gradient = products.xy - products.xx @ W
    assert (gradient.abs() <= lam * (1 + 1e-4)).all()
    assert torch.allclose(gradient[W != 0], lam * W[W != 0].sign(), rtol=1e-3)
    assert 0 < (W != 0).sum() < W.numel() / 2, "zeros are zeros"


def test_the_products_do_not_depend_on_the_pieces(noisy: tuple[Rows, Rows], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gram_of(split_of(*noisy))
    monkeypatch.setattr("saelink.fit.products.dense.STEP", 400)
    for name, value in gram_of(split_of(*noisy, pieces=7))._asdict().items():
        assert torch.allclose(getattr(whole, name), value, atol=1e-12), name


def test_a_wrong_solution_has_no_certificate(noisy: tuple[Rows, Rows]) -> None:
    products, lam = gram_of(split_of(*noisy)), 1e-2
    lasso = Lasso(products.xx, products.xy, products.yy)
    W, gaps = lasso.solve(lam, 1e-6, 1_000_000)
    assert (gaps <= 1e-6 * products.yy / 2).all()
    for wrong in (W * 1.05, torch.where(W.abs() < 0.05, 0, W), W.roll(1, 0)):
        primal, dual = lasso.certificate(wrong, lam)
        assert ((primal - dual) / (products.yy / 2)).max() > 1e-5


@pytest.mark.parametrize("kind", [Lasso, DenseLasso])
@pytest.mark.parametrize("lam", [1e-14, 1e-18, 1e-30, 1e-300])
def test_next_to_no_penalty_is_none_and_takes_no_sweeps(
    noisy: tuple[Rows, Rows], kind: type[Lasso], lam: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("rounding was swept over")

    monkeypatch.setattr(Lasso, "_sweeps", never)
    monkeypatch.setattr(DenseLasso, "_steps", never)
    gram = gram_of(split_of(*noisy))
    lasso = kind(gram.xx, gram.xy, gram.yy)
    W, gaps = lasso.solve(lam, 1e-4, 20_000)
    assert torch.equal(W, lasso.least_squares()) and (gaps <= 1e-4 * gram.yy / 2).all()


@pytest.mark.parametrize("kind", [Lasso, DenseLasso])
def test_next_to_no_penalty_on_positive_weights_ends_where_rounding_begins(
    noisy: tuple[Rows, Rows], kind: type[Lasso], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are those of non-negative least squares, and the gap, which is proved, is what they lack."""
    from scipy.optimize import nnls

    from saelink.kernels import lasso as kernel

    gram = gram_of(split_of(*noisy))
    source, target = (rows.dense().double() for rows in noisy)
    asked: list[float] = []
    at_knot, descend = DenseLasso._at_knot_above, kernel.descend  # noqa: SLF001
    monkeypatch.setattr(
        DenseLasso, "_at_knot_above", lambda self, lam, top: asked.append(lam) or at_knot(self, lam, top)
    )
    monkeypatch.setattr(kernel, "descend", lambda *words: asked.append(words[6]) or descend(*words))
    for lam in (1e-18, 1e-30, 1e-300):
        lasso = kind(gram.xx, gram.xy, gram.yy, positive=True)
        W, gaps = lasso.solve(lam, 1e-4, 20_000)
        assert (gaps <= 1e-4 * gram.yy / 2).all() and (W >= 0).all()
        for i in range(target.shape[1]):
            _, norm = nnls(source.numpy(), target[:, i].numpy())
            lacking = (target[:, i] - source @ W[:, i]).square().sum().item() - norm**2
            assert lacking / len(source) / 2 <= gaps[i] + 1e-12 * gram.yy[i], (lam, i)
    assert asked and min(asked) > 1e-14, "the path went on where nothing can be told apart"


def test_a_path_gives_what_each_penalty_gives_alone(noisy: tuple[Rows, Rows]) -> None:
    """To the last bit, whatever was asked for before."""
    products = gram_of(split_of(*noisy))
    path = Lasso(products.xx, products.xy, products.yy)
    for lam in (0.1, 0.03, 0.01, 0.004, 0.02, 1e-3):
        alone = Lasso(products.xx, products.xy, products.yy)
        assert all(map(torch.equal, path.solve(lam, 1e-4, 1000), alone.solve(lam, 1e-4, 1000)))


def test_what_a_command_did_before_changes_no_fit(noisy: tuple[Rows, Rows]) -> None:
    """Problems of one name go on from one another's path, but not from one that was cut short."""
    named = problem(*noisy, 1e-3)._replace(gram_name="a name")
    alone = make("linear", 30, 12)
    solve(alone, named._replace(gram_name=""), by="exact")
    for before in ({"max_sweeps": 1}, {"positive": True}, {}):
        solve(make("linear", 30, 12), named._replace(l1_alpha=2e-3), by="exact", **before)
        after = make("linear", 30, 12)
        solve(after, named, by="exact")
        assert torch.equal(after.state_dict()["W"], alone.state_dict()["W"]), before


@pytest.mark.parametrize("bias", [False, True])
def test_positive_weights_are_those_of_scikit_learn(noisy: tuple[Rows, Rows], bias: bool) -> None:
    from sklearn.linear_model import Lasso as Reference

    source, target = noisy
    connector = make("linear", 30, 12, bias=bias)
    fit = solve(connector, problem(source, target, 1e-2), by="exact", tolerance=1e-7, positive=True)
    x, y = source.dense().double().numpy(), target.dense().double().numpy()
    theirs = Reference(alpha=5e-3, fit_intercept=bias, positive=True, tol=1e-12, max_iter=200_000).fit(x, y)
    best = ((y - theirs.predict(x)) ** 2).mean(0).mean() + 1e-2 * np.abs(theirs.coef_).sum(1).mean()
    assert (connector.state_dict()["W"] >= 0).all()
    assert fit.final["training_objective"] == pytest.approx(best, rel=1e-5)
    assert fit.final["worst_gap"] <= 1e-7
    free = solve(make("linear", 30, 12, bias=bias), problem(source, target, 1e-2), by="exact", tolerance=1e-7)
    assert free.final["training_objective"] < best * 0.999, "some weight would be negative"


@pytest.mark.parametrize("positive", [False, True])
def test_the_dense_steps_of_a_gpu_reach_the_same_optimum(noisy: tuple[Rows, Rows], positive: bool) -> None:
    """On the CPU here: the same code, and the certificate says how far from the optimum either can be."""
    source, target = noisy
    products = gram_of(split_of(source, target)).centred()
    arguments = (products.xx, products.xy, products.yy, positive)
    scale = products.yy / 2
    dense = DenseLasso(*arguments)
    for lam in (3.0, 1e-2, 1e-3) if positive else (3.0, 1e-2, 1e-3, 1e-6):
        one, gaps_one = Lasso(*arguments).solve(lam, 1e-6, 20_000)
        two, gaps_two = dense.solve(lam, 1e-6, 20_000)
        alone, _ = DenseLasso(*arguments).solve(lam, 1e-6, 20_000)
        assert torch.equal(two, alone), "the penalties asked for before change nothing"
        assert (gaps_two <= 1e-6 * scale).all()
        values = [dense.certificate(W, lam)[0] for W in (one, two)]
        assert ((values[0] - values[1]).abs() <= torch.maximum(gaps_one, gaps_two) + 1e-12).all()
        assert (two[7] == 0).all(), "a source that never fires"
        assert not positive or (two >= 0).all()
    assert (dense.solve(3.0, 1e-6, 100)[0] == 0).all()


def test_too_little_memory_is_said_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    from saelink.fit.products.dense import need_dense_memory

    monkeypatch.setattr("saelink.runtime.memory_available", lambda: 10**9)
    need_dense_memory(1000, 1000)
    with pytest.raises(SaelinkError, match=r"solver=exact: 16,384 source .* need 29\.5 GB of memory, 1\.0 GB are free"):
        need_dense_memory(16384, 16384)


def test_at_alpha_max_and_above_all_weights_are_zero(noisy: tuple[Rows, Rows]) -> None:
    """alpha_max of a row is 2 max_j |x_j . y_i| / N."""
    source, target = noisy
    alpha_max = 2 * gram_of(split_of(source, target)).xy.abs().max().item()
    above, below = make("linear", 30, 12), make("linear", 30, 12)
    solve(above, problem(source, target, alpha_max * 1.0001), by="exact")
    solve(below, problem(source, target, alpha_max * 0.98), by="exact", tolerance=1e-8)
    assert above.n_edges() == 0 and below.n_edges() > 0


@pytest.mark.parametrize("l1_alpha", [0.0, 1e-3, 1e-2])
@pytest.mark.parametrize("bias", [False, True])
def test_exact_is_never_above_adam(noisy: tuple[Rows, Rows], l1_alpha: float, bias: bool) -> None:
    """In the training objective; the problem's validation rows are its training rows here."""
    task = problem(*noisy, l1_alpha)
    exact = solve(make("linear", 30, 12, bias=bias), task, by="exact", tolerance=1e-6)
    adam = solve(make("linear", 30, 12, bias=bias), task, tokens=400_000, batch_tokens=500, lr=3e-3)
    assert exact.final["objective"] <= adam.final["objective"] * (1 + 1e-6)


def test_debiasing_keeps_the_support_and_fits_it(noisy: tuple[Rows, Rows]) -> None:
    task = problem(*noisy, 2e-2)
    plain, debiased = make("linear", 30, 12), make("linear", 30, 12)
    before, after = solve(plain, task, by="exact"), solve(debiased, task, by="exact", debias=True)
    W, V = plain.state_dict()["W"], debiased.state_dict()["W"]
    assert torch.equal(W != 0, V != 0) and after.final["train_mse"] < before.final["train_mse"]
    x, y = noisy[0].dense().double(), noisy[1].dense().double()
    column = int((W != 0).sum(0).argmax())
    support = (W[:, column] != 0).nonzero().squeeze(1)
    expected = torch.linalg.lstsq(x[:, support], y[:, column : column + 1]).solution.squeeze(1)
    assert torch.allclose(V[support, column].double(), expected, atol=1e-5)


def test_dividing_by_c_is_multiplying_alpha_exactly(noisy: tuple[Rows, Rows]) -> None:
    one, two = make("linear", 30, 12), make("linear", 30, 12)
    solve(one, problem(*noisy, 1e-2, c=4.0), by="exact", tolerance=1e-9)
    solve(two, problem(*noisy, 4e-2), by="exact", tolerance=1e-9)
    assert torch.allclose(one.state_dict()["W"], two.state_dict()["W"], atol=1e-6)


def test_a_planted_w_is_found_with_no_other_edge() -> None:
    source, target, W = planted()
    connector = make("linear", 40, 25)
    solve(connector, problem(source, target, 1e-4), by="exact", tolerance=1e-7)
    found = connector.state_dict()["W"]
    assert torch.equal(found.abs() > 1e-3, W != 0)
    assert torch.allclose(found, W, atol=0.01)


def test_exact_refuses_what_it_cannot_fit() -> None:
    from saelink.connectors import CONNECTORS
    from saelink.fit.solvers import SOLVERS

    exact = SOLVERS["exact"]
    for name in set(CONNECTORS) - {"linear"}:
        with pytest.raises(SaelinkError, match="solver=exact fits connector=linear only"):
            exact(exact.Settings(name="exact")).check(CONNECTORS[name], CONNECTORS[name].Settings(name=name))


# --------------------------------------------------------------------------- proximal


def test_proximal_reaches_the_lasso_with_real_zeros(noisy: tuple[Rows, Rows]) -> None:
    task = problem(*noisy, 1e-2)
    exact, near, adam = (make("linear", 30, 12) for _ in range(3))
    best = solve(exact, task, by="exact", tolerance=1e-6).final["objective"]
    found = solve(near, task, by="proximal", tokens=600_000, batch_tokens=500, lr=3e-3).final
    solve(adam, task, tokens=600_000, batch_tokens=500, lr=3e-3)
    assert best <= found["objective"] < best * 1.01
    assert exact.n_edges() <= near.n_edges() < 1.5 * exact.n_edges()
    assert adam.n_edges() == 29 * 12, "Adam's subgradient makes no zeros, but for the source that never fires"


def test_proximal_without_a_penalty_is_adam(noisy: tuple[Rows, Rows]) -> None:
    one, two = make("mlp", 30, 12, d_hidden=8), make("mlp", 30, 12, d_hidden=8)
    solve(one, problem(*noisy), by="adam", tokens=20_000, batch_tokens=500)
    solve(two, problem(*noisy), by="proximal", tokens=20_000, batch_tokens=500, lr_decay=0)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ["mlp", "two_nonlinear", "sae"])
def test_proximal_prunes_two_layers(noisy: tuple[Rows, Rows], name: str) -> None:
    connector = make(name, 30, 12, d_hidden=16)
    solve(connector, problem(*noisy, 3e-2), by="proximal", tokens=400_000, batch_tokens=500, lr=3e-3)
    total = sum(weight.numel() for weight, _ in connector.penalised())
    assert 0 < connector.n_edges() < total / 2


# --------------------------------------------------------------------------- relu outputs


def test_the_matching_loss_is_convex_where_the_squared_error_dies() -> None:
    """A start with z < 0 everywhere: no gradient for the squared error, the optimum for the matching loss."""
    source, target, W = planted(2000)
    start = {"W": -torch.ones(40, 25)}

    def fitted(loss: str) -> torch.Tensor:
        from saelink.fit.solvers.adam import Loss

        connector = make("nonlinear", 40, 25)
        connector.initialise(torch.Generator(), start)
        solve(connector, problem(source, target), tokens=800_000, batch_tokens=500, lr=1e-2, loss=Loss[loss])
        return connector.state_dict()["W"]

    assert torch.equal(fitted("mse"), start["W"])
    assert torch.allclose(fitted("matching"), W, atol=0.02)


def test_the_matching_loss_has_the_gradient_it_says() -> None:
    """relu(z)^2 - 2yz, scaled like the squared error: d/dz = 2 (relu(z) - y)."""
    z = torch.randn(50, requires_grad=True)
    y = torch.rand(50)
    (torch.relu(z) ** 2 - 2 * y * z).sum().backward()
    assert z.grad is not None and torch.allclose(z.grad, 2 * (torch.relu(z.detach()) - y), atol=1e-6)


# --------------------------------------------------------------------------- starts and hidden penalty


def test_starts_random_zero_and_warm() -> None:
    from saelink.connectors import CONNECTORS

    rows = random_rows(20, 12)
    for name in CONNECTORS:
        settings = {} if name in ("linear", "nonlinear") else {"d_hidden": 5}
        zero = make(name, init="zero", **settings)
        assert (zero(rows) == 0).all()
        random = make(name, init="random", **settings)
        assert (random(rows) != 0).any()
        warm = make(name, **settings)
        warm.initialise(torch.Generator(), random.state_dict())
        assert torch.equal(warm(rows), random(rows))


def test_a_warm_start_of_another_shape_is_refused() -> None:
    two = make("mlp", d_hidden=6, init="abc")
    with pytest.raises(SaelinkError, match=r"connector.init=abc: W1 here is \[12, 6\], there \[12, 5\]"):
        two.initialise(torch.Generator(), make("mlp", d_hidden=5).state_dict())
    with pytest.raises(SaelinkError, match="there no such matrix"):
        two.initialise(torch.Generator(), make("linear").state_dict())


def test_the_hidden_penalty_is_the_objectives(noisy: tuple[Rows, Rows]) -> None:
    """The recorded objective is the stated one, and the more the hidden activations cost the fewer are left."""
    from saelink.connectors.sae import HiddenL1

    source, target = noisy
    hidden_l1: dict[str, float] = {}
    for name, settings, weight in (
        ("mlp", {}, 0.0),
        ("sae", {"hidden_l1": HiddenL1.sqrt_c}, 0.5),
        ("sae", {"hidden_l1": HiddenL1.as_is}, 1.0),
    ):
        connector = make(name, 30, 12, d_hidden=8, **settings)
        fit = solve(connector, problem(source, target, 1e-2, c=4.0), tokens=200_000, batch_tokens=250, lr=3e-3)
        with torch.no_grad():
            _, hidden = connector.maps(source)
            mse = (connector(source) - target.dense()).square().mean().item()
        assert hidden is not None
        here = hidden.abs().sum(1).mean().item()
        expected = mse / 4 + 1e-2 * (connector.l1() + weight * here)
        assert fit.final["objective"] == pytest.approx(expected, rel=1e-4)
        hidden_l1[f"{weight:g}"] = here
    assert 0 < hidden_l1["1"] < hidden_l1["0.5"] < hidden_l1["0"]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_certificate_holds_where_sources_are_sums_of_others() -> None:
    """Singular G, small penalty: what the bound promises no weights may undercut, and the solution keeps it."""
    from sklearn.linear_model import Lasso as Reference

    generator = torch.Generator().manual_seed(0)
    x = torch.relu(torch.randn(500, 8, generator=generator)).double()
    x = torch.cat([x, x[:, :2] @ torch.rand(2, 3, generator=generator).double(), x[:, :1]], 1)
    y = x @ torch.randn(12, 6, generator=generator).double() * 0.3
    y += 0.01 * torch.randn(500, 6, generator=generator).double()
    G, C, yy = x.T @ x / 500, x.T @ y / 500, y.square().mean(0)
    for lam in (1e-4, 1e-3):
        lasso = Lasso(G, C, yy)
        W, gaps = lasso.solve(lam, 1e-6, 50_000)
        value, bound = lasso.certificate(W, lam)
        assert ((gaps >= 0) & (gaps <= 1e-6 * yy / 2)).all(), lam
        reference = Reference(alpha=lam, fit_intercept=False, tol=1e-10, max_iter=20_000).fit(x.numpy(), y.numpy())
        best, _ = lasso.certificate(torch.from_numpy(reference.coef_.T.copy()), lam)
        assert (bound <= best + 1e-12).all() and (value <= best + 1e-6 * yy).all(), lam
