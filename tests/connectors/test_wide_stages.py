"""Everything that takes a connector, from its edges alone and from the whole matrix: the same figures of both."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saelink.circuits.inside import ByConnector, Here
from saelink.circuits.layers import edges_recipe
from saelink.config.schema import Config
from saelink.connectors import exported
from saelink.connectors.base import Connector
from saelink.connectors.exported import load_connector
from saelink.connectors.linear import LinearConnector, LinearSettings
from saelink.connectors.nonlinear import NonlinearConnector
from saelink.connectors.wide_linear import WideLinearConnector
from saelink.errors import SaelinkError
from saelink.experiments import EXPERIMENTS
from saelink.experiments.base import ExperimentStage
from saelink.experiments.edges_kept import Ranked, graph_of
from saelink.experiments.runner import missing_fits
from saelink.experiments.tables import rows_of
from saelink.fit import train
from saelink.fit.products import sparse
from saelink.fit.train import TrainStage, fitted_connector
from saelink.interventions.effects import EffectsStage, load_effects
from saelink.job import Job
from saelink.latents.rows import Rows
from saelink.share.export import ExportStage
from saelink.store.store import Store

from helpers.stages import CHAIN, LAYERS, SEVERAL, Made
from helpers.world import with_solver, write_sae

Compose = Callable[..., Config]

WORDS = (
    "layer=1", "solver=exact", "solver.tolerance=1e-7", "l1_alpha=1e-3", "verify.tokens=600", "data.max_tokens=8000",
    "normalise_layers=[0,1]", "circuit.edges=lasso",
)  # fmt: skip

SMALL = (
    "eval.ce_tokens=256", "eval.bootstrap=50", "experiment.d_hidden=12", "experiment.tokens=4096",
    "experiment.sweep_tokens=2048", "experiment.pareto.l1_alphas=[1e-3,1e-1]", "experiment.l1_grid=[1e-2]",
    "experiment.percent_linear.bootstrap=10", "experiment.composed.layers=[0,1]", "experiment.sparse_alpha=3e-2",
    "experiment.several_layers.layers=[0,1]", "experiment.kept_edges=[1,10,100000]", "experiment.kept_tokens=256",
)  # fmt: skip

TAKES_EDGES = (
    "effects", "verdicts", "verify", "edges", "stability", "logic_trials", "joint", "effectiveness", "edge_removals",
    "pruned", "consequences", "circuit_tests", "blind", "transcoder", "report", "export", "graph", "graph_page",
)  # fmt: skip
"""Stages that read a connector."""

OF_BOTH = ("key", "described", "train", "weights_sha256")
"""What says which of the two it is."""


@pytest.fixture
def by_edges(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on every exact lasso is kept by its edges, and nobody may ask one for its whole matrix."""

    def refused(_: WideLinearConnector) -> torch.Tensor:
        raise AssertionError("the whole matrix")

    def begin() -> None:
        monkeypatch.setattr(sparse, "WIDE", 0)
        for module in (exported, train):
            monkeypatch.setattr(module, "WIDE_WEIGHTS", 0)
        monkeypatch.setattr(WideLinearConnector, "output_weight", refused)

    return begin


def differences(a: Any, b: Any, path: tuple[Any, ...] = ()) -> list[Any]:
    """Where two results differ by more than their solvers' tolerance."""
    if isinstance(a, dict) and isinstance(b, dict):
        names = [name for name in {**a, **b} if name not in OF_BOTH]
        return [each for name in names for each in differences(a.get(name), b.get(name), (*path, name))]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [each for place, both in pairs for each in differences(*both, (*path, place))]
    if isinstance(a, float) and isinstance(b, float):
        same = math.isclose(a, b, rel_tol=2e-3, abs_tol=2e-4) or (math.isnan(a) and math.isnan(b))
        return [] if same else [(*path, a, b)]
    return [] if a == b else [(*path, a, b)]


def test_a_difference_is_seen() -> None:
    assert differences({"a": [1.0, 2]}, {"a": [1.0, 2]}) == []
    assert differences({"a": [1.0, 2]}, {"a": [1.1, 3]}) == [("a", 0, 1.0, 1.1), ("a", 1, 2, 3)]
    assert differences({"a": [1.0]}, {"a": [1.0, 2.0]}) and differences({"a": 1}, {})


