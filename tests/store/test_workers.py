"""Several processes at one artifact, and latents without activations on disk: the bytes of one process with both."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from saelink.activations import cache as cache_module
from saelink.activations.cache import run_model
from saelink.config.schema import Config
from saelink.fit.products.dense import GramStage
from saelink.job import Job
from saelink.latents.encode import encode_hooks
from saelink.latents.link import link_of
from saelink.store.store import Store

from helpers.stored import stored
from helpers.world import TESTS, World

STAGES = ("tokens", "cache", "encode", "gram")

WORKER = """
import json, sys, time
from helpers.world import composed
from saelink.activations import cache
from saelink.fit.products import dense as gram
from saelink.store import store as store_module

cache.SHARD_TOKENS = 256
gram.PARTS, gram.PART_TOKENS = 4, 1024
slow = float(sys.argv[2])
run = cache.run_model

def slowly(*arguments):
    for shard, acts in run(*arguments):
        time.sleep(slow)
        print("did", shard.name, flush=True)
        yield shard, acts

cache.run_model = slowly
from saelink.latents.link import pull_sides
from saelink.fit.products.dense import GramStage
from saelink.job import Job
from saelink.terminal.progress import TerminalObserver
cfg = composed(json.loads(sys.argv[1]))
store = store_module.Store(cfg.runtime.outputs, TerminalObserver())
pull_sides(cfg, store)
GramStage(Job(cfg, store)).pull()
"""


def start(overrides: list[str], slow: float = 0.0) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORKER, json.dumps(overrides), str(slow)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


@pytest.fixture
def small(world: World, tmp_path: Path) -> Callable[..., list[str]]:
    return lambda name, *more: [*world.overrides(str(tmp_path / name)), *more]


def test_workers_make_what_one_process_makes(small: Callable[..., list[str]], tmp_path: Path) -> None:
    alone = start(small("alone"))
    assert alone.wait() == 0, alone.stdout and alone.stdout.read()
    # One is killed in the middle of it; another starts late; what the dead one had claimed is done by those that live.
    first = start(small("together", "runtime.shared=true"), slow=0.3)
    assert first.stdout is not None
    while "did" not in first.stdout.readline():
        assert first.poll() is None
    others = [start(small("together", "runtime.shared=true"), slow=0.05) for _ in range(2)]
    time.sleep(1.5)
    first.send_signal(signal.SIGKILL)
    said = [worker.communicate()[0] for worker in others]
    assert [worker.returncode for worker in others] == [0, 0], said
    assert stored(tmp_path / "together", STAGES) == stored(tmp_path / "alone", STAGES)
    done = [line.split()[1] for text in said for line in text.splitlines() if line.startswith("did")]
    shards = {name.rsplit("/", 1)[1] for name in stored(tmp_path / "alone", ["cache"])}
    assert len(done) == len(set(done)), "each shard was made once"
    assert set(done) < shards, "some were made by the one that died"
    left = [path for path in (tmp_path / "together").rglob("*") if path.suffix in (".claim", ".worker", ".partial")]
    assert not left


def test_one_process_waits_for_workers_and_takes_what_they_made(
    small: Callable[..., list[str]],
) -> None:
    worker = start(small("out", "runtime.shared=true"), slow=0.1)
    assert worker.stdout is not None
    while "did" not in worker.stdout.readline():
        assert worker.poll() is None
    worker.send_signal(signal.SIGSTOP)  # so that it is not done before the other one looks, however slow the machine
    plain = start(small("out"))
    assert plain.stdout is not None
    said = ""
    while "waiting" not in said:
        line = plain.stdout.readline()
        assert line, said
        said += line
    worker.send_signal(signal.SIGCONT)
    said += plain.communicate()[0]
    worker.communicate()
    assert (worker.returncode, plain.returncode) == (0, 0), said
    assert "workers are making it, waiting" in said
    assert "did" not in said


def test_streamed_latents_are_the_same_and_nothing_else_is_written(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "SHARD_TOKENS", 512)
    made = {}
    for stream in ("false", "true"):
        cfg = config(f"stream={stream}", f"runtime.outputs={tmp_path}/{stream}")
        store = Store(tmp_path / stream)
        link = link_of(cfg, store)
        encode_hooks(cfg, store, [*link.sources, link.target])
        made[stream] = stored(tmp_path / stream, ["encode"])
    assert made["true"] == made["false"]
    assert len(made["true"]) > 4
    assert (tmp_path / "false" / "cache").exists()
    assert not (tmp_path / "true" / "cache").exists()


def test_streaming_goes_on_after_a_kill(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "SHARD_TOKENS", 512)
    run = run_model
    done: list[str] = []

    def dying(*arguments: object) -> object:
        for shard, acts in run(*arguments):  # type: ignore[arg-type]
            yield shard, acts
            done.append(shard.name)
            if len(done) == 4:
                raise KeyboardInterrupt

    whole = Store(tmp_path / "whole")
    cfg = config("stream=true", f"runtime.outputs={tmp_path}/whole")
    hooks = [*link_of(cfg, whole).sources, link_of(cfg, whole).target]
    encode_hooks(cfg, whole, hooks)
    killed = Store(tmp_path / "killed")
    cfg = config("stream=true", f"runtime.outputs={tmp_path}/killed")
    monkeypatch.setattr("saelink.latents.encode.run_model", dying)
    with pytest.raises(KeyboardInterrupt):
        encode_hooks(cfg, killed, hooks)
    encode_hooks(cfg, killed, hooks)
    assert stored(tmp_path / "killed", STAGES) == stored(tmp_path / "whole", STAGES)
    assert len(done) > len(set(done)) - 4
    assert done.count(done[0]) == 1, "finished shards are not made again"


def test_products_in_parts_are_the_products(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from saelink.fit.products.dense import load_gram

    found = []
    for parts in (1, 5):
        monkeypatch.setattr("saelink.fit.products.dense.PARTS", parts)
        monkeypatch.setattr("saelink.fit.products.dense.PART_TOKENS", 512)
        cfg = config(f"runtime.outputs={tmp_path}/{parts}")
        found.append(load_gram(GramStage(Job(cfg, Store(tmp_path / str(parts)))).pull()))
    for one, five in zip(*found, strict=True):
        assert torch.allclose(one, five, rtol=1e-12, atol=1e-14)
