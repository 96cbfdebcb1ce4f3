"""`saelink plan layers=...` beside what graph, intervene and circuit make and promise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import saelink.api
from saelink.circuits.ancestors import CircuitStage
from saelink.circuits.stage import LayersGraphStage
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.job import Job
from saelink.memory import LIBRARIES
from saelink.plan.costs import PROGRAM
from saelink.plan.layers import planned_over
from saelink.plan.rates import REFERENCE
from saelink.plan.steps import planned
from saelink.store.store import Store
from saelink.terminal.plan import plan_lines

from helpers.stages import PROMPT
from helpers.world import Run

Compose = Callable[..., Config]

WORDS = ["layers=0-1", "layer=1", "solver=exact", "l1_alpha=1e-3", "data.max_tokens=8000", "circuit.sequences=2"]

UNPLANNED = {"vocabulary", "top_tokens"}
"""Stages of seconds at any width."""


@pytest.mark.parametrize("edges", ["causal", "lasso", "gradient"])
def test_every_stage_that_graphs_and_circuits_make_is_planned(edges: str, saelink: Run, tmp_path: Path) -> None:
    words = [*WORDS, f"circuit.edges={edges}"]
    before = json.loads(saelink("plan", *words, "--json")[1])
    assert not any(step["done"] for step in before["steps"]) and not (tmp_path / "outputs").exists()
    prompt = PROMPT.partition("=")[2]
    code, out, err = saelink("graph", prompt, *words)
    assert code == 0, out + err
    code, out, err = saelink("circuit", "OF3@L1", *words)
    assert code == 0, out + err
    made = {artifact.stage for artifact in Store(tmp_path / "outputs").artifacts()}
    found = json.loads(saelink("plan", *words, "--json")[1])
    steps = found["steps"]
    assert made - {step["stage"] for step in steps} == UNPLANNED
    last = ["layers_graph", "graph_page", "intervention", "circuit"]
    assert [step["stage"] for step in steps if not step["done"]] == last  # whose prompt and latent nobody has named
    assert set(found["missing"]) == {"graph", "intervene", "circuit", "both"}
    assert all(step["memory_bytes"] > 0 for step in steps)
    fits = [step["what"] for step in steps if step["stage"] == "train"]
    named = {"causal": "linear by causal", "lasso": "linear by exact"}.get(edges)
    assert fits == ([] if named is None else [f"0: {named}", f"1: {named}"])
    assert [step["stage"] for step in steps].count("effects") == (2 if edges == "causal" else 0)


def test_hooks_of_all_layers_are_read_in_one_pass(config: Compose, store: Store) -> None:
    """Six hooks of two layers in one pass, each encoded once; without attention's output four."""
    for attention, n in (("true", 6), ("false", 4)):
        plan = planned_over(Job(config(*WORDS, f"circuit.attention={attention}"), store), REFERENCE)
        (cache,) = (step for step in plan.steps if step.stage == "cache")
        assert len(cache.what.split(", ")) == n
        assert sum(step.stage == "encode" for step in plan.steps) == n
        tokens = next(step.cost.tokens for step in plan.steps if step.stage == "tokens")
        assert cache.cost.disk == pytest.approx(tokens * 2 * 32 * n)
    assert list(store.root.glob("*")) == []


def test_memory_that_is_planned_is_what_graphs_promise(config: Compose, store: Store) -> None:
    words = [*WORDS, "circuit.edges=lasso", PROMPT]
    job = Job(config(*words), store)
    graph, circuit = LayersGraphStage(job).need().bytes, CircuitStage(job, "OF3@L1").need().bytes
    plan = planned_over(job, REFERENCE)
    costs = {step.stage: step.cost.memory - PROGRAM for step in plan.steps}
    context = job.cfg.data.context_size
    assert costs["circuit"] == pytest.approx(circuit, rel=1e-3)
    assert graph <= costs["layers_graph"] <= graph * 1.05 and costs["layers_graph"] > LIBRARIES
    assert any(f"data.context_size={context}" in line for line in plan.remarks)


def test_connectors_kept_by_their_edges_take_little(tmp_path: Path) -> None:
    """Of 32,768 latents a layer's causal fit is dense, its lasso is not; gradients need no fit."""
    memory: dict[str, dict[str, float]] = {}
    for edges in ("causal", "lasso", "gradient"):
        words = ["sae=gpt2-small-v5-32k", "layers=3-4", f"circuit.edges={edges}", "circuit.attention=false"]
        cfg = saelink.api.configure(*words, f"runtime.outputs={tmp_path}", "runtime.device=cpu")
        plan = planned_over(Job(cfg, Store(tmp_path)), REFERENCE, look=False)
        memory[edges] = {step.stage: step.cost.memory for step in plan.steps}
    dense = 8 * 32768**2
    assert memory["causal"]["layers_graph"] - memory["gradient"]["layers_graph"] >= 2 * dense
    assert memory["lasso"]["layers_graph"] - memory["gradient"]["layers_graph"] < dense / 4
    assert "train" not in memory["gradient"] and memory["causal"]["train"] > 98 * 32768**2 > memory["lasso"]["train"]
    assert list(tmp_path.iterdir()) == []


def test_a_published_set_is_planned_without_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    words = ["sae=pythia-70m-deduped-sm", "link=mlp", "layers=all", "circuit.attention=false"]
    cfg = saelink.api.configure(*words, f"runtime.outputs={tmp_path}")
    plan = planned_over(Job(cfg, Store(tmp_path)), REFERENCE)
    assert sum(step.stage == "train" for step in plan.steps) == 6, "all layers of the model"
    assert any(line.startswith("what is made already can't be told") for line in plan.remarks)
    assert len(plan.remarks) == len(set(plan.remarks))
    lines = plan_lines(plan, remarks=False)
    assert all(len(line) <= 80 for line in lines) and any(line.startswith("saelink circuit") for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_one_line(config: Compose, store: Store) -> None:
    with pytest.raises(SaelinkError, match=r"^layers=0-7: the model has layers 0 to 1$"):
        planned_over(Job(config("layers=0-7"), store), REFERENCE)
    with pytest.raises(SaelinkError, match=r"^link=attn: with layers=\.\.\. the MLP's own link is taken"):
        planned_over(Job(config("layers=0-1", "link=attn"), store), REFERENCE)


def test_a_causal_fit_is_planned_with_the_effects_it_reads(config: Compose, store: Store) -> None:
    """Of one layer too: on training text, with every ablation's changes kept."""
    plan = planned(Job(config("layer=1", "solver=causal", "l1_alpha=1e-3"), store), REFERENCE)
    stages = [(step.stage, step.what) for step in plan.steps]
    assert stages.index(("effects", "on training text")) < stages.index(("train", "linear by causal"))
    plain = planned(Job(config("layer=1", "solver=exact", "l1_alpha=1e-3"), store), REFERENCE)
    assert ("effects", "on training text") not in [(step.stage, step.what) for step in plain.steps]


def test_fits_that_are_there_are_done_before_attentions_latents_are(saelink: Run) -> None:
    words = [*WORDS, "circuit.edges=lasso"]
    for layer in (0, 1):
        assert saelink("train", *WORDS[1:], f"layer={layer}", "solver=exact")[0] == 0
    steps = json.loads(saelink("plan", *words, "--json")[1])["steps"]
    done = {(step["stage"], step["what"]): step["done"] for step in steps}
    assert not done["encode", "1.hook_attn_out"] and done["encode", "1.hook_mlp_out"]
    assert done["train", "0: linear by exact"] and done["train", "1: linear by exact"]
