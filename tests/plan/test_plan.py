"""`saelink plan`: its estimates against a run that was measured, and that it makes and fetches nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import saelink.api
from saelink.attention.stage import MovedStage
from saelink.config.schema import Config
from saelink.config.size import gigabytes
from saelink.errors import SaelinkError
from saelink.fit.train import TrainStage
from saelink.interventions.block import FOLDS
from saelink.interventions.moved_effects import MovedEffectsStage
from saelink.job import Job
from saelink.latents.encode import EncodeStage
from saelink.model.describe import model_info
from saelink.model.dimensions import dimensions_of
from saelink.plan.costs import PROGRAM, met
from saelink.plan.rates import REFERENCE, measured_rates
from saelink.plan.steps import Planned, planned
from saelink.progress import Observer
from saelink.saes.widths import of_config, of_shapes, sae_widths
from saelink.store.store import Store
from saelink.terminal.plan import print_plan

from helpers.world import D_MODEL, Run, World

MEASURED = json.loads((Path(__file__).parent.parent.parent / "benchmarks" / "run.json").read_text())
"""A first `saelink run` of the defaults on two quiet cores, whose rates are REFERENCE."""

PUBLISHED = {
    "gemma-scope-2b-pt": 12, "gemma-scope-2-270m-pt": 5, "gpt2-small-res-jb": 6, "gpt2-small-v5-32k": 3,
    "pythia-70m-deduped-sm": 3,
}  # fmt: skip


class Lines(Observer):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def of_default(tmp_path: Path) -> Planned:
    cfg = saelink.api.configure(f"runtime.outputs={tmp_path / 'outputs'}", "wandb.mode=disabled")
    return planned(Job(cfg, Store(tmp_path / "outputs")), REFERENCE)


def seconds_of(plan: Planned, stage: str) -> float:
    return sum(step.cost.seconds for step in plan.steps if step.stage == stage and step.command == "run")


# --------------------------------------------------------------------------- against what was measured


def test_disk_of_the_default_run_is_within_half_of_what_it_took(of_default: Planned) -> None:
    measured = MEASURED["disk after saelink run, GB"] * 1e9
    assert measured / 1.5 < of_default.total("run").disk < measured * 1.5


def test_memory_of_the_default_run_is_within_three_times_what_it_took(of_default: Planned) -> None:
    measured = MEASURED["peak memory of saelink run, GB"] * 1e9
    assert measured / 3 < of_default.total("run").memory < measured * 3


def test_time_of_the_default_run_is_within_three_times_what_it_took(of_default: Planned) -> None:
    measured = MEASURED["waits, seconds"]["saelink run"]
    assert measured / 3 < of_default.total("run").seconds < measured * 3


@pytest.mark.parametrize(
    ("stage", "measured"),
    [("model", 14), ("cache", 35), ("encode", 16), ("effects", 22), ("oracle", 5), ("report", 76)],
)
def test_time_of_a_stage_is_within_three_times_what_it_took(of_default: Planned, stage: str, measured: float) -> None:
    """By the seconds of benchmarks/run.json; the report's with the fits at other penalties and the ablations."""
    assert measured / 3 < seconds_of(of_default, stage) < measured * 3


def test_verify_is_within_three_times_what_it_took(of_default: Planned) -> None:
    measured = MEASURED["waits, seconds"]["saelink verify"]
    assert measured / 3 < of_default.total("verify").seconds < measured * 3


def test_the_model_that_is_declared_is_the_one_that_is_there() -> None:
    """The facts of the default model against the parameters that a GGUF of it has."""
    cfg = saelink.api.configure()
    declared = dimensions_of(cfg.model)
    assert (declared.n_layers, declared.d_model, declared.vocabulary) == (30, 576, 49152)
    assert declared.parameters == pytest.approx(134_515_008, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("gemma-scope-2b-pt", 2_614_341_888), ("gpt2-small-res-jb", 124_439_808), ("pythia-70m-deduped-sm", 70_426_624)],
)
def test_declared_dimensions_count_the_parameters_that_are_published(name: str, parameters: int) -> None:
    cfg = saelink.api.configure(f"sae={name}")
    assert dimensions_of(cfg.model).parameters == pytest.approx(parameters, rel=0.01)


