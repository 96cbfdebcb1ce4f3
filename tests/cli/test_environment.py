"""What surrounds a command: terminals, home folders, caches, W&B's own settings. It is found out before the work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from saelink.cli.launch import one_line
from saelink.config.schema import WandbConfig, WandbMode
from saelink.errors import SaelinkError
from saelink.fetch import hub_errors
from saelink.store.store import Store
from saelink.tracking.project import Project

from helpers.world import Run, World


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "PYTHONIO", "LC_"))
    }
    return subprocess.run(
        [sys.executable, "-m", "saelink", *words], capture_output=True, cwd=folder, env={**inherited, **environment}
    )


# ----------------------------------------------------------------------------- terminals


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:strict"])
def test_a_terminal_without_the_signs_gets_them_described(tmp_path: Path, encoding: str) -> None:
    words = ["train", "data=files", 'data.path="cats é ☃.txt"', "--cfg", "job"]
    done = run(tmp_path, *words, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert b"\\u2603.txt" in done.stdout
    done = run(tmp_path, "train", "data.path=☃=1", PYTHONIOENCODING=encoding)
    assert done.returncode == 1 and b"data.path=\\u2603=1" in done.stderr and b"Traceback" not in done.stderr


def test_a_locale_of_another_time(tmp_path: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run(tmp_path, "train", "--help", **plain)
    assert done.returncode == 0 and b"l1_alpha" in done.stdout, done.stderr


# ----------------------------------------------------------------------------- folders

NO_CACHE = """
from numba.core.dispatcher import Dispatcher
def refuse(self):  # as numba does where no folder of its own can be written
    raise RuntimeError(f"cannot cache function {self.py_func.__name__!r}: no locator available for file 'x.py'")
