"""A multirun through every launcher: all jobs, each shared artifact made once, one table and one W&B run a job."""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from conftest import World, with_solver

PLUGINS = {
    "processes": "hydra_plugins.hydra_joblib_launcher",
    "slurm_local": "hydra_plugins.hydra_submitit_launcher",
    "slurm": "hydra_plugins.hydra_submitit_launcher",
    "ray_local": "hydra_plugins.hydra_ray_launcher",
}
"""Our settings in conf/hydra/launcher, each on top of the plugin's own."""

SBATCH = """#!{python}
# Stands in for SLURM's sbatch: starts the tasks of a job array here, one after the other, as srun would.
import os, re, subprocess, sys, time
script = open(sys.argv[-1]).read()
command = re.sub(r"^srun.*?--output \\S+ ", "", script.strip().splitlines()[-1])
first, last = map(int, re.search(r"--array=(\\d+)-(\\d+)", script).groups())
if sys.argv[1] != "--now":
    copy = os.path.abspath(sys.argv[-1]) + ".copy"
    open(copy, "w").write(script)
    subprocess.Popen([sys.executable, __file__, "--now", copy], start_new_session=True,
                     stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print("Submitted batch job 1000")
    sys.exit()
for task in range(first, last + 1):
    variables = dict(SLURM_JOB_ID=str(1000 + task), SLURM_ARRAY_JOB_ID="1000", SLURM_ARRAY_TASK_ID=str(task),
                     SLURM_NTASKS="1", SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NODEID="0", SLURM_JOB_NUM_NODES="1",
                     SLURM_JOB_NODELIST="here", SLURM_NODELIST="here", SUBMITIT_EXECUTOR="slurm")
    mine = command.replace("%j", f"1000_{{task}}")
    for _ in range(100):  # what is to be run is written once the job has a number
        if os.path.exists(f"{{mine.split()[-1]}}/1000_{{task}}_submitted.pkl"):
            break
        time.sleep(0.1)
    with open(f"{{mine.split()[-1]}}/1000_{{task}}_0_log.out", "w") as log:
        subprocess.run(["bash", "-c", mine], env=dict(os.environ, **variables), stdout=log, stderr=log)
"""

OTHERS = """#!{python}
# Stands in for the SLURM commands that are asked for a job's state, or need only be there.
"""


def stub_slurm(folder: Path) -> None:
    folder.mkdir()
    for name in ("sbatch", "srun", "sacct", "scancel", "squeue", "sinfo", "scontrol"):
        path = folder / name
        path.write_text((SBATCH if name == "sbatch" else OTHERS).format(python=sys.executable))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)


def has(plugin: str) -> bool:
    try:
        return importlib.util.find_spec(plugin) is not None
    except ModuleNotFoundError:
        return False


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
    with open(table) as file:
        rows = list(csv.DictReader(file))
    assert sorted(float(row["l1_alpha"]) for row in rows) == [float(alpha) for alpha in alphas]
    made = {
        stage: len(list((tmp_path / "outputs" / stage).glob("*"))) for stage in ("cache", "encode", "gram", "train")
    }
    assert made == {"cache": 2, "encode": 2, "gram": 1, "train": 2}
    assert len(list((tmp_path / "outputs/wandb").glob("offline-run-*"))) == 3, "one for each job, one for the sweep"
    assert not list(tmp_path.glob("multirun")) and not list((tmp_path / "outputs").rglob("*.partial"))
