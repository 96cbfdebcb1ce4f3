"""A small world: random two-layer models, a word-level tokenizer, made-up text, random SAEs; no download."""

from __future__ import annotations

import os
import sys

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread each: threads of several workers wait for each other's cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch

import http.server
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():  # the GPU kernels on the CPU, where Triton is installed; it reads this at its import
    os.environ.setdefault("TRITON_INTERPRET", "1")

from saelink.cli.app import main
from saelink.config.schema import Config
from saelink.store.store import Store

from helpers.hub import Hub, write_learned_dicts
from helpers.world import D_MODEL, Run, World, with_solver

# Nobody pulls the plug on tests, and a tenth of their time is spent waiting for disks. Other processes do sync.
os.fsync = lambda fd: None

# New examples each run, none under a time limit; a failure prints the blob that repeats it (@reproduce_failure).
# `pytest --hypothesis-profile=thorough` looks longer.
quick = settings(
    max_examples=30, deadline=None, derandomize=False, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("quick", quick)
settings.register_profile("thorough", quick, max_examples=1000)
settings.load_profile("quick")


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    """With a failure, the order in which it happened."""
    seed = config.getoption("randomly_seed", None)
    if exitstatus and seed is not None:
        terminalreporter.write_line(f"this order again: make test SEED={seed}, or pytest --randomly-seed={seed}")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """runtime.memory is the process's: each test begins without the last one's."""
    monkeypatch.setattr("saelink.runtime._limits", {})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "outputs")


@pytest.fixture
def config(world: World, store: Store) -> Callable[..., Config]:
    """Compose a configuration of the small world for this test's store."""
    return lambda *overrides, model="llama": world.config(store.root, *overrides, model=model)


@pytest.fixture
def saelink(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command of the small world in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(command: str, *arguments: str, model: str = "llama", bare: bool = False) -> tuple[int, str, str]:
        base = [] if bare else world.overrides("outputs", model)
        monkeypatch.setattr(sys, "argv", ["saelink", command, *with_solver(base, arguments)])
        capfd.readouterr()
        root = logging.getLogger()
        handlers, level = list(root.handlers), root.level
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        finally:  # Hydra's --info logs to a stream that pytest closes
            root.handlers[:] = handlers
            root.setLevel(level)
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def hub(world: World, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment variables that point the clients at a hub with a model and a data set."""
    data = tmp_path / "hub-data"
    data.mkdir()
    (data / "train.jsonl").write_text(world.text.read_text())
    saes = tmp_path / "hub-saes"
    saes.mkdir()
    write_learned_dicts(saes, D_MODEL)
    Hub.repositories = {"models/tiny": world.neox, "data/tiny": data, "models/saes": saes}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", **home}
    server.shutdown()
    thread.join()
