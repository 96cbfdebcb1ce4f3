"""A multirun through every launcher: all jobs, each shared artifact made once, one table and one W&B run a job."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from helpers.slurm import PLUGINS, has, stub_slurm
from helpers.world import World, with_solver


@pytest.mark.parametrize(
    "launcher",
    # submitit asks SLURM for a job's state once a minute
    [pytest.param(name, marks=[pytest.mark.slow] if name in ("slurm", "ray_local") else []) for name in PLUGINS],
)
def test_a_sweep_through_a_launcher(world: World, tmp_path: Path, launcher: str) -> None:
    if not has(PLUGINS[launcher]):
        pytest.skip(f"{PLUGINS[launcher]} is not installed")
    stub_slurm(tmp_path / "slurm")
    path = f"{tmp_path / 'slurm'}:{os.environ['PATH']}" if launcher == "slurm" else os.environ["PATH"]
    alphas = ["1e-3", "1e-2"]
    base = with_solver(world.overrides("outputs"), ["connector=linear", "solver=exact"])
    ray = Path(tempfile.mkdtemp(prefix="ray"))  # its sockets' paths may not be long
    if launcher == "ray_local":
        base += [f"+hydra.launcher.ray.init._temp_dir={ray}"]
    done = subprocess.run(
        [sys.executable, "-m", "saelink", "train", "-m", *base,
         f"l1_alpha={','.join(alphas)}", f"hydra/launcher={launcher}", "runtime.threads=1", "wandb.mode=offline"],
        capture_output=True, text=True, cwd=tmp_path, timeout=240,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    heard = {ip for path in ray.rglob("raylet.out") for ip in re.findall(r"address: ([\d.]+)", path.read_text())}
    shutil.rmtree(ray)
    logs = "".join(path.read_text() for path in tmp_path.rglob("*_log.out"))
    said = done.stdout + done.stderr + logs
    assert done.returncode == 0, said
    assert heard == ({"127.0.0.1"} if launcher == "ray_local" else set()), "on loopback only"
    (table,) = tmp_path.glob("outputs/sweeps/*/pareto.csv")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(float(row["l1_alpha"]) for row in rows) == [float(alpha) for alpha in alphas]
    made = {
        stage: len(list((tmp_path / "outputs" / stage).glob("*"))) for stage in ("cache", "encode", "gram", "train")
    }
    assert made == {"cache": 2, "encode": 2, "gram": 1, "train": 2}
    assert len(list((tmp_path / "outputs/wandb").glob("offline-run-*"))) == 3, "one for each job, one for the sweep"
    assert not list(tmp_path.glob("multirun")) and not list((tmp_path / "outputs").rglob("*.partial"))
