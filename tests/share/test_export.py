"""A connector as others read it: the same predictions, every edge with its weight, and files other libraries open."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
import networkx
import pytest
import torch

import saelink
from saelink.config.schema import Config
from saelink.connectors.exported import exported_config
from saelink.errors import SaelinkError
from saelink.evidence.moved_edges import moved_edges
from saelink.evidence.names import Names
from saelink.fit.train import TrainStage, fitted_connector
from saelink.interventions.moved_effects import MovedEffectsStage
from saelink.job import Job
from saelink.latents.link import load_split, pull_sides
from saelink.share.export import ExportStage
from saelink.store.files import csv_bytes
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
    weights = b"1234"
    (tmp_path / "connector.safetensors").write_bytes(weights)
    config = exported_config({"connector": {"name": "cubic"}}, hashlib.sha256(weights).hexdigest())
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(SaelinkError, match="the connector can't be read") as error:
        saelink.load_connector(tmp_path)
    assert "\n" not in str(error.value)


@pytest.fixture
def exported(config: Callable[..., Config], store: Store) -> Path:
    return ExportStage(Job(config("solver=exact", "l1_alpha=1e-2"), store)).pull().path


@pytest.mark.parametrize("name", ["cfg.json", "connector.safetensors"])
def test_any_change_of_an_export_is_named(exported: Path, name: str) -> None:
    """Flips all over the file, a cut, an end that is not its own, the file of another export."""
    path = exported / name
    data = path.read_bytes()
    flips = [(place, 1 << place % 8) for place in range(0, len(data), max(len(data) // 60, 1))]
    changed = [data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :] for place, bit in flips]
    for other in [*changed, data[:-2], data[: len(data) // 2], data + b"x", b""]:
        path.write_bytes(other)
        with pytest.raises(SaelinkError, match="get the connector again, or write it anew with") as error:
            saelink.load_connector(exported)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_the_weights_of_another_export_are_refused(
    config: Callable[..., Config], store: Store, exported: Path, tmp_path: Path
) -> None:
    other = ExportStage(Job(config("solver=exact", "l1_alpha=2e-2"), store)).pull().path
    mixed = shutil.copytree(exported, tmp_path / "mixed")
    shutil.copy(other / "connector.safetensors", mixed)
    with pytest.raises(SaelinkError, match=r"connector\.safetensors does not have the sha256 that cfg\.json names"):
        saelink.load_connector(mixed)
    shutil.copy(other / "cfg.json", mixed)
    assert torch.equal(saelink.load_connector(mixed).weight, saelink.load_connector(other).weight)


def test_an_export_of_an_earlier_version_is_refused(exported: Path) -> None:
    """It says nothing of its weights, so nobody can tell whether they are its own."""
    path = exported / "cfg.json"
    entries = json.loads(path.read_bytes())
    path.write_text(json.dumps({name: entries[name] for name in entries if "sha256" not in name}))
    with pytest.raises(SaelinkError, match="no sha256 of itself, like those of earlier versions: get the connector"):
        saelink.load_connector(exported)


FORMULAS = ["=HYPERLINK(1)", "+1", "-1+2", "@SUM(A1)", "\t=1", "\r=1", " =1", "\n=1", "\uff1d1", "=", "-"]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_text_of_a_table_is_a_formula(text: str) -> None:
    columns, *rows = csv.reader(io.StringIO(csv_bytes([text, "n"], [{text: text, "n": -1.5}]).decode(), newline=""))
    assert columns == [f"'{text}", "n"] and rows == [[f"'{text}", "-1.5"]]


def test_other_text_of_a_table_stays() -> None:
    text = "a=b, \"c\" -d 'e' ; \ud800"
    data = csv_bytes(["x", "y", "z"], [{"x": text, "y": None, "z": -3}]).decode("utf-8", "surrogatepass")
    assert list(csv.reader(io.StringIO(data))) == [["x", "y", "z"], [text, "", "-3"]]


def test_tokens_and_names_in_an_export_are_text(
    config: Callable[..., Config], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens that a spreadsheet would run, names that a page would."""
    texts = ['=HYPERLINK("http://x","y")', "<script>x()</script>", "@SUM(1)"]
    monkeypatch.setattr(Names, "text", lambda _, token: texts[token % len(texts)])
    name = "m<script>alert(1)</script>|![x](javascript:y)\n# `heading`"
    cfg = config("solver=exact", "l1_alpha=1e-2")
    cfg = replace(cfg, model=replace(cfg.model, name=name), data=replace(cfg.data, name=name))
    folder = ExportStage(Job(cfg, store)).pull().path
    with (folder / "edges.csv").open(newline="") as file:
        cells = {
            cell for row in csv.DictReader(file) for kind in ("source_token", "target_token") for cell in [row[kind]]
        }
    assert cells <= {f"'{texts[0]}", texts[1], f"'{texts[2]}", ""} and len(cells) > 2
    card = (folder / "README.md").read_text()
    assert "<script" not in card and "![x](" not in card and "\n# `heading`" not in card
    assert "&lt;script&gt;" in card


