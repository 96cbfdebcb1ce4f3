"""Fits beside one another: what tells them apart, and which are on the frontier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saelink.config.schema import Config
from saelink.evidence.compared import (
    comparable,
    differing,
    fit_of,
    marked,
    mean_predictor,
    name_of,
    oracle,
    row_of,
    series_of,
    settings_of,
)
from saelink.fit.train import TrainStage
from saelink.interventions.oracle import OracleStage
from saelink.job import Job
from saelink.latents.link import load_split
from saelink.store.store import Store


def row(**values: Any) -> dict[str, Any]:
    """A fit with the given settings; the others are all the same."""
    usual = {"model": "m", "layer": 1, "link": "mlp", "data": "d", "tokens": 10, "sae": "s", "sae_width": 8}
    usual |= {"connector": "linear", "solver": "exact", "seed": None, "l1_alpha": 0.1, "normalise": "none"}
    return usual | {"solver_tolerance": 1e-4} | values


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([row(), row(l1_alpha=1.0)], ["linear exact", "linear exact"]),
        ([row(), row(layer=2, tokens=11)], ["layer 1, linear exact", "layer 2, linear exact"]),
        ([row(), row(solver_tolerance=0.1)], ["linear exact, tolerance 0.0001", "linear exact, tolerance 0.1"]),
        (
            [row(connector="mlp", connector_d_hidden=4, seed=0), row(connector="mlp", connector_d_hidden=8, seed=1)],
            ["mlp exact, seed 0, d_hidden 4", "mlp exact, seed 1, d_hidden 8"],
        ),
        ([row(), row(connector="mlp", connector_d_hidden=4)], ["linear exact", "mlp exact"]),
        ([row(), row(data="e", tokens=9)], ["d, linear exact", "e, linear exact"]),
        ([row(), row(tokens=9)], ["10, linear exact", "9, linear exact"]),
    ],
)
def test_a_line_is_named_by_what_differs(rows: list[dict[str, Any]], names: list[str]) -> None:
    found = differing(rows)
    assert [series_of(each, found) for each in rows] == names


points = st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3]), st.sampled_from([1.0, 2.0, 3.0])), max_size=8)


@given(points, st.floats(0.15, 0.4))
def test_the_frontier_is_what_nothing_beats(found: list[tuple[float, float]], variance: float) -> None:
    rows: list[dict[str, Any]] = [{"mse": mse, "l1": l1, "fvu": mse / variance} for mse, l1 in found]
    for each in marked(rows, ["here"] * len(rows)):
        beaten = any(
            other["mse"] <= each["mse"] and other["l1"] <= each["l1"] and (other["mse"], other["l1"]) != point
            for point in [(each["mse"], each["l1"])]
            for other in rows
        )
        assert each["pareto"] == (not beaten and each["fvu"] < 1)


def test_a_fit_worse_than_the_mean_is_never_on_the_frontier() -> None:
    assert [each["pareto"] for each in marked([{"mse": 2.0, "l1": 1.0, "fvu": 1.19}], ["here"])] == [False]


def test_settings_and_names_are_the_fits_own(config: Callable[..., Config], store: Store) -> None:
    first = TrainStage(Job(config(), store)).pull()
    other = TrainStage(Job(config("l1_alpha=1e-2", "seed=1", "solver.lr=2e-2"), store)).pull()
    elsewhere = TrainStage(Job(config("layer=0"), store)).pull()
    assert settings_of(fit_of(other)).items() >= {
        "model": "llama", "layer": 1, "link": "mlp", "sources": "blocks.1.hook_resid_mid", "connector": "linear",
        "target": "blocks.1.hook_mlp_out", "sae": "saes", "sae_width": 48, "solver": "adam", "l1_alpha": 0.01,
        "seed": 1, "solver_lr": 0.02, "tokens": other.facts["n_tokens"],
    }.items()  # fmt: skip
    names = [name_of(fit_of(each)) for each in (first, other, elsewhere)]
    assert len(set(names)) == 3 and "seed 1" in names[1] and "lr 0.02" in names[1] and "layer 0" in names[2]
    assert {each["train"] for each in comparable(store, first)} == {first.key, other.key}


def test_the_mean_predictor_and_the_oracle_are_of_the_validation_split(
    config: Callable[..., Config], store: Store
) -> None:
    job = Job(config(), store)
    connector = TrainStage(job).pull()
    target = load_split(job.cfg, job.sides, "validation").target.dense().double()
    assert mean_predictor(row_of(connector)) == pytest.approx(target.var(0, correction=0).mean().item(), rel=1e-6)
    assert oracle(store, connector) is None
    stage = OracleStage(job, "validation")
    assert stage.key != OracleStage(job).key
    made = stage.pull()
    assert oracle(store, connector) == pytest.approx(made.facts["mse"])
    assert made.facts["n_tokens"] == len(target)