def test_dimensions_from_a_config_are_those_of_the_model(config: Callable[..., Config], store: Store) -> None:
    cfg = config()
    before = dimensions_of(cfg.model)
    info = model_info(cfg, store)
    assert (before.n_layers, before.d_model, before.parallel) == (info.n_layers, info.d_model, info.parallel)
    assert before.width("hook_mlp_out") == D_MODEL and before.d_mlp == 64
    weights = (torch.zeros(0), before.block_parameters * before.n_layers)
    assert 0 < weights[1] < before.parameters


def test_pairs_that_meet_grow_with_the_text_and_never_past_all() -> None:
    found = [met(1000, events) for events in (1, 10, 100, 1e4, 1e12)]
    assert found == sorted(found) and found[0] == pytest.approx(1, rel=0.01) and found[-1] < 1000


# --------------------------------------------------------------------------- what it says and what it leaves


@pytest.mark.parametrize(("name", "layer"), PUBLISHED.items())
def test_published_sets_are_planned_without_the_hub(
    name: str, layer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever would be asked of the hub is refused at once; what is unknown is one line."""

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    cfg = saelink.api.configure(f"sae={name}", f"layer={layer}", f"runtime.outputs={tmp_path}")
    plan = planned(Job(cfg, Store(tmp_path)), REFERENCE)
    assert not any(step.done for step in plan.steps)
    assert [line for line in plan.remarks if line.startswith("what is made already can't be told")] == [plan.remarks[0]]
    assert not any("reckoned with" in line for line in plan.remarks), "widths and l0 of published sets are declared"
    assert any("the hub sends about" in line for line in plan.remarks)
    lines = Lines()
    print_plan(lines, plan)
    table = lines.lines[: lines.lines.index(next(line for line in lines.lines if line.startswith("on this machine")))]
    assert all(len(line) <= 80 for line in table)
    assert list(tmp_path.iterdir()) == []


def test_what_is_made_is_done_and_nothing_else_is_made(saelink: Run, tmp_path: Path) -> None:
    code, out, err = saelink("plan", "solver=exact")
    assert (code, err) == (0, "") and "done" not in out and not (tmp_path / "outputs").exists()
    assert saelink("encode", "solver=exact")[0] == 0
    before = sorted(path for path in (tmp_path / "outputs").rglob("*") if path.is_file())
    code, out, err = saelink("plan", "solver=exact", "--json")
    found: dict[str, Any] = json.loads(out)
    done = {step["stage"] for step in found["steps"] if step["done"]}
    assert done == {"model", "tokens", "cache", "encode"}
    assert sorted(path for path in (tmp_path / "outputs").rglob("*") if path.is_file()) == before
    missing = [step for step in found["steps"] if not step["done"]]
    assert found["missing"]["both"]["seconds"] == pytest.approx(sum(s["seconds"] for s in missing), abs=len(missing))
    assert found["missing"]["both"]["memory_bytes"] == max(step["memory_bytes"] for step in missing)


def test_a_finished_run_leaves_the_report_alone(saelink: Run) -> None:
    words = ["solver=exact", "eval.verify=false", "l1_alpha=1e-3"]
    assert saelink("evaluate", *words)[0] == 0
    found = json.loads(saelink("plan", *words, "--json")[1])
    run = {step["stage"]: step["done"] for step in found["steps"] if step["command"] == "run"}
    assert run["train"] and run["evaluate"] and run["gram"] and not run["report"]


UNPLANNED = {"vocabulary", "top_tokens"}
"""Stages of seconds at any width, within the time of evaluate."""


def test_every_stage_that_run_and_verify_make_is_planned(saelink: Run, tmp_path: Path) -> None:
    words = ["solver=exact", "l1_alpha=1e-3", "layer=1", "data.max_tokens=8000", "verify.tokens=600", "eval.ce=true"]
    words += ["report.l1_alphas=[]", "report.ablated=0", "verify.consequences=2", "verify.edges_checked=2"]
    words += ["verify.check_tokens=64", "verify.pruned_tokens=64"]
    assert saelink("run", *words)[0] == 0 and saelink("verify", *words)[0] == 0
    made = {artifact.stage for artifact in Store(tmp_path / "outputs").artifacts()}
    steps = json.loads(saelink("plan", *words, "--json")[1])["steps"]
    assert made - {step["stage"] for step in steps} == UNPLANNED
    assert [step["stage"] for step in steps if not step["done"]] == ["report"]
    assert all(step["memory_bytes"] > 0 for step in steps)


@pytest.mark.parametrize("link", ["ov", "block_ov"])
def test_latents_that_heads_move_are_planned(link: str, saelink: Run, tmp_path: Path) -> None:
    words = [f"link={link}", "solver=exact", "l1_alpha=1e-3", "layer=1", "data.max_tokens=4000", "verify.tokens=600"]
    words += ["report.l1_alphas=[]", "report.ablated=0"]
    before = json.loads(saelink("plan", *words, "--json")[1])["steps"]
    assert not any(step["done"] for step in before)
    commands = ["verify", "run"] if link == "ov" else ["run"]
    assert [saelink(command, *words)[0] for command in commands] == [0] * len(commands)
    made = {artifact.stage for artifact in Store(tmp_path / "outputs").artifacts()}
    steps = json.loads(saelink("plan", *words, "--json")[1])["steps"]
    assert made - {step["stage"] for step in steps} == UNPLANNED and "moved" in made
    assert [step["stage"] for step in steps if not step["done"]] == ["report"]
    assert [(step["stage"], step["what"]) for step in before] == [(step["stage"], step["what"]) for step in steps]


@pytest.mark.parametrize("form", ["ov", "ov_summed"])
def test_memory_that_is_planned_is_what_heads_promise(form: str, config: Callable[..., Config], store: Store) -> None:
    job = Job(config(f"link={form}", "solver=exact", "l1_alpha=1e-3", "layer=1"), store)
    _ = job.sides
    moved, effects = MovedStage(job.cfg, store, 0).need(), MovedEffectsStage(job).need()
    null = MovedEffectsStage(job, null="random heads").need()
    planned_for = [
        step.cost.memory - PROGRAM for step in planned(job, REFERENCE).steps if step.stage.startswith("moved")
    ]
    # What differs is how many latents are active: counted in the one, as the SAE's card has it in the other.
    assert planned_for[0] == pytest.approx(moved.bytes, abs=2000)
    assert planned_for[1:3] == pytest.approx([effects.bytes, null.bytes], abs=2000)
    assert effects.bytes - null.bytes > 2 * 4 * FOLDS * 48 * 48 - 1


@pytest.mark.parametrize("words", [["connector=nonlinear"], ["verify.ablation=resample"]])
def test_what_verify_refuses_of_heads_is_not_planned(
    words: list[str], config: Callable[..., Config], store: Store
) -> None:
    found = planned(Job(config("link=ov", "solver=adam", "layer=1", *words), store), REFERENCE)
    assert not {"moved_effects", "moved_verdicts"} & {step.stage for step in found.steps}
    assert any(
        "saelink verify takes linear connectors and verify.ablation=zero alone" in line for line in found.remarks
    )


@pytest.mark.parametrize(("connector", "stage"), [("nonlinear", "train"), ("mlp", "verdicts")])
def test_what_is_dense_at_wide_dictionaries_is_planned_so(connector: str, stage: str, tmp_path: Path) -> None:
    """32 bytes a weight of a fit by steps; 100 for each pair that a connector with hidden units claims."""
    words = ["sae=gpt2-small-v5-32k", "layer=3", f"connector={connector}", "l1_alpha=0", f"runtime.outputs={tmp_path}"]
    plan = planned(Job(saelink.api.configure(*words), Store(tmp_path)), REFERENCE, look=False)
    memory = next(step.cost.memory for step in plan.steps if step.stage == stage)
    assert memory > {"train": 32, "verdicts": 100}[stage] * 32768**2


def test_what_is_not_counted_is_said(config: Callable[..., Config], store: Store) -> None:
    remarks = planned(
        Job(config("link=ov", "layer=1", "verify.qk=true", "experiment.names=[dense]"), store), REFERENCE
    ).remarks
    assert any("where heads look, and its tests, are not counted" in line for line in remarks)
    assert any("an experiment's fits are not counted" in line for line in remarks)


def test_a_mistake_is_one_line(saelink: Run) -> None:
    code, _, err = saelink("plan", "layer=7")
    assert code == 1 and "layer=7: the model has layers 0 to 1" in err and len(err.strip().splitlines()) == 1
    code, _, err = saelink("plan", "+model.dimensions={of: x, n_layers: 2}")
    assert code == 1 and "model.dimensions: " in err and "config.json" in err


def test_too_little_memory_is_said(config: Callable[..., Config], store: Store) -> None:
    cfg = config("solver=exact", "runtime.memory=10MB")
    plan = planned(Job(cfg, store), REFERENCE)
    assert any("of memory and" in line and "can be had: it may be refused" in line for line in plan.remarks)


def test_a_text_without_an_end_says_what_it_is_reckoned_with(
    config: Callable[..., Config], store: Store, world: World
) -> None:
    plan = planned(Job(config("solver=exact"), store), REFERENCE)
    tokens = next(step.cost.tokens for step in plan.steps if step.stage == "tokens")
    assert tokens == pytest.approx(world.text.stat().st_size / 4.4, rel=0.01)
    cfg = saelink.api.configure("data=hub", "data.path=a/b", "sae=train", f"runtime.outputs={store.root}")
    plan = planned(Job(cfg, store), REFERENCE)
    assert any("how long the text is isn't known" in line for line in plan.remarks)
    assert [step.stage for step in plan.steps].count("sae") == 2


def test_the_page_of_plans_is_the_scripts() -> None:
    from scripts.plans import PAGE, page

    assert PAGE.read_text() == page(), "python scripts/plans.py writes it"


# --------------------------------------------------------------------------- its parts


def test_rates_are_of_this_machine_and_leave_nothing(tmp_path: Path) -> None:
    rates = measured_rates(tmp_path / "not" / "there")
    assert rates.gemm > 1e9 and rates.pairs > 1e5 and rates.disk > 1e6
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"d_in": 8, "d_sae": 40, "k": 5}, (40, 5.0)),
        ({"num_latents": 40, "k": 5, "d_in": 8}, (40, 5.0)),
        ({"expansion_factor": 4, "num_latents": 0, "d_in": 8}, (32, None)),
        ({"trainer": {"dict_size": 40, "k": 5}}, (40, 5.0)),
        ({"d_sae": 40, "activation_fn_kwargs": {"k": 7}}, (40, 7.0)),
        ({}, (None, None)),
    ],
)
def test_widths_from_configs(config: dict[str, Any], wanted: tuple[int | None, float | None]) -> None:
    assert of_config(config)[:2] == wanted


def test_widths_from_shapes() -> None:
    assert of_shapes([(8, 40), (40, 8), (40,), (8,)], 8) == 40
    assert of_shapes([(40,), (8,)], 8) is None


def test_widths_of_what_is_on_disk_and_of_what_is_trained(
    config: Callable[..., Config], world: World, tmp_path: Path
) -> None:
    assert sae_widths(config(), "blocks.1.hook_mlp_out", D_MODEL) == (48, 4.0, False)
    folder = tmp_path / "saes" / "blocks.1.hook_mlp_out"
    folder.mkdir(parents=True)
    weights = world.folder / "saes" / "blocks.1.hook_mlp_out" / "sae_weights.safetensors"
    (folder / "sae_weights.safetensors").write_bytes(weights.read_bytes())
    assert sae_widths(config(f"sae.path={tmp_path}/saes"), "blocks.1.hook_mlp_out", D_MODEL) == (48, None, False)
    cfg = config("sae=train", "sae.path=null", "sae.d_sae=96", "sae.k=3")
    assert sae_widths(cfg, "blocks.1.hook_mlp_out", D_MODEL) == (96, 3.0, True)


def test_memory_that_is_planned_is_what_stages_promise(config: Callable[..., Config], store: Store) -> None:
    """Where the latents are there, plan and stage reckon from the same formula with nearly the same sizes."""
    job = Job(config("solver=exact", "l1_alpha=1e-3"), store)
    _ = job.sides
    plan = planned(job, REFERENCE)
    costs = {step.stage: step.cost.memory for step in plan.steps}
    need = TrainStage(job).need()
    assert need is not None
    assert need.bytes == pytest.approx(costs["train"] - 0.6e9, rel=0.2), gigabytes(int(need.bytes))
    assert EncodeStage(job.cfg, store, job.link.target).find() is not None
    with pytest.raises(SaelinkError, match="layers 0 to 1"):
        planned(Job(config("layer=9"), store), REFERENCE)
