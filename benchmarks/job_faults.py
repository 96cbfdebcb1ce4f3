"""One of several jobs of a multirun fails, or is killed, through each launcher: what the others and the rerun do."""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from benchmarks.small_world import overrides, write_world

LAUNCHERS = {
    "basic": None,
    "processes": "hydra_plugins.hydra_joblib_launcher",
    "slurm_local": "hydra_plugins.hydra_submitit_launcher",
    "ray_local": "hydra_plugins.hydra_ray_launcher",
}
"""Our settings of each launcher, and the package that it needs."""

CASES = [(launcher, how, layer) for layer in (0, 1) for how in ("fails", "killed") for launcher in LAUNCHERS]

KILLER = """
import os, signal, sys
place, flag = os.environ["FAULT_PLACE"], os.environ["FAULT_FLAG"]
def hook(event, args):
    if event == "open" and place in str(args[0]) and not os.path.exists(flag):
        os.close(os.open(flag, os.O_CREAT))
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
"""
"""Python runs it when it starts: the first process that reads a certain file is killed there, once."""


@cache
def _world() -> Path:
    import atexit
    import shutil

    folder = Path(tempfile.mkdtemp(prefix="saelink-jobs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write_world(folder)


def job_case(case: int, folder: Path) -> str:
    """A sweep over layers of which one job is hit. Raises AssertionError for a wrong status or work done twice."""
    launcher, how, layer = CASES[case]
    needs = LAUNCHERS[launcher]
    if needs is not None and importlib.util.find_spec(needs) is None:
        return f"{launcher} is not installed"
    layers = ["0", "1"]
    if how == "fails":
        layers.insert(layer, "7")
    words = ["train", "-m", *overrides(_world(), "outputs"), f"layer={','.join(layers)}", f"hydra/launcher={launcher}",
             "runtime.threads=1", "wandb.mode=disabled"]  # fmt: skip
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(KILLER)
    place = f"blocks.{layer}.hook_mlp_out" if how == "killed" else "no such file"
    first = _run(folder, words, {"FAULT_PLACE": place, "FAULT_FLAG": str(folder / "flag")})
    made = _times(folder)
    if how == "fails":
        _check_failure(folder, first, layers)
        again = _run(folder, words, {})
        _check_failure(folder, again, layers)
    else:
        _check_kill(launcher, first)
        again = _run(folder, words, {})
        assert again.returncode == 0, f"the rerun: exit code {again.returncode}: {_said(again)[-500:]}"
        (table,) = folder.glob("outputs/sweeps/*/pareto.csv")
        with table.open() as file:
            assert sorted(row["layer"] for row in csv.DictReader(file)) == layers
    now = _times(folder)
    assert made.items() <= now.items(), "what was finished was made again"
    assert len([name for name in now if name.startswith("train/")]) == 2, f"not every job has its fit: {sorted(now)}"
    assert not list(folder.glob("outputs/*/*.partial")), "unfinished work is left"
    return f"{launcher}: {how}"


def _run(folder: Path, words: list[str], more: dict[str, str]) -> subprocess.CompletedProcess[str]:
    path = [str(folder / "site")] if more else []
    path += [place for place in (os.environ.get("PYTHONPATH", "").split(os.pathsep),) for place in place if place]
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*path, root]), "OMP_NUM_THREADS": "1", **more}
    command = [sys.executable, "-m", "saelink", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)


def _said(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def _times(folder: Path) -> dict[str, int]:
    """When each artifact was finished."""
    found = folder.glob("outputs/*/*/manifest.json")
    return {f"{path.parent.parent.name}/{path.parent.name}": path.stat().st_mtime_ns for path in found}


def _check_failure(folder: Path, done: subprocess.CompletedProcess[str], layers: list[str]) -> None:
    said, number = _said(done), layers.index("7")
    assert done.returncode == 1, f"exit code {done.returncode}: {said[-500:]}"
    assert said.count("layer=7: the model has") == 1, (
        f"the failure is said {said.count('layer=7:')} times: {said[-500:]}"
    )
    assert re.search(rf"^job {number} failed", said, re.MULTILINE), f"which job failed is not said: {said[-500:]}"
    (note,) = folder.glob("outputs/sweeps/*/failed/*.json")
    assert note.stem == str(number), note
    assert "Traceback" not in said, said[-2000:]


def _check_kill(launcher: str, done: subprocess.CompletedProcess[str]) -> None:
    """Jobs of the command's own process take it along; of others' it says in one line that a job was killed, or the
    launcher runs it again."""
    said = _said(done)
    if launcher == "ray_local":  # Ray gives the job of a worker that died to another one
        assert done.returncode == 0, f"exit code {done.returncode}: {said[-500:]}"
        return
    if launcher == "basic":
        assert done.returncode == -signal.SIGKILL, f"exit code {done.returncode}: {said[-500:]}"
        return
    assert done.returncode == 1, f"exit code {done.returncode}: {said[-500:]}"
    assert "Traceback" not in said, said[-2000:]
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr[-1000:]
