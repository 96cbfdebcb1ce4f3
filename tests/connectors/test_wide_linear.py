"""The wide linear connector against the linear one with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saelink.config.schema import Config
from saelink.connectors import exported
from saelink.connectors.base import Connector
from saelink.connectors.exported import WEIGHTS_FILE, connector_of, packed_state
from saelink.connectors.linear import LinearConnector, LinearSettings
from saelink.connectors.wide_linear import WideLinearConnector
from saelink.errors import SaelinkError
from saelink.evidence.edges import EdgesStage, load_edge_table
from saelink.evidence.evaluate import EvaluateStage
from saelink.fit.products import sparse
from saelink.fit.train import TrainStage, fitted_connector
from saelink.job import Job
from saelink.latents.metrics import ErrorSums
from saelink.store.store import Store

from helpers.rows import random_rows


def both(seed: int, n: int, m: int, density: float, bias: bool) -> tuple[WideLinearConnector, LinearConnector]:
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(n, m, generator=generator) * (torch.rand(n, m, generator=generator) < density)
    settings = LinearSettings(name="linear", bias=bias)
    wide, narrow = WideLinearConnector(settings, n, torch.arange(m)), LinearConnector(settings, n, torch.arange(m))
    source, target = W.nonzero(as_tuple=True)
    shuffled = torch.randperm(len(source), generator=generator)
    with torch.no_grad():
        wide.set_edges(source[shuffled], target[shuffled], W[source, target][shuffled])
        narrow.W.copy_(W)
        if bias:
            for connector in (wide, narrow):
                assert connector.b is not None
                connector.b.copy_(torch.arange(m) / 7 - 1)
    return wide, narrow


@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 30), st.sampled_from([0.0, 0.1, 0.9]), st.booleans())
def test_it_is_the_same_map_with_the_same_edges(seed: int, n: int, m: int, density: float, bias: bool) -> None:
    wide, narrow = both(seed, n, m, density, bias)
    rows = random_rows(17, n, seed=seed % 1000)
    assert torch.allclose(wide(rows), narrow(rows), atol=1e-5)
    assert wide.n_edges() == narrow.n_edges() and wide.n_edges(0.5) == narrow.n_edges(0.5)
    assert wide.l1() == pytest.approx(narrow.l1(), abs=1e-9)
    for latent in range(m):
        assert wide.edges(latent, 3) == narrow.edges(latent, 3)
    assert torch.equal(wide.edges_by_target().dense(), narrow.edges_by_target().dense())
    assert torch.equal(wide.output_weight(), narrow.output_weight())
    scales = torch.linspace(0.5, 2, n)
    with torch.no_grad():
        wide.rescale(scales, 3.0)
        narrow.rescale(scales, 3.0)
    assert torch.allclose(wide(rows), narrow(rows), atol=1e-4)


@given(st.integers(0, 2**31), st.booleans(), st.sampled_from([0.02, 0.5]))
def test_errors_without_a_dense_prediction_are_those_with_one(seed: int, bias: bool, density: float) -> None:
    wide, narrow = both(seed, 12, 9, density, bias)
    source, target = random_rows(40, 12, seed=seed % 1000), random_rows(40, 9, seed=seed % 1000 + 1)
    ours, theirs = ErrorSums(9), ErrorSums(9)
    for step in torch.arange(40).chunk(3):
        ours.add_sparse(*wide.sparse_prediction(source.select(step)), target.select(step))
        theirs.add(narrow(source.select(step)).detach(), target.select(step))
    assert ours.n == theirs.n and torch.equal(ours.active, theirs.active)
    assert torch.allclose(ours.squared_error, theirs.squared_error, rtol=1e-4, atol=1e-5)
    assert ours.fvu() == pytest.approx(theirs.fvu(), rel=1e-4)


def test_a_large_file_stays_sparse_in_memory_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "LARGE", 1)
    monkeypatch.setattr(exported, "WIDE_WEIGHTS", 100)
    wide, narrow = both(1, 20, 15, 0.1, True)
    config = {"connector": {"name": "linear", "bias": True}, "sources": [{"d": 20}]}
    stored = packed_state(narrow.state_dict())
    assert stored.keys() == wide.state_dict().keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in wide.state_dict().items())
    again = connector_of(config, stored)
    assert isinstance(again, WideLinearConnector) and torch.equal(again.output_weight(), narrow.output_weight())
    monkeypatch.setattr(exported, "WIDE_WEIGHTS", 300)
    assert isinstance(connector_of(config, stored), LinearConnector)


def test_all_weights_are_refused_where_they_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, _ = both(1, 20, 15, 0.1, False)
    monkeypatch.setattr("saelink.runtime.memory_available", lambda: 1000)
    with pytest.raises(SaelinkError, match=r"all 20 x 15 weights, zeros too, need .* of memory"):
        wide.output_weight()


@pytest.mark.parametrize("extra", [[], ["connector.bias=true"]])
def test_the_chain_from_edges_alone_gives_the_figures_of_the_dense_one(
    config: Callable[..., Config], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str]
) -> None:
    settings = ["solver=exact", "solver.tolerance=1e-7", "l1_alpha=5e-2", "eval.verify=false", *extra]
    narrow = Job(config(*settings), store)
    expected, edges = EvaluateStage(narrow).pull(), load_edge_table(EdgesStage(narrow).pull())
    monkeypatch.setattr(sparse, "WIDE", 0)
    monkeypatch.setattr(exported, "WIDE_WEIGHTS", 0)

    monkeypatch.delattr(WideLinearConnector, "output_weight")
    monkeypatch.delattr(Connector, "output_weight")
    wide = Job(config(*settings), Store(tmp_path / "wide"))
    assert isinstance(fitted_connector(TrainStage(wide).pull()), WideLinearConnector)
    assert "W.indices" in TrainStage(wide).pull().tensors(WEIGHTS_FILE)
    found = EvaluateStage(wide).pull()
    for name, value in expected.facts.items():
        assert found.facts[name] == pytest.approx(value, rel=1e-3), name  # type: ignore[literal-required]
    table = load_edge_table(EdgesStage(wide).pull())
    assert torch.equal(table.offsets, edges.offsets) and torch.equal(table.source, edges.source)
    assert torch.allclose(table.rise, edges.rise, atol=1e-3, equal_nan=True)
