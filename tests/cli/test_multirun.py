"""What stands around the jobs of a multirun: its folder, its record, and the exit code that they come to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose

from saelink.cli.multirun import Finish
from saelink.cli.outcome import OUTCOME
from saelink.compose import composing
from saelink.errors import printable
from saelink.store.artifact import Artifact
from saelink.store.recipe import Plan
from saelink.store.store import Store
from saelink.tracking.sweep import record_experiment, record_failure, sweep_folder

from helpers.world import Run, World

Note = Callable[[Store, str], None]


def noted_failure(store: Store, sweep_id: str) -> None:
    record_failure(store, sweep_id, 3, "layer=7: the model has layers 0 to 1")


def noted_experiment(store: Store, sweep_id: str) -> None:
    facts: dict[str, Any] = {"name": "dense", "link": "mlp", "layer": 1, "rows": []}
    result: Artifact[Any] = store.build(Plan("experiment", 1, {}, {}, "dense"), lambda _: facts)
    record_experiment(store, sweep_id, result)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"\xff", b"{}"])
@pytest.mark.parametrize(("kind", "note"), [("failed", noted_failure), ("experiments", noted_experiment)])
def test_a_damaged_note_is_a_failed_job(tmp_path: Path, kind: str, note: Note, content: bytes) -> None:
    """Nobody knows what its job came to, so the command does not end as if all had gone well."""
    store = Store(tmp_path / "outputs")
    note(store, "sweep1")
    (path,) = (sweep_folder(store, "sweep1") / kind).glob("*.json")
    path.write_bytes(content)
    with composing():
        cfg = compose("config", [f"runtime.outputs={store.root}", "runtime.sweep=sweep1", "wandb.mode=disabled"])
    OUTCOME.begin()
    Finish().on_multirun_end(cfg)
    assert (OUTCOME.error, OUTCOME.failed_elsewhere) == (None, 1)


def test_a_store_at_home_that_a_file_names(
    saelink: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hydra makes the folder of a multirun, which is inside the store."""
    (tmp_path / "mine/budget").mkdir(parents=True)
    (tmp_path / "mine/budget/home.yaml").write_text("# @package _global_\nruntime:\n  outputs: ~/a 'b\"\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    base = [word for word in world.overrides("") if not word.startswith("runtime.outputs=")]
    words = [*base, "budget=home", "layer=0", "-m", "--config-dir", str(tmp_path / "mine")]
    code, _, err = saelink("cache", *words, bare=True)
    assert code == 0, err
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "home"}
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"a 'b\""}
    assert (tmp_path / "home/a 'b\"/cache").is_dir() and list((tmp_path / "home/a 'b\"/sweeps").iterdir())


def test_no_password_is_written_down(saelink: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of an address in a setting or in the environment, nor what a job's environment is to hold."""
    monkeypatch.setenv("HF_ENDPOINT", "http://user:cuckoo@127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://user:cuckoo@127.0.0.1:9")
    places = "model.path=https://user:cuckoo@127.0.0.1:9/x,owner/name"
    code, out, err = saelink("train", "-m", "model=hub", places, "+hydra.job.env_set.X=cuckoo")
    assert code == 1 and "https://***@127.0.0.1:9/x" in err and "http://***@127.0.0.1:9 can't be reached" in err
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len([path for path in written if path.parent.name == "failed"]) == 2
    assert "cuckoo" not in out + err and not [path for path, data in written.items() if b"cuckoo" in data]
    words = "saelink: hf://owner/name@main/x: no @ of it is a password's"
    assert printable(words) == words
