"""runtime.memory, and what stages promise: refused in one line at a tiny limit, and true of what the kernel counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import saelink.runtime as runtime
from saelink import memory
from saelink.activations.cache import CacheStage, cache_hooks
from saelink.activations.tokens import TokensStage
from saelink.config.check import check
from saelink.config.schema import Config
from saelink.config.size import bytes_of
from saelink.errors import SaelinkError
from saelink.evidence.edges import EdgesStage
from saelink.evidence.evaluate import EvaluateStage
from saelink.fit.train import TrainStage
from saelink.interventions.cross_entropy import BaselinesStage
from saelink.interventions.oracle import OracleStage
from saelink.job import Job
from saelink.latents.encode import EncodeStage, encode_hooks
from saelink.latents.examples import ExamplesStage
from saelink.latents.top_tokens import TopTokensStage
from saelink.report.stage import ReportStage
from saelink.saes.training import SAEStage
from saelink.share.export import ExportStage
from saelink.store.store import Store

from helpers.world import TESTS, Run, World, write_sae, write_text

FACTOR = 2.5
"""A promise is at most so many times what is taken, where that is FROM or more."""

FROM = 100e6

SLACK = 40e6
"""What a process may take beside: imports, and memory that was freed and is not given back."""


@pytest.fixture(autouse=True)
def no_limit_afterwards() -> Iterator[None]:
    """The limit is the process's."""
    yield
    runtime.limit_memory(Config())


# --------------------------------------------------------------------------- the setting


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, None), ("8GB", 8_000_000_000), ("500 MB", 500_000_000), ("1.5gib", 1_610_612_736), (4096, 4096),
        ("123", 123), (2e9, 2_000_000_000),
    ],
)  # fmt: skip
def test_sizes_that_are_understood(value: Any, wanted: int | None) -> None:
    assert bytes_of("runtime.memory", value) == wanted


@pytest.mark.parametrize("value", ["8 pounds", "GB", "-1GB", 0, -5, True, "", [1], float("nan"), "1e400GB", 1e30])
def test_sizes_that_are_not(value: Any) -> None:
    with pytest.raises(SaelinkError, match=r"runtime\.memory=.*: give a size such as 8GB or 500MB"):
        bytes_of("runtime.memory", value)


def test_the_setting_is_checked_and_never_part_of_a_key(config: Callable[..., Config], store: Store) -> None:
    with pytest.raises(SaelinkError, match="give a size such as 8GB"):
        check(config("runtime.memory=much"))
    keys = {TrainStage(Job(config(*more), store)).key for more in ([], ["runtime.memory=8GB"])}
    assert len(keys) == 1


def test_what_can_be_had_is_below_the_limit(config: Callable[..., Config], store: Store) -> None:
    free = runtime.memory_available()
    Job(config("runtime.memory=1TB"), store)
    assert free is not None and runtime.memory_available() == pytest.approx(free, rel=0.2)
    resident = runtime.resident_bytes()
    Job(config(f"runtime.memory={resident + 50_000_000}"), store)
    left = runtime.memory_available()
    assert left is not None and 30_000_000 < left < 70_000_000
    Job(config("runtime.memory=1MB"), store)
    assert runtime.memory_available() == 0
    Job(config(), store)
    assert runtime.memory_available() == pytest.approx(free, rel=0.2)