Dispatcher.enable_caching = refuse
import torch
from saelink.saes.sae import active_entries
print(active_entries(torch.tensor([[1.0, -2.0, 3.0]]), 2, None)[1].tolist())
"""


def test_an_installation_that_no_one_may_write_compiles_each_time(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", NO_CACHE], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "[0, 2]", done.stderr


def test_a_user_without_a_home(world: World, tmp_path: Path) -> None:
    base = [word for word in world.overrides("out") if not word.startswith("wandb")]
    done = run(tmp_path, "train", *base, "solver.tokens=4096", "wandb.mode=offline", HOME="/proc/nobody")
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr


def test_the_hubs_own_folder_is_named_when_it_cant_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "closed" / "hf"))
    for place in ("closed", "closed/hf", "closed/hf/hub/models--a--b/blobs"):
        error = PermissionError(13, "Permission denied", str(tmp_path / place))
        assert "set HF_HOME" in one_line(error) and "runtime.outputs" not in one_line(error)
        with pytest.raises(SaelinkError, match=r"^model\.path=a/b: .*set HF_HOME"), hub_errors("model.path", "a/b"):
            raise error
    monkeypatch.delenv("HF_HOME")
    assert "set HF_HOME" in one_line(OSError(30, "Read-only", str(Path.home() / ".cache/huggingface/hub/x")))
    for place in (str(tmp_path / "outputs"), None):
        assert "change runtime.outputs" in one_line(OSError(28, "No space left on device", place))


def test_a_hub_home_under_a_file(world: World, hub: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = [*world.overrides("out"), "data=hub", "data.path=data/tiny"]
    done = run(tmp_path, "cache", *words, **{**hub, "HF_HOME": str(tmp_path / "file" / "hf")})
    lines = done.stderr.decode().strip().splitlines()
    assert done.returncode == 1 and len(lines) == 1 and "HF_HOME" in lines[0] and "outputs" not in lines[0], lines


def test_memory_that_is_not_there_is_one_line() -> None:
    import torch

    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**55)
    assert "can't allocate memory" in one_line(refused.value) and "\n" not in one_line(refused.value)
    assert "no memory left" in one_line(MemoryError())


@pytest.mark.parametrize("name", ["TerminatedWorkerError", "UncompletedJobError", "WorkerCrashedError"])
def test_a_job_whose_process_was_killed_is_a_line(name: str) -> None:
    """Whichever launcher says so, over however many lines; a log that it names is named."""
    error = type(name, (RuntimeError,), {})("no output\nlook at: /a/b/890_0_log.out\n---\nmore")
    line = one_line(error)
    assert "\n" not in line and "was killed" in line and "/a/b/890_0_log.out" in line and "the same command" in line


@pytest.mark.parametrize("name", ["", " ", "''", '""'])
def test_a_store_without_a_name_is_refused(saelink: Run, tmp_path: Path, name: str) -> None:
    for words in (["train"], ["train", "-m", "layer=0,1"]):
        code, _, err = saelink(*words, f"runtime.outputs={name}")
        assert code == 1 and "give a folder for the artifacts" in err and len(err.strip().splitlines()) == 1
    assert saelink("ls", "-o", "", bare=True)[0] == 1
    assert list(tmp_path.iterdir()) == []


def test_outputs_at_home(saelink: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert saelink("cache", "runtime.outputs=~/out", "layer=0")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"home"} and (tmp_path / "home/out/cache").is_dir()
    code, out, _ = saelink("ls", "-o", "~/out", bare=True)
    assert code == 0 and "cache" in out


# ----------------------------------------------------------------------------- Weights & Biases

WANDB: dict[str, tuple[list[str], dict[str, str], str]] = {
    "name": (
        [],
        {"WANDB_PROJECT": "a/b:c", "WANDB_MODE": "offline"},
        "WANDB_PROJECT=a/b:c: a project's name has no /",
    ),
    "setting": (["wandb.project=a#b"], {"WANDB_MODE": "offline"}, "wandb.project=a#b: a project's name has no #"),
    "long": (["wandb.project=" + "a" * 129], {"WANDB_MODE": "offline"}, "at most 128 characters"),
    "key": ([], {"WANDB_API_KEY": "abc"}, "API key must have 40+ characters"),
    "mode": ([], {"WANDB_MODE": "sometimes"}, "W&B does not take what its environment says"),
}


@pytest.mark.parametrize("how", WANDB)
@pytest.mark.parametrize("command", ["train", "track 0123"])
def test_what_wandb_would_refuse_is_said_before_the_work(world: World, tmp_path: Path, how: str, command: str) -> None:
    words, environment, expected = WANDB[how]
    base = [word for word in world.overrides("out") if not word.startswith("wandb")]
    quoted = [word.replace("a#b", '"a#b"') for word in words]
    done = run(tmp_path, *command.split(), *base, *quoted, **environment)
    lines = done.stderr.decode().strip().splitlines()
    assert done.returncode == 1 and len(lines) == 1 and expected in lines[0], lines
    assert not (tmp_path / "out" / "train").exists() and not (tmp_path / "out" / "cache").exists()


def project(store: Store, **settings: Any) -> Project:
    return Project(WandbConfig(**settings), store)


def test_the_environment_counts_unless_a_setting_is_given(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    assert project(store).name == "saelink"
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_ENTITY", "us")
    assert (project(store).name, project(store).entity) == ("theirs", "us")
    assert (project(store, project="mine").name, project(store, entity="me").entity) == ("mine", "me")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert project(store).disabled and not project(store, mode=WandbMode.offline).disabled


def test_disabled_in_the_environment_leaves_no_files(world: World, tmp_path: Path) -> None:
    base = [word for word in world.overrides("out") if not word.startswith("wandb")]
    done = run(tmp_path, "train", *base, "solver.tokens=4096", WANDB_MODE="disabled")
    assert done.returncode == 0 and not (tmp_path / "out" / "wandb").exists(), done.stderr
    done = run(tmp_path, "train", *base, "solver.tokens=4096", WANDB_MODE="offline", WANDB_PROJECT="theirs")
    assert done.returncode == 0 and list((tmp_path / "out/wandb/published/_theirs").iterdir()), done.stderr
