"""A linear map and hidden units side by side, and the exact readout of both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import Lasso as Reference

from saelink.config.schema import Config
from saelink.connectors.base import Connector
from saelink.connectors.mlp import MLPConnector
from saelink.errors import SaelinkError
from saelink.evidence.evaluate import linear_shares, measure_connector
from saelink.experiments import EXPERIMENTS, tables
from saelink.fit.solvers import SOLVERS
from saelink.fit.solvers.readout import features
from saelink.fit.train import TrainStage, fitted_connector
from saelink.job import Job
from saelink.latents.rows import Rows
from saelink.latents.split import Tokens
from saelink.progress import Observer
from saelink.store.store import Store

from helpers.fits import make, problem, solve
from helpers.rows import random_rows
from helpers.world import Run


def computed(n: int = 8000) -> tuple[Rows, Rows]:
    """Targets of 12 sources: 0 and 1 linear, 2 an exclusive or, 3 linear plus an AND, 4 nothing but noise."""
    generator = torch.Generator().manual_seed(3)
    x = (torch.rand(n, 12, generator=generator) < 0.3).float()
    either, both = ((x[:, 4] + x[:, 5]) > 0).float(), x[:, 4] * x[:, 5]
    noise = 0.1 * torch.rand(n, generator=generator)
    columns = [x[:, 0], x[:, 1] + 0.5 * x[:, 2], either - both, x[:, 3] + x[:, 6] * x[:, 7], noise]
    return Rows.from_dense(x), Rows.from_dense(torch.stack(columns, 1))


def tokens(source: Rows, target: Rows) -> Tokens:
    return Tokens(source, target, torch.arange(len(source)), torch.ones(len(source), dtype=torch.bool))


def fitted(name: str, source: Rows, target: Rows, alpha: float, by: str, **settings: object) -> Connector:
    connector = make(name, source.d, target.d, **({"d_hidden": 8} if name in ("skip", "mlp") else {}), **settings)
    schedule = {} if by == "exact" else {"tokens": 200_000, "batch_tokens": 200, "lr": 1e-2}
    solve(connector, problem(source, target, alpha), by, **schedule)
    return connector


def test_each_target_says_how_much_of_it_is_linear() -> None:
    source, target = computed()
    connector = fitted("skip", source, target, 3e-3, "readout")
    test = tokens(source, target)
    sums = measure_connector(connector, test, "cpu", Observer())[0]["all"]
    assert (sums.fvu_by_latent()[:4] < 0.05).all(), sums.fvu_by_latent()
    share = linear_shares(connector, test, sums, "cpu")
    assert share is not None
    assert share[0] > 0.99 and share[1] > 0.99
    assert share[2] < 0.2 < share[3] < 0.95
    through_hidden = connector.output_weight()[connector.direct :] != 0
    assert not through_hidden[:, :2].any(), "a linear target needs no hidden unit"
    assert through_hidden[:, 2].any() and through_hidden[:, 3].any()
    assert connector.edges(0, 3).ids == [0], "edges from sources keep the sources' numbers"


def test_it_beats_both_of_its_parts() -> None:
    source, target = computed()
    error = {}
    for name, by in (("linear", "exact"), ("mlp", "readout"), ("skip", "readout")):
        connector = fitted(name, source, target, 3e-3, by)
        error[name] = measure_connector(connector, tokens(source, target), "cpu", Observer())[0]["all"].fvu()
    assert error["skip"] < 0.5 * error["linear"] and error["skip"] <= error["mlp"] + 1e-3, error


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["skip", "mlp"])
def test_the_readout_is_scikit_learns_lasso(name: str, bias: bool) -> None:
    """Given the hidden units it has found no readout is better, and its certificate says so."""
    source, target = random_rows(600, 12), random_rows(600, 9, seed=4)
    connector = make(name, d_hidden=5, bias=bias)
    task = problem(source, target, 2e-3)
    settings = {"tokens": 4000, "batch_tokens": 50, "lr": 3e-3, "tolerance": 1e-7}
    found = solve(connector, task, "readout", **settings)
    assert isinstance(connector, MLPConnector)
    hidden = connector.hidden(source).detach().double()
    # an mlp's weight on a hidden unit at half the price: as good as a unit of twice the size
    parts = [2 * hidden] if name == "mlp" else [source.dense().double(), hidden]
    design, y = torch.cat(parts, 1).numpy(), target.dense().double().numpy()
    # scikit-learn: |y - Xw|^2 / 2N + alpha |w|; ours: |y - Xw|^2 / N + l1_alpha |w|
    reference = Reference(alpha=1e-3, fit_intercept=bias, tol=1e-10, max_iter=100_000).fit(design, y)
    expected = torch.from_numpy(design @ reference.coef_.T + reference.intercept_)
    assert torch.allclose(connector(source).detach().double(), expected, atol=2e-4)
    assert 0 <= found.final["worst_gap"] <= 1e-7
    error = (connector(source).detach().double() - torch.from_numpy(y)).square().mean().item()
    assert found.final["train_mse"] == pytest.approx(error, rel=1e-4)
    assert found.final["training_objective"] == pytest.approx(error + 2e-3 * connector.l1(), rel=1e-4)


def test_the_readout_is_never_above_what_adam_left() -> None:
    source, target = computed(3000)
    task = problem(source, target, 1e-3)
    by_adam, read_out = make("skip", 12, 5, d_hidden=8), make("skip", 12, 5, d_hidden=8)
    settings = {"tokens": 60_000, "batch_tokens": 200, "lr": 1e-2}
    one = solve(by_adam, task, "proximal", **settings).final
    two = solve(read_out, task, "readout", tolerance=1e-7, **settings)
    assert two.final["objective"] <= two.history[-2]["objective"] * (1 + 1e-5)
    assert two.final["objective"] <= one["objective"] * 1.02
    assert [entry["tokens"] for entry in two.history] == sorted(entry["tokens"] for entry in two.history)


def test_products_of_what_is_read_out_do_not_depend_on_the_pieces() -> None:
    source, target = random_rows(500, 12), random_rows(500, 9, seed=4)
    connector = make("skip", d_hidden=5)
    assert isinstance(connector, MLPConnector)
    task = problem(source, target)
    found = features(connector, task)
    design = torch.cat([source.dense(), connector.hidden(source).detach()], 1).double()
    assert torch.allclose(found.xx, design.T @ design / 500, atol=1e-6)
    assert torch.allclose(found.xy, design.T @ target.dense().double() / 500, atol=1e-6)
    assert torch.allclose(found.x, design.mean(0), atol=1e-6)


def test_other_units_are_the_same_map() -> None:
    connector = make("skip", d_hidden=5, bias=True)
    rows = random_rows(30, 12)
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.copy_(torch.randn(parameter.shape))
        before, factor = connector(rows), torch.rand(12) + 0.5
        connector.rescale(factor, 3.0)
        scaled = Rows(rows.offsets, rows.indices, rows.values / factor[rows.indices], rows.d)
        assert torch.allclose(connector(scaled), 3 * before, atol=1e-4)


def test_what_readout_can_fit() -> None:
    for name in ("linear", "two_nonlinear", "sae"):
        connector = make(name, **({} if name == "linear" else {"d_hidden": 3}))
        solver = SOLVERS["readout"]
        with pytest.raises(SaelinkError, match=f"connector={name} is none; use skip or mlp"):
            solver(solver.Settings(name="readout")).check(type(connector), connector.config)


def test_the_whole_chain_with_a_skip_connector(config: Callable[..., Config], store: Store) -> None:
    settings = ["connector=skip", "connector.d_hidden=6", "solver.tokens=4000", "solver.batch_tokens=100"]
    cfg = config(*settings, "solver=readout")
    artifact = TrainStage(Job(cfg, store)).pull()
    assert artifact.facts.get("worst_gap", 1) <= 1e-4
    connector = fitted_connector(artifact)
    assert connector.n_hidden == 6 and connector.direct == connector.d_source


def test_the_experiment_compares_the_three_at_each_penalty(config: Callable[..., Config], store: Store) -> None:
    settings = ["experiment.l1_grid=[1e-2]", "experiment.d_hidden=6", "experiment.tokens=2048"]
    cfg = config(*settings, "solver.tokens=2048")
    result = EXPERIMENTS["skip"].run(Job(cfg, store))
    rows = {(row["connector"], row["l1_alpha"]): row for row in tables.rows_of(result)}
    assert set(rows) == {(name, alpha) for name in ("linear", "mlp", "skip") for alpha in (8e-4, 1e-2)}
    assert all((row["linear_share"] is not None) == (name == "skip") for (name, _), row in rows.items())


def test_evaluate_report_export_and_verify_of_a_skip_connector(saelink: Run, tmp_path: Path) -> None:
    words = [
        "connector=skip",
        "connector.d_hidden=6",
        "solver=readout",
        "solver.tokens=8192",
        "solver.batch_tokens=128",
    ]
    code, out, err = saelink("evaluate", *words, "l1_alpha=1e-4")
    assert (
        code == 0 and "given the hidden units" in out and "% linear)" in out and "of the training objective" not in out
    )
    code, out, err = saelink("verify", *words, "l1_alpha=1e-4")
    assert code == 0 and "= relu(" not in out[out.index("strong effects") :], err
    code, out, err = saelink("report", *words, "l1_alpha=1e-4", "report.ablated=1")
    assert code == 0 and "connector 1 of 4" not in out, err
    code, out, err = saelink("export", *words, "l1_alpha=1e-4")
    assert code == 0, err
    (folder,) = (tmp_path / "outputs/export").iterdir()
    sources = {line.split(",")[6] for line in (folder / "edges.csv").read_text().splitlines()[1:]}
    assert "blocks.1.hook_resid_mid" in sources, "edges from sources keep their hook"
    code, out, err = saelink("evaluate", *words, "l1_alpha=100")
    assert code == 0 and "0 non-zero" in out, err
