"""Connectors of the store on one page, and the user's own labels."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from saelink.errors import SaelinkError
from saelink.evidence.evaluate import EvaluateStage
from saelink.evidence.labels import load_labels
from saelink.fit.train import TrainStage
from saelink.job import Job
from saelink.report.included import included
from saelink.share.export import ExportStage
from saelink.store.store import Store

from helpers.reports import SETTINGS, made, pieces
from helpers.world import World

OTHERS = [
    ["connector=mlp", "connector.d_hidden=8", "l1_alpha=1e-3"],
    ["solver=exact", "solver.debias=true", "l1_alpha=1e-2"],
    ["connector=nonlinear", "l1_alpha=1e-3"],
]


def test_other_connectors_stand_beside_it(world: World, tmp_path: Path) -> None:
    store = Store(tmp_path)
    keys = []
    for overrides in OTHERS:
        EvaluateStage(job := Job(world.config(tmp_path, *overrides), store)).pull()
        keys.append(TrainStage(job).key)
    before = pieces(made(world, tmp_path, "solver=exact")[0])
    assert {row["key"] for row in before["head"]["table"] if row.get("addable")} == set(keys)
    found = pieces(made(world, tmp_path, "solver=exact", f"report.connectors=[{','.join(keys)}]")[0])
    fits = found["head"]["fits"]
    assert [fit["key"] for fit in fits[3:]] == keys and len(fits) == 6
    assert fits[3]["hidden"] == 8 and fits[0]["hidden"] == 0
    assert not any(row.get("addable") for row in found["head"]["table"])
    for number, (fit, column) in enumerate(zip(fits, found["index"]["fits"], strict=True)):
        assert sum(n or 0 for n in column["n_edges"]) > 0, fit["name"]
        assert found[f"circuit{number}/0"]
    assert any(number >= fits[3]["direct"] for number in found["edges3/0"]["number"]), "hidden units"


def test_what_is_on_the_page_already_is_there_once(world: World, tmp_path: Path) -> None:
    store = Store(tmp_path)
    own = world.config(tmp_path, *SETTINGS, "solver=exact")
    key = TrainStage(Job(world.config(tmp_path, "solver=exact", "l1_alpha=1e-2"), store)).pull().key
    own.report.connectors = [key, key]
    assert len(included(Job(own, store))) == 3


def test_a_key_that_can_not_be_shown_is_refused(world: World, tmp_path: Path) -> None:
    store = Store(tmp_path)
    other = TrainStage(Job(world.config(tmp_path, "solver=exact", "l1_alpha=1e-2", "layer=0"), store)).pull()
    cfg = world.config(tmp_path, *SETTINGS, "solver=exact")
    latents = other.manifest["inputs"]["target"]
    for key, message in ((other.key, "maps other latents"), (latents, "is of encode"), ("zzz", "no artifact has")):
        cfg.report.connectors = [key]
        with pytest.raises(SaelinkError, match=message):
            included(Job(cfg, store))


def test_labels_reach_the_page_and_the_export(world: World, tmp_path: Path) -> None:
    plain, store = made(world, tmp_path, "solver=exact", "report.ablated=0")
    saes = pieces(plain)["head"]["saes"]

    def of(side: int) -> dict[str, str]:
        return {"sae": saes[side]["sae"], "hook": saes[side]["hook"]}

    entries = [
        {
            "sae": saes[-1]["sae"],
            "hook": saes[-1]["hook"],
            "latent": 7,
            "label": "royal, titles",
            "note": "",
            "star": True,
        },
        {"sae": saes[0]["sae"], "hook": saes[0]["hook"], "latent": 3, "label": "cats", "note": "", "star": False},
    ]
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"saelink_labels": 1, "latents": entries}))
    labelled, _ = made(world, tmp_path, "solver=exact", "report.ablated=0", f"report.labels={path}")
    assert labelled.key != plain.key and pieces(labelled)["head"]["labels"] == entries
    cfg = world.config(tmp_path, "solver=exact", "l1_alpha=1e-3")
    bare = ExportStage(Job(cfg, store)).pull()
    cfg.report.labels = str(path)
    own = ExportStage(Job(cfg, store)).pull()
    assert own.key != bare.key
    with own.file("edges.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["target_label"] for row in rows if row["target"] == "7"} == {"royal, titles"}
    assert {row["source_label"] for row in rows if row["source"] == "3"} == {"cats"}
    assert not any(row["target_label"] for row in rows if row["target"] != "7")
    assert "target_label" not in bare.file("edges.csv").read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "is not a file of labels"),
        ('{"saelink_labels": 2, "latents": []}', "is not a file of labels"),
        ('{"saelink_labels": 1, "latents": [3]}', "is no object"),
        ('{"saelink_labels": 1, "latents": [{"latent": "x", "sae": "a"}]}', "lacks sae"),
    ],
)
def test_another_file_is_refused_in_a_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(SaelinkError, match=message):
        load_labels(str(path))
    with pytest.raises(SaelinkError, match=r"report\.labels="):
        load_labels(str(tmp_path / "nowhere.json"))