def test_every_stage_of_the_chain(
    config: Compose, store: Store, tmp_path: Path, by_edges: Callable[[], None]
) -> None:  # fmt: skip
    from helpers.transcoders import write_transcoder

    write_transcoder(tmp_path / "transcoder")
    words = (*WORDS, f"transcoder.path={tmp_path}/transcoder")
    chain = [each for each in CHAIN if each.name in TAKES_EDGES and "connector=mlp" not in each.words]
    assert {each.name for each in chain} == set(TAKES_EDGES)
    of_layers = [Made(each.name, each.build, LAYERS) for each in SEVERAL if each.name in ("layers_graph", "circuit")]

    def found(store: Store) -> list[tuple[str, Any]]:
        facts: list[tuple[str, Any]] = []
        for each in (*chain, *of_layers):
            job = Job(config(*with_solver(list(words), each.words)), store)
            facts.append((each.name, dict(each.build(job).pull().facts)))
        return facts

    dense = found(store)
    by_edges()
    other = Store(tmp_path / "edges")
    assert differences(dense, found(other)) == []
    job = Job(config(*words), other)
    assert isinstance(fitted_connector(TrainStage(job).pull()), WideLinearConnector)
    latents = torch.rand(5, job.sides.d_source)
    pair = [load_connector(ExportStage(Job(config(*words), each)).pull().path) for each in (store, other)]
    assert torch.allclose(pair[0](latents), pair[1](latents), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    "name", ["closure", "composed", "edges_kept", "faithfulness", "pareto", "several_layers", "sparse_linear"]
)
def test_every_experiment_that_looks_at_weights(
    name: str, config: Compose, store: Store, tmp_path: Path, by_edges: Callable[[], None]
) -> None:
    dense = EXPERIMENTS[name].run(Job(config(*WORDS, *SMALL), store))
    by_edges()
    other = Store(tmp_path / "edges")
    edges = EXPERIMENTS[name].run(Job(config(*WORDS, *SMALL), other))
    assert any("W.indices" in a.tensors("connector.safetensors") for a in other.artifacts() if a.stage == "train")
    assert differences(rows_of(dense), rows_of(edges)) == []
    assert len(rows_of(dense)) > 1


def both(seed: int = 0) -> tuple[LinearConnector, WideLinearConnector]:
    generator = torch.Generator().manual_seed(seed)
    dense = LinearConnector(LinearSettings(name="linear"), 30, torch.arange(2, 22))
    W = torch.randn(30, 20, generator=generator) * (torch.rand(30, 20, generator=generator) < 0.3)
    dense.W.data.copy_(W)
    wide = WideLinearConnector(LinearSettings(name="linear"), 30, dense.target_ids)
    source, target = W.nonzero(as_tuple=True)
    wide.set_edges(source, target, W[source, target])
    return dense, wide


def test_sums_of_edges_by_target() -> None:
    dense, wide = both()
    wide.W.values.data[3] = 0  # left in the list
    row = wide.W.rows()
    dense.W.data[int(row.row_of[3]), int(row.indices[3])] = 0
    for found in (dense.edge_sums(), wide.edge_sums()):
        assert torch.equal(found.edges, (dense.W != 0).sum(0))
        assert torch.allclose(found.size, dense.W.detach().abs().double().sum(0))


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_the_strongest_edges_are_those_of_the_matrix(size: int) -> None:
    """Kept and dropped by weight x source x target, against the sorted products themselves."""
    dense, wide = both(1)
    source, target = torch.rand(30) + 0.1, torch.rand(20) + 0.1
    W = dense.W.detach().clone()
    claims = (W.abs() * source[:, None] * target).flatten()
    kept = torch.zeros_like(claims, dtype=torch.bool)
    kept[claims.argsort(descending=True)[:size]] = True
    kept = kept.view_as(W) & (W != 0)
    for connector in (dense, wide):
        ranked = Ranked(connector, source, target)
        assert ranked.n_edges == int((W != 0).sum())
        for leave, mask in ((ranked.keep, kept), (ranked.drop, ~kept & (W != 0)), (ranked.keep, kept)):
            assert leave(size) == int(mask.sum())
            assert torch.equal(_matrix(connector), torch.where(mask, W, 0.0))


def _matrix(connector: Connector) -> torch.Tensor:
    if isinstance(connector, WideLinearConnector):
        return connector.W.rows().dense()
    return connector.output_weight()


def test_measured_effects_as_a_graph(config: Compose, store: Store) -> None:
    job = Job(config(*WORDS), store)
    ids = torch.arange(0, job.sides.d_target, 2)
    measured = load_effects(EffectsStage(job, "train").pull()).explain(ids)
    expected = measured.dense() / measured.source_mean.clamp(min=1e-9)[:, None]
    assert expected.any()
    for wide in (False, True):
        graph = graph_of(measured, ids, wide)
        assert isinstance(graph, WideLinearConnector) is wide
        assert torch.equal(_matrix(graph), expected) and torch.equal(graph.target_ids, ids)


def _here() -> Here:
    generator = torch.Generator().manual_seed(4)
    source = torch.rand(6, 30, generator=generator) * (torch.rand(6, 30, generator=generator) < 0.4)
    target = torch.rand(6, 25, generator=generator) * (torch.rand(6, 25, generator=generator) < 0.4)
    source[2], target[3] = 0, 0  # nothing fires
    return Here(torch.zeros(6, 4), torch.zeros(6, 4), Rows.from_dense(source), Rows.from_dense(target), {})