def test_the_same_map_under_other_names_is_another_export(config: Callable[..., Config], store: Store) -> None:
    """What the card says is part of the key: it never depends on who asked first."""
    keys = []
    for change in ({}, {"model": "other/name"}, {"data": "another"}, {"link": "of mine"}):
        cfg = config("solver=exact", "l1_alpha=1e-2")
        for part, name in change.items():
            cfg = replace(cfg, **{part: replace(getattr(cfg, part), name=name)})
        keys.append(ExportStage(Job(cfg, store)).key)
    assert len(set(keys)) == len(keys)


def test_computed_edges_by_head_are_written_for_a_link_of_heads(config: Callable[..., Config], store: Store) -> None:
    words = ("link=ov", "layer=1", "link.kept=40", "solver=exact", "l1_alpha=1e-3", "verify.tokens_per_source=6")
    job = Job(config(*words, "report.ablated=1"), store)
    MovedEffectsStage(job).pull()
    folder = ExportStage(job).pull().path
    with (folder / "heads.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = json.loads((folder / "heads.json").read_text())
    assert len(found["edges"]) * 4 == len(rows) and [each["head"] for each in found["heads"]] == [0, 1, 2, 3]
    target = found["edges"][-1]["target"]
    alone = [int(row["target"]) for row in rows if row["alone"]]
    assert len(set(alone)) == 1
    for chosen in (target, alone[0]):
        mine = [row for row in rows if int(row["target"]) == chosen]
        edges = {int(edge.name[2:]): edge for edge in moved_edges(job, chosen)}
        assert {int(row["source"]) for row in mine} == set(edges) and len(mine) == 4 * len(edges)
        for row in mine:
            edge, head = edges[int(row["source"])], int(row["head"])
            assert (int(row["nearest"]), int(row["farthest"])) == (edge.near, edge.far)
            assert float(row["share"]) == pytest.approx(edge.heads[head], rel=1e-3, abs=1e-5)
            assert (float(row["claim"]), float(row["effect"])) == pytest.approx((edge.claim, edge.effect), rel=1e-3)
            assert edge.alone is not None
            if chosen in alone:
                assert float(row["alone"]) == pytest.approx(edge.alone[head], rel=1e-3, abs=1e-5)
    for edge in found["edges"]:
        assert sum(edge["heads"].values()) == pytest.approx(1, abs=1e-2)
        assert not edge["distances"] or sum(edge["distances"]) == pytest.approx(1, abs=1e-2)
        assert sum(edge["distances"][edge["nearest"] : edge["farthest"] + 1]) >= 0.79 or not edge["from"]
    assert "`heads.csv`" in (folder / "README.md").read_text()
    other = ExportStage(Job(config("solver=exact", "l1_alpha=1e-2"), store)).pull()
    assert not any(name.startswith("heads") for name in other.files)
    assert "heads.csv" not in (other.path / "README.md").read_text()
