"""One worker or several, one of them killed, on each engine: the same bytes of every artifact."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.evidence import measured
from saelink.evidence.evaluate import EvaluateStage
from saelink.fit.lasso import blocks
from saelink.fit.products import dense, sparse
from saelink.fit.products.dense import GramStage
from saelink.fit.train import TrainStage
from saelink.interventions import measure
from saelink.interventions.effects import EffectsStage
from saelink.job import Job
from saelink.latents.link import pull_sides
from saelink.store.draft import Draft, Parts
from saelink.store.recipe import Plan
from saelink.store.store import Store

from helpers.observing import Lines
from helpers.slurm import has
from helpers.stored import stored
from helpers.toys import DyingTargets, FailingTargets
from helpers.world import TESTS, Run, World, write_text

STAGES = ("tokens", "cache", "encode", "products", "gram", "train", "evaluate", "effects", "report")


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tasks of few latents; workers find what stands in for a work."""
    monkeypatch.setattr(sparse, "WIDE", 0)
    monkeypatch.setattr(sparse, "TASK_LATENTS", 20)
    monkeypatch.setattr(blocks, "TARGETS", 13)
    monkeypatch.setattr(measured, "STEPS", 2)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of training tokens."""
    return write_text(tmp_path_factory.mktemp("text") / "text.jsonl", n=6000)


@pytest.fixture
def job(world: World, text: Path, tmp_path: Path) -> Callable[..., Job]:
    def make(folder: str, *overrides: str, lines: Lines | None = None) -> Job:
        given = (f"data.path={text}", "solver=exact", "runtime.threads=1", "l1_alpha=2e-2", "eval.verify=false")
        cfg: Config = world.config(tmp_path / folder, *given, *overrides)
        return Job(cfg, Store(tmp_path / folder, lines))

    return make


def chain(job: Job) -> dict[str, bytes]:
    TrainStage(job).pull()
    EvaluateStage(job).pull()
    return stored(job.store.root, STAGES)


def test_workers_make_the_bytes_of_one_process(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    alone = chain(job("alone"))
    assert sum(name.startswith("cache/") and "train-" in name for name in alone) == 8, "shards of both hooks"
    assert chain(job("two", "runtime.workers=2")) == alone
    monkeypatch.setattr(blocks, "TargetsWork", DyingTargets)
    lines = Lines()
    assert chain(job("three", "runtime.workers=3", lines=lines)) == alone
    assert [line for line in lines.said if "is done again" in line]
    left = {path.suffix for path in job("three").store.root.rglob("*")} & {".partial", ".claim", ".worker", ".tmp"}
    assert not left


def test_effects_by_workers_are_those_of_one_process(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MOST_SOURCES", 20)
    made = []
    for workers in (1, 3):
        each = job(f"effects{workers}", "data.max_tokens=4000", f"runtime.workers={workers}")
        for stage in (EffectsStage(each, "train"), EffectsStage(each, "test", "permuted decoders")):
            stage.pull()
        made.append(stored(each.store.root, ["effects"]))
    assert made[0] == made[1]
    assert sum("/pairs-" in name for name in made[0]) > 4 and any("/changes-" in name for name in made[0])


def test_streamed_latents_and_dense_products_by_workers(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "PARTS", 4)
    monkeypatch.setattr(dense, "PART_TOKENS", 2**12)
    made = []
    for workers in (1, 2):
        each = job(f"streamed{workers}", "stream=true", f"runtime.workers={workers}")
        pull_sides(each.cfg, each.store)
        GramStage(each).pull()
        made.append(stored(each.store.root, STAGES))
        assert not (each.store.root / "cache").exists()
    assert made[0] == made[1] and any(name.startswith("gram/") for name in made[0])


def test_a_failed_fit_is_one_line_and_its_blocks_are_kept(
    saelink: Run, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: Callable[..., Job]
) -> None:
    monkeypatch.setattr(blocks, "TargetsWork", FailingTargets)
    settings = (f"data.path={text}", "solver=exact", "l1_alpha=2e-2", "runtime.threads=1")
    code, _, error = saelink("train", *settings, "runtime.workers=2")
    assert code == 1
    assert error.splitlines() == ["saelink: targets from 26: can't be solved; give others"]
    kept = {path.name for path in (tmp_path / "outputs/train").glob("*.partial/targets-*")}
    assert kept, "the third block was begun when one of the first two was there"
    monkeypatch.setattr(blocks, "TargetsWork", FailingTargets.__base__)
    solved: list[str] = []
    run = blocks.TargetsWork.run
    monkeypatch.setattr(blocks.TargetsWork, "run", lambda *given: solved.append(given[2].name) or run(*given))
    assert saelink("train", *settings)[0] == 0
    assert solved and kept - set(solved), "a block that came back before the failure is kept; one on its way may not be"
    alone = job("alone")
    TrainStage(alone).pull()
    weights = [path.read_bytes() for path in sorted(tmp_path.glob("*/train/*/connector.safetensors"))]
    assert len(weights) == 2 and weights[0] == weights[1]


@pytest.mark.slow
def test_jobs_of_slurms_stand_in_make_the_same(job: Callable[..., Job]) -> None:
    if not has("submitit"):
        pytest.skip("submitit is not installed")
    alone = chain(job("alone"))
    slurm = job("slurm", "runtime.engine=slurm_local", "runtime.workers=2", "runtime.slurm.timeout_min=5")
    assert chain(slurm) == alone
    assert not list((slurm.store.root / "engine").glob("*")), "nothing is left of the jobs"


@pytest.mark.slow
def test_a_report_by_workers_is_the_same(job: Callable[..., Job]) -> None:
    from saelink.report.stage import ReportStage

    made = []
    for workers in (1, 2):
        each = job(f"page{workers}", f"runtime.workers={workers}", "report.l1_alphas=[]", "report.random=1")
        ReportStage(each).pull()
        made.append(stored(each.store.root, ["report"]))
    assert made[0] == made[1] and made[0]


def test_settings_that_do_not_go_together(config: Callable[..., Config]) -> None:
    from saelink.config.check import check

    cfg = config()
    for wrong, said in (
        ({"workers": 0}, "runtime.workers=0 must be at least 1"),
        ({"engine": "ray"}, "runtime.engine=ray: say how many tasks it does at once"),
        ({"address": "10.0.0.1:6379", "workers": 2}, "runtime.address=10.0.0.1:6379 is of runtime.engine=ray"),
        ({"slurm": {"partition": "cpu"}, "workers": 2}, "runtime.slurm=.* is of runtime.engine=slurm"),
        ({"shared": True, "workers": 2}, "runtime.shared=true is for commands without an engine"),
    ):
        given = {
            name: type(cfg.runtime.engine)[str(value)] if name == "engine" else value for name, value in wrong.items()
        }
        with pytest.raises(SaelinkError, match=said):
            check(replace(cfg, runtime=replace(cfg.runtime, **given)))


def test_a_part_that_can_not_be_seen_here_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saelink.store.draft.VISIBLE_SECONDS", 0.1)
    draft = Draft(Plan("stage", 1, {}, {}, ""), tmp_path / "stage" / "key.partial", resumable=True)
    part = Parts(str(tmp_path)).save_bytes("a.bin", b"elsewhere")
    with pytest.raises(SaelinkError, match=r"a worker wrote this file, and it can't be seen here; runtime\.outputs"):
        draft.take(part)
    whole = draft.parts.save_bytes("a.bin", b"here")
    draft.take(whole)
    assert "a.bin" in draft and draft.read("a.bin") == b"here"
    again = Draft(draft.plan, draft.folder, resumable=True)
    assert "a.bin" in again, "it is in the journal"
    (draft.folder / "b.bin").write_bytes(b"x")
    draft.take(draft.parts.save_bytes("b.bin", b"good"))
    (draft.folder / "b.bin").write_bytes(b"evil")
    with pytest.raises(SaelinkError, match="was damaged after a worker wrote it"):
        draft.read("b.bin")
