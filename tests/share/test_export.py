"""A connector as others read it: the same predictions, every edge with its weight, and files other libraries open."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import networkx
import pytest
import torch

import saelink
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.fit.train import TrainStage, fitted_connector
from saelink.job import Job
from saelink.latents.link import load_split, pull_sides
from saelink.share.export import ExportStage
from saelink.store.store import Store


@pytest.mark.parametrize(
    "kind", [["connector=linear", "solver=exact", "l1_alpha=1e-2"], ["connector=mlp", "connector.d_hidden=6"]]
)
def test_an_exported_folder_predicts_as_the_connector_does(
    config: Callable[..., Config], store: Store, kind: list[str]
) -> None:
    cfg = config(*kind, "+sae.neuronpedia.hook_mlp_out=tiny/LAYER-mlp")
    folder = ExportStage(Job(cfg, store)).pull().path
    loaded, sides = saelink.load_connector(folder), pull_sides(cfg, store)
    test = load_split(cfg, sides, "test")
    ours = fitted_connector(TrainStage(Job(cfg, store)).pull())
    raw = test.source.dense() * sides.scales[0]
    expected = ours(test.source) * sides.scales[-1]
    assert torch.allclose(loaded(raw), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(loaded.target_ids, ours.target_ids)
    with (folder / "edges.csv").open() as file:
        rows = list(csv.DictReader(file))
    weight = ours.output_weight()
    assert len(rows) == int((weight != 0).sum())
    for row in rows[:: max(len(rows) // 50, 1)]:
        assert float(row["weight"]) == pytest.approx(weight[int(row["source"]), ours.column(int(row["target"]))].item())
        assert row["target_page"] == f"https://www.neuronpedia.org/tiny/1-mlp/{row['target']}"
    table = datasets.Dataset.from_parquet(str(folder / "edges.parquet"))
    assert isinstance(table, datasets.Dataset) and table["weight"][:] == [float(row["weight"]) for row in rows]
    graph = networkx.read_graphml(folder / "graph.graphml")
    again = networkx.node_link_graph(json.loads((folder / "graph.json").read_text()), edges="links")
    assert graph.number_of_edges() == again.number_of_edges() == len(rows)
    card = (folder / "README.md").read_text()
    assert "FVU on test documents" in card and "load_connector" in card and str(store.root) not in card
    assert (folder / "hidden_edges.csv").exists() == (kind[0] == "connector=mlp")


@pytest.mark.parametrize(
    "kind", [["connector=linear", "connector.bias=true"], ["connector=mlp", "connector.d_hidden=6"]]
)
def test_a_fit_starts_at_an_exported_connector_in_its_own_units(
    config: Callable[..., Config], store: Store, kind: list[str]
) -> None:
    given = config(*kind, "solver=adam")
    folder = ExportStage(Job(given, store)).pull().path
    still = config(*kind, "solver=adam", "solver.lr=1e-12", f"connector.init={folder}", "latent_scale=none")
    artifact, exported, sides = (
        TrainStage(Job(still, store)).pull(),
        saelink.load_connector(folder),
        pull_sides(still, store),
    )
    assert sides.scales == [1.0, 1.0] and exported.target_scale != 1.0
    rows = load_split(still, sides, "test").source
    assert torch.allclose(fitted_connector(artifact)(rows), exported(rows.dense()), rtol=1e-3, atol=1e-5)
    elsewhere = shutil.copytree(folder, store.root / "elsewhere")
    again = config(*kind, "solver=adam", "solver.lr=1e-12", f"connector.init={elsewhere}", "latent_scale=none")
    assert TrainStage(Job(again, store)).pull().key == artifact.key
    with pytest.raises(SaelinkError, match=r"that connector is of blocks\.1.*; here it is blocks\.0"):
        TrainStage(Job(config(*kind, "layer=0", f"connector.init={folder}"), store)).pull()
    with pytest.raises(SaelinkError, match="no connector is there"):
        TrainStage(Job(config(*kind, f"connector.init={store.root}"), store)).pull()


def test_a_folder_without_a_connector_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(SaelinkError, match=r"no connector is there, cfg\.json is missing; `saelink export` makes one"):
        saelink.load_connector(tmp_path)
    (tmp_path / "cfg.json").write_text('{"connector": {"name": "cubic"}}')
    (tmp_path / "connector.safetensors").write_bytes(b"1234")
    with pytest.raises(SaelinkError, match="the connector can't be read") as error:
        saelink.load_connector(tmp_path)
    assert "\n" not in str(error.value)
