"""A stand-in for SLURM, and which launchers are installed."""

from __future__ import annotations

import importlib.util
import stat
import sys
from pathlib import Path

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
