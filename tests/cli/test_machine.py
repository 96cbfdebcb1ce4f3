"""What the machine does to a command: signals and errors of the system end in one line, and nothing is lost."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saelink.store.draft import Draft
from saelink.store.files import write_durably
from saelink.store.store import Store

from helpers.observing import Lines
from helpers.slurm import PLUGINS, has
from helpers.world import Run, World

STAGES = ["model", "tokens", "cache", "encode", "gram", "train", "evaluate", "edges", "report"]

RESUMED = ("cache", "encode", "gram")
"""The stages of these that keep what they have finished."""


def kept(outputs: Path) -> dict[str, bytes]:
    """Every file of a store that isn't about how it was made."""
    files = [path for path in outputs.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(outputs)): path.read_bytes() for path in files}


def test_a_signal_in_any_stage_ends_it_with_one_line(
    saelink: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first file of each stage in turn; the next command goes on from there, to the bytes of one that wasn't."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals reach the main thread only")
    save, seen = Draft.save_bytes, set[str]()

    def stopped(stage: str, number: int) -> Callable[..., None]:
        def saved(self: Draft, name: str, data: bytes) -> None:
            save(self, name, data)
            if self.plan.stage == stage and stage not in seen:
                seen.add(stage)
                os.kill(os.getpid(), number)

        return saved

    for i, stage in enumerate(STAGES):
        number = (signal.SIGINT, signal.SIGTERM)[i % 2]
        with monkeypatch.context() as patched:
            patched.setattr(Draft, "save_bytes", stopped(stage, number))
            code, out, err = saelink("run", "solver=exact", "l1_alpha=1e-2")
        assert code == 128 + number and stage in seen, (stage, out, err)
        line = "interrupted" if number == signal.SIGINT else "terminated"
        assert err == f"saelink: {line}; the same command resumes from what is finished\n"
        left = [path for path in (tmp_path / "outputs").rglob("*.partial") if path.parent.name not in RESUMED]
        assert not left and not list((tmp_path / "outputs").rglob("*.tmp"))
    assert saelink("run", "solver=exact", "l1_alpha=1e-2")[0] == 0
    assert saelink("run", "solver=exact", "l1_alpha=1e-2", "runtime.outputs=again")[0] == 0
    assert kept(tmp_path / "outputs") == kept(tmp_path / "again")


def test_a_signal_while_nothing_is_made_ends_it_with_one_line(tmp_path: Path) -> None:
    """From the first moment on: while Python imports, while Hydra composes."""
    code = """
import os, signal, sys
from saelink.cli import app
def stop(words):
    os.kill(os.getpid(), signal.SIGTERM)
app._check_command = stop
app.main()
"""
    done = subprocess.run([sys.executable, "-c", code, "ls"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 143 and done.stdout == ""
    assert done.stderr == "saelink: terminated; the same command resumes from what is finished\n"


def test_a_signal_while_an_object_is_deleted_is_not_lost(tmp_path: Path) -> None:
    """Python can raise nothing there."""
    code = """
import os, signal, time
from saelink.cli import app
class Deleted:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
def work(words):
    Deleted()
    time.sleep(20)
app._check_command = work
app.main()
"""
    done = subprocess.run([sys.executable, "-c", code, "ls"], capture_output=True, text=True, cwd=tmp_path, timeout=15)
    assert done.returncode == 143
    assert done.stderr == "saelink: terminated; the same command resumes from what is finished\n"


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """As nohup and a shell's background jobs have it."""
    code = """
import os, signal
from saelink.cli import app
signal.signal(signal.SIGINT, signal.SIG_IGN)
app._check_command = lambda words: os.kill(os.getpid(), signal.SIGINT)
app.main()
"""
    done = subprocess.run([sys.executable, "-c", code, "ls"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


ERRORS = ["ENOSPC", "EIO", "EMFILE", "EINTR", "ESTALE", "EDQUOT", "EROFS", "EBUSY", "ENOTCONN", "EREMOTEIO", "ENOMEM"]


def failing(monkeypatch: pytest.MonkeyPatch, name: str, places: Callable[[Path], bool]) -> None:
    """Writing a file whose place fits fails with this error, wherever it is written from."""

    def fails(path: Path, data: bytes) -> None:
        if places(path):
            number = getattr(errno, name, errno.EIO)
            raise OSError(number, os.strerror(number), str(path))
        write_durably(path, data)

    for module in ("saelink.store.draft", "saelink.tracking.sweep", "saelink.report.stage"):
        monkeypatch.setattr(f"{module}.write_durably", fails)


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_of_the_system_is_one_line(saelink: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    failing(monkeypatch, name, lambda path: path.parent.parent.name == "encode")
    code, _, err = saelink("encode")
    assert code == 1 and err.startswith("saelink: outputs/encode/") and len(err.splitlines()) == 1, err
    assert "; " in err, "what to do about it"


def test_reading_that_fails_is_no_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told to remove an artifact because a disk did not answer."""
    from saelink.store.recipe import Plan

    artifact = store.build(Plan("stage", 1, {}, {}, ""), lambda draft: draft.save_bytes("a", b"b") or {})

    def fails(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("hashlib.file_digest", fails)
    with pytest.raises(OSError, match="Input/output error") as error:
        artifact.file("a")
    assert error.value.filename == str(artifact.path / "a")
    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(OSError, match="Input/output error") as error:
        store.find(Plan("stage", 1, {}, {}, ""))
    assert error.value.filename == str(artifact.path / "manifest.json")


@pytest.mark.parametrize("place", ["jobs", "pareto.csv", "pareto.png"])
def test_a_sweep_whose_record_could_not_be_written_fails(
    saelink: Run, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Its artifacts are there, its table is not: the same command makes it when the disk works again."""
    with monkeypatch.context() as patched:
        failing(patched, "EIO", lambda path: "sweeps" in path.parts and place in path.parts)
        code, _, err = saelink("train", "-m", "l1_alpha=1e-3,1e-2")
    assert code == 1 and err.count("Input/output error") == len(err.splitlines()) >= 1, err
    code, out, err = saelink("train", "-m", "l1_alpha=1e-3,1e-2")
    assert (code, err) == (0, "") and "2 connectors" in out


def test_a_sweep_that_can_not_begin_fails_in_one_line(saelink: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert saelink("train", "-m", "l1_alpha=1e-3,1e-2")[0] == 0

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "outputs/sweeps")

    monkeypatch.setattr("saelink.tracking.sweep.shutil.rmtree", fails)
    code, _, err = saelink("train", "-m", "l1_alpha=1e-3,1e-2")
    assert code == 1 and err.startswith("saelink: outputs/sweeps: Stale file handle; ") and len(err.splitlines()) == 1


def test_a_full_disk_is_said_once_in_a_sweep(saelink: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be written any more, the notes of the failures neither: a line for each job, and no other."""
    assert saelink("encode")[0] == 0
    failing(monkeypatch, "ENOSPC", lambda path: path.parent.parent.name == "train" or "failed" in path.parts)
    code, out, err = saelink("train", "-m", "l1_alpha=1e-3,1e-2")
    assert code == 1 and len(err.splitlines()) == 2, err
    assert "No space left" not in out


def test_a_failure_in_a_sweep_is_said_once(saelink: Run) -> None:
    code, out, err = saelink("train", "-m", "layer=1,9")
    assert code == 1
    assert (out + err).count("layer=9: the model has") == 1
    assert "job 1 failed, see its line above" in out


def test_a_failure_in_another_process_is_said_once(world: World, tmp_path: Path) -> None:
    if not has(PLUGINS["processes"]):
        pytest.skip(f"{PLUGINS['processes']} is not installed")
    launcher = ["hydra/launcher=processes", "hydra.launcher.n_jobs=2", "runtime.threads=1"]
    command = [sys.executable, "-m", "saelink", "train", "-m", *world.overrides("outputs"), *launcher, "layer=1,9"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert (done.stdout + done.stderr).count("layer=9: the model has") == 1, done.stdout + done.stderr


def test_a_sweep_whose_record_was_damaged_fails(saelink: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says which, and the exit code that the table is not whole."""
    from saelink.tracking.sweep import sweep_folder, write_pareto

    def after_damage(store: Store, sweep_id: str) -> Any:
        min((sweep_folder(store, sweep_id) / "jobs").iterdir()).write_text("{}")
        return write_pareto(store, sweep_id)

    monkeypatch.setattr("saelink.cli.multirun.write_pareto", after_damage)
    code, out, err = saelink("train", "-m", "l1_alpha=1e-3,1e-2")
    assert code == 1 and "it is left out" in out and "1 connectors" in out, out + err


def test_a_bug_at_the_end_of_a_sweep_keeps_its_traceback(saelink: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("saelink.cli.multirun.write_pareto", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        saelink("train", "-m", "l1_alpha=1e-3,1e-2")


NASTY = ["\x1b]0;title\x07", "\x1b[2J\x1b[H", "\x9b31m", "\x7f\x08\x08", "\u202eabc\u202c", "\rsaelink"]


@pytest.mark.parametrize("name", NASTY)
def test_no_name_steers_the_terminal(saelink: Run, tmp_path: Path, name: str) -> None:
    """Neither what a store says of itself nor what a setting is given."""
    from saelink.store.recipe import Plan

    Store(tmp_path / "outputs").build(Plan("stage", 1, {}, {}, f"a {name} test"), lambda _: {})
    for command in (["ls"], ["rm", name], ["gc", "-o", name]):
        _, out, err = saelink(*command, bare=True)
        assert not any(c in out + err for c in name if not c.isprintable()), (command, out, err)
    code, out, err = saelink("train", f"sae.path={name}")
    assert code == 1 and not any(c in out + err for c in name if not c.isprintable()), (out, err)


def test_what_is_shown_of_a_name_can_be_told_apart() -> None:
    from saelink.progress import harmless

    plain = "tab\t, two\nlines, \u00e9, \u6587, \u200d joined, \U0001f469\u200d\U0001f4bb"
    assert harmless(plain) == plain
    assert harmless("\x1b[1m\u202e\x85") == r"\x1b[1m\u202e\x85"


def test_a_store_made_on_several_machines_says_so(saelink: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from saelink.store.recipe import Plan

    store.observer = Lines()
    for number, machine in enumerate(("Linux x86_64 AVX2", "Linux x86_64 AVX512", "Linux x86_64 AVX2")):
        monkeypatch.setattr("saelink.store.provenance.machine_kind", lambda _, machine=machine: machine)
        store.build(Plan("stage", 1, {"number": number}, {}, ""), lambda _: {})
        out = saelink("ls", bare=True)[1]
        assert ("made on 2 kinds of machines (Linux x86_64 AVX2, Linux x86_64 AVX512)" in out) == (number > 0), out