@pytest.mark.parametrize("version", [1, 2])
def test_the_limits_of_all_control_groups_around_it_count(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inner group is far from its limit, the outer one near."""
    root = tmp_path / "memory" if version == 1 else tmp_path
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    cached = "total_inactive_file 10\ntotal_active_file 5\n" if version == 1 else "inactive_file 10\nactive_file 5\n"
    for group, limit, used in (("outer", 1000, 900), ("outer/inner", 5000, 100)):
        (root / group).mkdir(parents=True)
        (root / group / names[0]).write_text(f"{limit}\n")
        (root / group / names[1]).write_text(f"{used}\n")
        (root / group / "memory.stat").write_text(cached)
    membership = tmp_path / "cgroup"
    membership.write_text("3:cpu:/x\n4:memory:/outer/inner\n" if version == 1 else "0::/outer/inner\n")
    monkeypatch.setattr(runtime, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(runtime, "MEMBERSHIP", membership)
    assert runtime.memory_available() == 1000 - 900 + 15
    (root / "outer" / names[0]).write_text("9223372036854771712\n" if version == 1 else "max\n")
    assert runtime.memory_available() == 5000 - 100 + 15


# --------------------------------------------------------------------------- refusals


STAGES: dict[str, Callable[[Job], Any]] = {
    "tokens": lambda job: TokensStage(job.cfg, job.store).pull(),
    "cache": lambda job: CacheStage(job.cfg, job.store, job.link.target).pull(),
    "encode": lambda job: EncodeStage(job.cfg, job.store, job.link.target).pull(),
    "sae": lambda job: SAEStage(job.cfg, job.store, job.link.target).pull(),
    "gram": lambda job: TrainStage(job).pull(),
    "train": lambda job: TrainStage(job).pull(),
    "evaluate": lambda job: EvaluateStage(job).pull(),
    "edges": lambda job: EdgesStage(job).pull(),
    "examples": lambda job: ExamplesStage(job.cfg, job.store, job.link.target).pull(),
    "top_tokens": lambda job: TopTokensStage(job.cfg, job.store, job.link.target).pull(),
    "oracle": lambda job: OracleStage(job).pull(),
    "ce": lambda job: BaselinesStage(job).pull(),
    "report": lambda job: ReportStage(job).pull(),
    "export": lambda job: ExportStage(job).pull(),
}

BEFORE: dict[str, tuple[str, ...]] = {
    "cache": ("tokens",), "encode": ("cache",), "sae": ("cache",), "gram": ("encode",), "train": ("encode",),
    "evaluate": ("train",), "edges": ("train",), "examples": ("encode",), "top_tokens": ("encode",),
    "oracle": ("encode",), "ce": ("oracle",), "report": ("report",), "export": ("evaluate", "edges"),
}  # fmt: skip
"""What is made before the limit is set; of the report everything but itself."""


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_cannot_be_held_is_refused_before_it_begins(
    stage: str, config: Callable[..., Config], store: Store
) -> None:
    words = ["eval.verify=false", "report.l1_alphas=[]", "report.ablated=0", "data.max_tokens=100000", "l1_alpha=1e-3"]
    words += [] if stage in ("gram",) else ["solver.tokens=2048"]
    if stage == "gram":
        words += ["solver=exact"]
    job = Job(config(*words), store)
    _ = job.link  # the model
    for before in BEFORE.get(stage, ()):
        STAGES[before](job)
    if stage == "report":
        store.remove(next(a.key for a in store.artifacts() if a.stage == "report"))
    if stage in ("train", "oracle", "examples", "top_tokens", "gram"):
        _ = job.sides
    there = {(artifact.stage, artifact.key) for artifact in store.artifacts()}
    limited = Job(config(*words, "runtime.memory=1MB"), store)
    with pytest.raises(SaelinkError) as refused:
        STAGES[stage](limited)
    line = str(refused.value)
    assert "\n" not in line and "of memory, 0 bytes are free within runtime.memory=1.0 MB; " in line, line
    assert line.startswith(f"{stage}: ") or ((stage == "gram" and "solver=exact" in line) or "train: " in line)
    assert {(artifact.stage, artifact.key) for artifact in store.artifacts()} == there
    assert not list(store.root.glob("*/*.partial"))


def test_a_fit_that_is_too_wide_is_refused_before_latents_are_made(
    config: Callable[..., Config], store: Store, tmp_path: Path
) -> None:
    """The widths are in the SAEs' files: 32 bytes for each of 2,000 x 2,000 weights."""
    for seed, hook in enumerate(("blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out")):
        write_sae(tmp_path / "wide" / hook, d_sae=2000, seed=seed)
    words = ["layer=1", "connector=nonlinear", "solver=adam", f"sae.path={tmp_path}/wide"]
    _ = Job(config(*words), store).model
    limit = f"runtime.memory={runtime.resident_bytes() + 60_000_000}"
    with pytest.raises(SaelinkError, match=r"^train: .* connector=linear keeps only its edges in memory$"):
        TrainStage(Job(config(*words, limit), store)).pull()
    assert {artifact.stage for artifact in store.artifacts()} == {"model"}


def test_a_command_ends_with_one_line_and_works_without_the_limit(saelink: Run, tmp_path: Path) -> None:
    code, out, err = saelink("train", "runtime.memory=1MB", "data.max_tokens=100000")
    assert code == 1 and len(err.strip().splitlines()) == 1 and "runtime.memory=1.0 MB" in err
    assert "done in" not in out and not list((tmp_path / "outputs").glob("*/*.partial"))
    assert saelink("train", "runtime.memory=500GB", "data.max_tokens=100000")[0] == 0


def test_steps_shrink_to_the_limit_and_the_bytes_stay(
    config: Callable[..., Config], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half as many tokens of a pass and of an encoding step, and equal files."""

    def files(root: Path) -> dict[str, bytes]:
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.glob("*/*/*.safetensors"))}

    cfg = config("runtime.forward_tokens=2048")
    hooks = ["blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out"]
    cache_hooks(cfg, store, hooks)
    encode_hooks(cfg, store, hooks)
    asked: list[int] = []

    def shrunk(wanted: int, *_: float) -> int:
        asked.append(wanted)
        return wanted // 8

    other = Store(tmp_path / "other")
    monkeypatch.setattr("saelink.activations.cache.fitting_tokens", shrunk)
    monkeypatch.setattr("saelink.latents.shards.fitting_tokens", shrunk)
    cache_hooks(cfg, other, hooks)
    encode_hooks(cfg, other, hooks)
    assert asked and files(other.root) == files(store.root)


def test_a_step_is_halved_until_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "memory_available", lambda: 10_000)
    assert runtime.fitting_tokens(4096, 1.0, 0.0) == 4096
    assert runtime.fitting_tokens(4096, 4.0, 2000.0) == 1024
    assert runtime.fitting_tokens(4096, 4.0, 20_000.0) == runtime.LEAST_TOKENS
    assert runtime.fitting_tokens(100, 4000.0, 0.0) == 100
    monkeypatch.setattr(runtime, "memory_available", lambda: None)
    assert runtime.fitting_tokens(4096, 1e12, 0.0) == 4096


# --------------------------------------------------------------------------- what the kernel counts


def watched(last: str, folder: Path, *overrides: str) -> dict[str, tuple[float | None, int]]:
    """By stage made in a process of its own what it promised and what it took; see helpers/peaks.py."""
    command = [sys.executable, "-m", "helpers.peaks", last, *overrides]
    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {stage: (promised, grown) for stage, promised, grown in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel does not tell peaks apart")
def test_what_is_promised_covers_what_is_taken(world: World, tmp_path: Path) -> None:
    """A mid-size link, 2,500 latents on each side, each part of the chain in a fresh process.

    No stage takes more than it promised, and the fits, whose matrices are most of it, promise at most FACTOR of it.
    """
    for seed, hook in enumerate(("blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out")):
        write_sae(tmp_path / "wide" / hook, d_sae=2500, k=16, seed=seed)
    write_text(tmp_path / "long.jsonl", n=1000)
    base = [word for word in world.overrides("outputs") if not word.startswith("solver")]
    base += [f"sae.path={tmp_path}/wide", f"data.path={tmp_path}/long.jsonl", "layer=1", "eval.verify=false"]
    exact = ["solver=exact", "l1_alpha=1e-3"]
    proximal = ["solver=proximal", "solver.tokens=2048", "l1_alpha=1e-3"]
    mlp = ["connector=mlp", "solver=adam", "connector.d_hidden=2048", "solver.tokens=2048", "l1_alpha=0"]
    parts = {
        "sides": watched("sides", tmp_path, *base, *exact),
        "exact": watched("train", tmp_path, *base, *exact),
        "proximal": watched("train", tmp_path, *base, *proximal),
        "mlp": watched("train", tmp_path, *base, *mlp),
        "edges": watched("edges", tmp_path, *base, *exact),
    }
    told = {f"{part} {stage}": figures for part, found in parts.items() for stage, figures in found.items()}
    print(json.dumps(told, indent=1))
    short = {name: each for name, each in told.items() if each[0] is not None and each[1] > each[0] + SLACK}
    assert not short, f"these took more than they promised: {short}"
    for part in ("exact", "proximal", "mlp"):
        promised, grown = parts[part]["train"]
        assert promised is not None and grown >= FROM, (part, promised, grown)
        assert promised <= FACTOR * grown, (part, promised, grown)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel does not tell peaks apart")
@pytest.mark.parametrize(
    ("stages", "dense"),
    [
        pytest.param(
            "effects,verdicts,stability,logic_trials,joint,effectiveness", ("stability",), marks=pytest.mark.slow
        ),
        ("moved,ov,moved_effects", ("ov", "moved_effects")),
    ],
)
def test_what_tests_and_heads_promise_covers_what_they_take(
    stages: str, dense: tuple[str, ...], world: World, tmp_path: Path
) -> None:
    """As above, on little text: `dense` stages take what sources times targets ask for, beside the libraries."""
    for seed, hook in enumerate(("hook_resid_mid", "hook_mlp_out", "hook_resid_pre", "hook_attn_out")):
        write_sae(tmp_path / "wide" / f"blocks.1.{hook}", d_sae=2500, k=16, seed=seed)
    base = [word for word in world.overrides("outputs") if not word.startswith("solver")]
    base += [f"sae.path={tmp_path}/wide", "layer=1", "eval.verify=false", "solver=exact", "l1_alpha=1e-3"]
    base += ["data.max_tokens=3000", "verify.tokens=300", "verify.tokens_per_source=32", "link.kept=40"]
    told = watched(stages, tmp_path, *base)
    short = {name: each for name, each in told.items() if each[0] is not None and each[1] > each[0] + SLACK}
    assert not short, f"these took more than they promised: {short}"
    for stage in dense:
        promised, grown = told[stage]
        assert promised is not None and grown >= FROM, (stage, promised, grown)
        assert promised - memory.LIBRARIES - memory.COMPILED <= FACTOR * grown, (stage, promised, grown)
