"""A small world: random two-layer models, a word-level tokenizer, made-up text, random SAEs; no download."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from helpers.world import Run, World, with_solver

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread each: threads of several workers wait for each other's cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import http.server
import threading
from collections.abc import Iterator

import pytest

from saelink.cli.app import main
from saelink.config.schema import Config
from saelink.store.store import Store

from helpers.hub import Hub, write_learned_dicts
from helpers.world import D_MODEL


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "outputs", say=lambda line: None)


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
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
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