def test_edges_inside_an_mlp_by_both_forms() -> None:
    """A weight is what the target's prediction loses without its source; a latent without a column has none."""
    dense, wide = both(2)
    here, scales = _here(), [2.0, 3.0]
    inside = [ByConnector(connector, scales) for connector in (dense, wide)]
    for p, (a, b) in enumerate(zip(*(each.weights(here) for each in inside), strict=True)):
        source, target = (rows.select(torch.tensor([p])) for rows in (here.source, here.target))
        expected = torch.zeros(len(target.indices), len(source.indices))
        for i, latent in enumerate(target.indices.tolist()):
            for j, (other, value) in enumerate(zip(source.indices.tolist(), source.values.tolist(), strict=True)):
                if 2 <= latent < 22:
                    expected[i, j] = dense.W[other, latent - 2] * value / 2 * 3
        assert torch.allclose(a, expected, atol=1e-6) and torch.allclose(b, expected, atol=1e-6)
    change = torch.randn(len(here.source.values), generator=torch.Generator().manual_seed(5))
    moved = [each.moved(here, change) for each in inside]
    assert moved[0].any() and torch.allclose(moved[0], moved[1], atol=1e-5)


def test_a_relu_is_no_matrix() -> None:
    """What its prediction loses without a source, not the weight."""
    connector = NonlinearConnector(LinearSettings(name="nonlinear"), 30, torch.arange(2, 22))
    connector.W.data.copy_(both(3)[0].W)
    here = _here()
    weights = ByConnector(connector, [1.0, 1.0]).weights(here)
    p = 0
    source, target = (rows.select(torch.tensor([p])) for rows in (here.source, here.target))
    x = source.dense()
    off = 0
    for i, latent in enumerate(target.indices.tolist()):
        for j, other in enumerate(source.indices.tolist()):
            without = x.clone()
            without[0, other] = 0
            column = connector.W.detach()[:, min(max(latent - 2, 0), 19)]
            lost = (x @ column).relu() - (without @ column).relu() if 2 <= latent < 22 else torch.zeros(1)
            assert weights[p][i, j].item() == pytest.approx(lost.item(), abs=1e-5)
            off += abs(lost.item() - (x[0, other] * column[other]).item()) > 1e-3
    assert off, "somewhere the weight would have been wrong"


def test_only_a_relu_changes_a_graphs_recipe(config: Compose) -> None:
    assert edges_recipe(config("circuit.edges=connector", "connector=nonlinear")) != "connector"
    assert edges_recipe(config("circuit.edges=connector")) == "connector"
    assert edges_recipe(config("connector=nonlinear")) == "causal"


# --------------------------------------------------------------------------- what does not fit


def test_an_experiment_whose_fits_are_too_wide_is_refused_before_anything_is_made(
    config: Compose, store: Store, tmp_path: Path
) -> None:
    """One line, with a way out: of `causal` the lasso's edges. Nothing is encoded or fitted."""
    import saelink.runtime as runtime

    for seed, hook in enumerate(("blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out")):
        write_sae(tmp_path / "wide" / hook, d_sae=3000, seed=seed)
    words = (*WORDS, f"sae.path={tmp_path}/wide")
    _ = Job(config(*words), store).model
    limit = f"runtime.memory={runtime.resident_bytes() + 300_000_000}"
    try:
        job = Job(config(*words, "experiment.names=[edges_kept]", limit), store)
        with pytest.raises(SaelinkError, match=r"^train: .* would need .* of memory, ") as refused:
            missing_fits(job)
        assert "\n" not in str(refused.value)
        causal = Job(config(*words, "solver=causal", limit), store)
        with pytest.raises(SaelinkError, match=r"solver=exact keeps only its edges .*circuit\.edges=lasso\)$"):
            TrainStage(causal).pull()
    finally:
        runtime.limit_memory(Config())
    assert {artifact.stage for artifact in store.artifacts()} == {"model"}


def test_graphs_of_edges_promise_little(config: Compose, store: Store, by_edges: Callable[[], None]) -> None:
    """What `edges_kept` and `composed` promise of the lassos is by edges where they are kept so."""
    job = Job(config(*WORDS, *SMALL), store)
    needs = [ExperimentStage(job, EXPERIMENTS["composed"]).need().bytes]
    by_edges()
    job = Job(config(*WORDS, *SMALL), store)
    needs.append(ExperimentStage(job, EXPERIMENTS["composed"]).need().bytes)
    d = job.sides.d_target
    assert needs[0] - needs[1] == pytest.approx(8 * 2 * 3 * d * d - 36 * 2048 * d, abs=1)
