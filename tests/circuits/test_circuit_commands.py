"""The commands over several layers, in the small world."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import saelink as library
from saelink.circuits.stage import LayersGraphStage
from saelink.config.schema import Config
from saelink.job import Job
from saelink.store.artifact import Artifact
from saelink.store.store import Store

from helpers.world import Run

PROMPT = "the old king sat on the mat"

SETTINGS = ["layers=all", "solver=exact", "l1_alpha=1e-3", "circuit.edges=lasso"]


def made(stage: str) -> Artifact:
    (artifact,) = [found for found in Store("outputs").artifacts() if found.stage == stage]
    return artifact


def test_graph_over_layers(saelink: Run) -> None:
    everything = ["graph.node_share=0.999", "graph.edge_share=0.999"]
    code, out, err = saelink("graph", PROMPT, *SETTINGS, *everything)
    assert code == 0, err
    assert "replacement 0." in out and "completeness 0." in out and "share of the input" in out
    assert "graph: 8 tokens, 2 layers, about" in out
    artifact = made("layers_graph")
    document = json.loads(artifact.file(f"{artifact.facts['slug']}.json").read_text())
    ids = [node["node_id"] for node in document["nodes"]]
    assert len(set(ids)) == len(ids) == artifact.facts["nodes"]
    assert {link["source"] for link in document["links"]} | {link["target"] for link in document["links"]} <= set(ids)
    kinds = {node["saelink"]["kind"] for node in document["nodes"]}
    assert {"token", "logit", "source", "mlp", "attn"} <= kinds
    types = {node["feature_type"] for node in document["nodes"]}
    assert types <= {"embedding", "logit", "cross layer transcoder", "mlp reconstruction error"}
    rank = {node["node_id"]: -1 if node["layer"] == "E" else int(node["layer"]) for node in document["nodes"]}
    assert all(rank[link["source"]] < rank[link["target"]] for link in document["links"])
    for node in document["nodes"]:
        if node["saelink"]["kind"] in ("source", "mlp", "attn"):
            assert 0 <= node["saelink"]["error"] <= 1 and node["activation"] > 0
            assert 0 < node["influence"] <= document["metadata"]["node_threshold"]
            assert f"@L{node['saelink']['layer']}" in node["clerp"]
    assert "up to date" in saelink("graph", PROMPT, *SETTINGS, *everything)[1]


@pytest.mark.parametrize("edges", ["causal", "gradient", "connector"])
def test_other_edges(saelink: Run, edges: str) -> None:
    code, _, err = saelink("graph", PROMPT, "layers=0-1", f"circuit.edges={edges}", "l1_alpha=1e-3")
    assert code == 0, err
    assert 0 < made("layers_graph").facts["completeness"] < 1


def test_without_attention_it_is_an_error(saelink: Run) -> None:
    code, out, err = saelink("graph", PROMPT, *SETTINGS, "circuit.attention=false")
    assert code == 0, err
    assert "AF" not in out and "attn" not in made("layers_graph").facts["errors"]


def test_a_parallel_block(saelink: Run) -> None:
    code, _, err = saelink("graph", PROMPT, *SETTINGS, "sae=train", "sae.d_sae=64", "sae.k=4", model="neox")
    assert code == 0 or "sae-lens" in err, err


def active_latent() -> str:
    facts = made("layers_graph").facts
    document = made("layers_graph").json(f"{facts['slug']}.json")
    return next(n["clerp"].split()[0] for n in document["nodes"] if n["clerp"].startswith("OF") and "@L0" in n["clerp"])


def test_intervene(saelink: Run) -> None:
    assert saelink("graph", PROMPT, *SETTINGS, "graph.node_share=0.99")[0] == 0
    latent = active_latent()
    code, out, err = saelink("intervene", PROMPT, f"{latent}=0", *SETTINGS)
    assert code == 0, err
    assert "by the graph" in out and f"{latent}=0" in out and "cosine" in out
    facts = made("intervention").facts
    assert facts["changes"] == [f"{latent}=0"]
    assert any(row["before"] != row["after"] for row in facts["next"])
    assert sum(row["before"] for row in facts["next"]) <= 1 + 1e-5


def test_circuit(saelink: Run) -> None:
    code, out, err = saelink("circuit", "OF5@L1", *SETTINGS, "circuit.sequences=4", "circuit.steps=2")
    assert code == 0, err
    facts = made("circuit").facts
    assert "what leads to it" in out and "where it leads" in out
    assert facts["ancestors"] and all(each["by"] for each in facts["ancestors"])
    for each in facts["ancestors"]:
        assert each["low"] <= each["effect"] + 1e-9 and each["effect"] <= each["high"] + 1e-9
    assert {each["step"] for each in facts["ancestors"]} == {1, 2}
    first = saelink("circuit", "OF5", *SETTINGS, "circuit.sequences=4", "circuit.steps=2", "layer=1")
    assert first[0] == 0 and "up to date" in first[1]


def test_mistakes_of_circuits_get_one_line(saelink: Run) -> None:
    for words, said in (
        (["intervene", PROMPT], "intervene: name a change: saelink intervene"),
        (["intervene", "OF3@L0=0"], "graph.prompt is missing"),
        (["intervene", PROMPT, "OF3@L0=x"], "intervene: OF3@L0=x: x is not a number"),
        (["intervene", PROMPT, "OF3@L7=0"], "has no OF at layer 7: 0, 1"),
        (["intervene", PROMPT, "OF999@L0=0"], "there are 48 latents, from 0"),
        (["intervene", PROMPT, "OF3@L0:99=0"], "the prompt has positions 0 to 7"),
        (["intervene", PROMPT, "AF3@L0=0", "circuit.attention=false"], "has no AF at layer 0: none"),
        (["circuit", "X5"], "circuit: X5: name a latent as OF12@L3"),
        (["circuit", "OF5", "OF6"], "circuit: name one latent"),
        (["circuit", "OF999@L1"], "circuit: OF999@L1: there are 48 latents, from 0"),
        (["graph", PROMPT, "link=block"], "link=block: with layers=... the MLP's own link is taken"),
        (["graph", PROMPT, "circuit.nodes=0"], "circuit.nodes=0 must be at least 1"),
        (["graph", PROMPT, "circuit.alike=0"], "circuit.alike=0.0 must be above 0 and at most 1"),
    ):
        code, _, err = saelink(*words, *SETTINGS)
        assert code == 1 and said in err and len(err.strip().splitlines()) == 1, (words, err)


def test_from_python(config: Callable[..., Config]) -> None:
    cfg = config(*SETTINGS)
    quiet = library.Observer()
    graph = library.prompt_graph(cfg, PROMPT, observer=quiet)
    assert 0 < graph.facts["replacement"] < 1
    store = Store(cfg.runtime.outputs, quiet)
    stage = LayersGraphStage(Job(replace(cfg, graph=replace(cfg.graph, prompt=PROMPT)), store))
    document = stage.pull().json(f"{graph.facts['slug']}.json")
    latent = next(n["clerp"].split()[0] for n in document["nodes"] if n["clerp"].startswith("AF"))
    found = library.intervene(cfg, PROMPT, f"{latent}=0", observer=quiet)
    assert found.facts["changes"] == [f"{latent}=0"]
    circuit = library.circuit(replace(cfg, circuit=replace(cfg.circuit, sequences=2, steps=1)), "OF5@L1", quiet)
    assert circuit.facts["latent"] == "OF5@L1"
    assert "by the graph" in repr(found) and "what leads to it" in repr(circuit) and "next" in repr(graph)


def test_circuit_tracer_reads_the_file(saelink: Run) -> None:
    """By its own schema, where it is installed (`pip install --no-deps circuit-tracer==0.5.0`)."""
    package = importlib.util.find_spec("circuit_tracer")
    if package is None or package.origin is None:
        pytest.skip("circuit-tracer is not installed")
    place = Path(package.origin).parent / "frontend" / "graph_models.py"
    spec = importlib.util.spec_from_file_location("graph_models", place)
    assert spec is not None and spec.loader is not None
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    assert saelink("graph", PROMPT, *SETTINGS, "graph.node_share=0.99", "circuit.alike=0.5")[0] == 0
    facts = made("layers_graph").facts
    document = made("layers_graph").json(f"{facts['slug']}.json")
    read = json.loads(models.Model.model_validate(document).model_dump_json())
    assert len(read["qParams"]["supernodes"]) == facts["groups"] > 0
    ids = {node["node_id"] for node in read["nodes"]}
    assert all(set(members) <= ids for _, *members in read["qParams"]["supernodes"])
    assert read["links"] == document["links"] and len(read["nodes"]) == facts["nodes"]
    for mine, theirs in zip(document["nodes"], read["nodes"], strict=True):
        assert {name: mine[name] for name in theirs} == theirs
