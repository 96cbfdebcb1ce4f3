"""What is said of a connector's edges, against weights taken out by hand and circuits that were planted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saelink.evidence.edges import TARGETS_FILE, EdgesStage, EdgeTable, _Matrix, _read, load_edge_table
from saelink.evidence.evaluate import EvaluateStage
from saelink.fit.train import TrainStage, fitted_connector
from saelink.job import Job
from saelink.latents.link import load_split, pull_sides
from saelink.latents.rows import Rows
from saelink.latents.split import Tokens
from saelink.progress import Progress
from saelink.store.store import Store

from helpers.world import World


def read(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, relu: bool = False) -> tuple[EdgeTable, list[Any]]:
    source, target = Rows.from_dense(x), Rows.from_dense(y)
    test = Tokens(source, target, torch.arange(len(x)), torch.ones(len(x), dtype=torch.bool))
    with Progress() as bar:
        return _read(
            _Matrix(Rows.from_dense(weight.T), None, relu), torch.arange(y.shape[1]), source, target, test, bar
        )


def inputs(n: int = 6000, k: int = 12, density: float = 0.12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(n, k, generator=generator) < density
    return active * (0.5 + torch.rand(n, k, generator=generator))


@pytest.mark.parametrize("relu", [False, True])
def test_the_rise_of_an_edge_is_the_fvu_without_it(relu: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    x = inputs(n=800, k=6)
    weight = torch.randn(6, 4, generator=generator) * (torch.rand(6, 4, generator=generator) < 0.7)
    y = torch.relu(x @ weight + 0.3 * torch.randn(800, 4, generator=generator))
    found, _ = read(x, y, weight, relu)
    assert len(found.source) == int((weight != 0).sum())

    def fvu(matrix: torch.Tensor, column: int) -> float:
        z = (x @ matrix)[:, column]
        error = ((torch.relu(z) if relu else z) - y[:, column]).double().square().mean()
        return (error / y[:, column].double().var(unbiased=False)).item()

    for column in range(4):
        for edge in range(int(found.offsets[column]), int(found.offsets[column + 1])):
            without = weight.clone()
            source = int(found.source[edge])
            without[source, column] = 0
            assert found.weight[edge] == weight[source, column]
            assert found.rise[edge].item() == pytest.approx(fvu(without, column) - fvu(weight, column), abs=1e-4)
            assert found.both[edge] == ((x[:, source] > 0) & (y[:, column] > 0)).sum()


PLANTED = {
    "copy": lambda x: x[:, 0],
    "or": lambda x: torch.maximum(x[:, 0], x[:, 1]),
    "and": lambda x: torch.minimum(x[:, 0], x[:, 1]),
    "and not": lambda x: x[:, 0] * (x[:, 1] == 0),
}


@pytest.mark.parametrize("word", PLANTED)
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_planted_circuits_get_their_name_from_fitted_weights(word: str, noise: float) -> None:
    """Least squares on the planted latent, a noise floor on every latent as a TopK SAE has it."""
    x = inputs(seed=5)
    generator = torch.Generator().manual_seed(1)
    y = PLANTED[word](x)[:, None]
    floor = (torch.rand(x.shape, generator=generator) < 0.3) * noise * torch.rand(x.shape, generator=generator)
    x = torch.where(x > 0, x, floor)
    y = torch.where(y > 0, y, (torch.rand(y.shape, generator=generator) < 0.1) * noise * 1.0)
    weight = torch.linalg.lstsq(x, y).solution
    _, said = read(x, y, weight)
    assert said[0]["logic"]["word"] == word
    assert sorted(said[0]["logic"]["inputs"]) == ([0] if word == "copy" else [0, 1])
    for condition in said[0]["logic"]["evidence"]:
        assert len(condition["rows"]) == 2
        for row in condition["rows"]:
            assert (x[row, condition["on"]] > 0).all() and not (x[row, condition["off"]] > 0.2).any()


def test_random_weights_are_unclear() -> None:
    x = inputs(seed=9)
    generator = torch.Generator().manual_seed(2)
    y = (torch.rand(len(x), 8, generator=generator) < 0.1) * torch.rand(len(x), 8, generator=generator)
    _, said = read(x, y, torch.randn(12, 8, generator=generator))
    assert {entry["logic"]["word"] for entry in said} == {"unclear"}


def test_what_goes_with_silence_is_found_without_an_edge() -> None:
    """A suppressor to which the connector gives no weight."""
    x = inputs(seed=4)
    y = (x[:, 0] * (x[:, 3] == 0))[:, None]
    weight = torch.zeros(12, 1)
    weight[0] = 0.8
    _, said = read(x, y, weight)
    assert said[0]["silent"]["leader"] == 0
    assert [entry["input"] for entry in said[0]["silent"]["inputs"]] == [3]


def test_inputs_that_never_meet_make_clusters() -> None:
    """An OR of five inputs of which one at a time is active fires on five kinds of tokens."""
    generator = torch.Generator().manual_seed(0)
    n, which = 4000, torch.randint(0, 9, (4000,), generator=generator)
    x = torch.zeros(n, 9)
    x[torch.arange(n), which] = 0.5 + torch.rand(n, generator=generator)
    weight = torch.zeros(9, 1)
    weight[:5] = 1.0
    y = x @ weight
    _, said = read(x, y, weight)
    clusters = said[0]["clusters"]["clusters"]
    assert {cluster["inputs"][0][0] for cluster in clusters} == set(range(5)) and len(clusters) == 5
    assert all(0.9 < cluster["inputs"][0][1] < 1.1 and len(cluster["rows"]) == 3 for cluster in clusters)
    assert "scatter" not in said[0]
    two = torch.zeros(9, 1)
    two[:2] = 1.0
    _, said = read(x, x @ two, two)
    assert said[0]["scatter"]["inputs"] in ([0, 1], [1, 0])
    assert len(said[0]["scatter"]["values"]) == 2 and "clusters" not in said[0]


@pytest.mark.parametrize("connector", ["linear", "nonlinear", "mlp"])
def test_the_stage_reads_the_connector(world: World, store: Store, connector: str) -> None:
    extra = ["connector.d_hidden=8"] if connector == "mlp" else []
    cfg = world.config(store.root, f"connector={connector}", "connector.bias=true", "l1_alpha=1e-3", *extra)
    artifact = EdgesStage(Job(cfg, store)).pull()
    assert EdgesStage(Job(cfg, store)).pull().key == artifact.key
    found, fitted = load_edge_table(artifact), fitted_connector(TrainStage(Job(cfg, store)).pull())
    weight = fitted.output_weight()
    assert len(found.source) == int((weight != 0).sum()) and torch.equal(found.target_ids, fitted.target_ids)
    assert len(artifact.file(TARGETS_FILE).read_text().splitlines()) == fitted.d_target
    assert ("hidden.jsonl" in artifact.files) == (connector == "mlp")
    # Without all of its edges but the strongest a target's FVU changes; without one it changes by its rise.
    latent = int(found.target_ids[0])
    mine = slice(0, int(found.offsets[1]))
    strongest = int(found.weight[mine].abs().argmax())
    before = EvaluateStage(Job(cfg, store)).pull().tensors("latents.safetensors")["fvu"][latent].item()
    with torch.no_grad():
        fitted.penalised()[-1][0][int(found.source[strongest]), 0] = 0
        test = load_split(cfg, pull_sides(cfg, store), "test", fitted.target_ids)
        y = test.target.dense()[:, 0].double()
        after = ((fitted(test.source)[:, 0].double() - y).square().mean() / y.var(unbiased=False)).item()
    assert found.rise[strongest].item() == pytest.approx(after - before, abs=1e-4)
