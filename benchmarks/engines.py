"""Engines compared: the start of two workers with torch, the round trip of an empty task, what a killed worker costs.

    python -m benchmarks.engines      # a minute or two; those that are installed

Writes benchmarks/engines.json. What they do when a worker is killed is tried, too: an engine that hangs is ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

RESULT = Path(__file__).with_name("engines.json")

TASKS = 200

SECONDS = 240
"""Each engine may take so long."""

Many = Callable[[Callable[[Any], Any], list[Any]], Iterable[Any]]
"""Does a function of every task by two workers."""


def first(_: int) -> int:
    """What a worker has to import before it can do anything of ours."""
    import torch

    return torch.get_num_threads()


def empty(task: int) -> int:
    return task


def deadly(task: tuple[int, str]) -> int:
    """The fifth task kills its worker, once."""
    number, flag = task
    time.sleep(0.05)
    if number == 5 and not os.path.exists(flag):  # noqa: PTH110 (as small as can be)
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def by_joblib(backend: str) -> Many:
    from joblib import Parallel, delayed

    def many(do: Callable[[Any], Any], tasks: list[Any]) -> Iterable[Any]:
        return Parallel(n_jobs=2, backend=backend, batch_size=1)(delayed(do)(task) for task in tasks)  # type: ignore[arg-type]

    return many


def by_ray() -> Many:
    from saelink.engine.ray_cluster import quiet_ray

    quiet_ray(local=True)
    import ray  # pyright: ignore[reportMissingImports]  # an extra

    ray.init("local", num_cpus=2, _node_ip_address="127.0.0.1", include_dashboard=False, log_to_driver=False)

    def many(do: Callable[[Any], Any], tasks: list[Any]) -> Iterable[Any]:
        remote = ray.remote(do).options(num_cpus=1, max_retries=3)
        return ray.get([remote.remote(task) for task in tasks])

    return many


def by_submitit() -> Many:
    import submitit

    executor = submitit.AutoExecutor(tempfile.mkdtemp(), cluster="local")
    executor.update_parameters(timeout_min=5)

    def many(do: Callable[[Any], Any], tasks: list[Any]) -> Iterable[Any]:
        found: list[Any] = []
        for start in range(0, len(tasks), 2):
            jobs = [executor.submit(do, task) for task in tasks[start : start + 2]]
            found += [job.result() for job in jobs]
        return found

    return many


ENGINES: dict[str, tuple[str, Callable[[], Many], int]] = {
    "joblib, loky": ("joblib", lambda: by_joblib("loky"), TASKS),
    "joblib, multiprocessing": ("joblib", lambda: by_joblib("multiprocessing"), TASKS),
    "joblib, threading": ("joblib", lambda: by_joblib("threading"), TASKS),
    "Ray core": ("ray", by_ray, TASKS),
    "submitit, local": ("submitit", by_submitit, 4),
}
"""By name the package, what makes it, and how many empty tasks it is given."""


def measure(name: str) -> dict[str, Any]:
    """In a process of its own, which is ended when it hangs."""
    _, make, count = ENGINES[name]
    found: dict[str, Any] = {}
    begun = time.perf_counter()
    many = make()
    list(many(first, [0, 1]))
    found["seconds until two workers have torch"] = round(time.perf_counter() - begun, 2)
    begun = time.perf_counter()
    list(many(empty, list(range(count))))
    found["milliseconds a task"] = round(1000 * (time.perf_counter() - begun) / count, 2)
    print(json.dumps(found), flush=True)
    if name != "joblib, threading":  # its workers are this process
        flag = tempfile.mkdtemp() + "/died"
        begun = time.perf_counter()
        try:
            done = len(list(many(deadly, [(number, flag) for number in range(8)])))
            found["one worker killed"] = f"{done} of 8 tasks done, {time.perf_counter() - begun:.1f} s"
        except Exception as error:  # what it is, is what is asked for
            found["one worker killed"] = f"{type(error).__name__} after {time.perf_counter() - begun:.1f} s"
    print(json.dumps(found), flush=True)
    return found


def main() -> None:
    if len(sys.argv) > 1:
        measure(sys.argv[1])
        os._exit(0)
    import subprocess

    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name, (package, *_) in ENGINES.items():
        if find_spec(package) is None:
            continue
        command = [sys.executable, "-m", "benchmarks.engines", name]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            out, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
        entry = json.loads(([line for line in out.splitlines() if line.startswith("{")] or ["{}"])[-1])
        if entry and name != "joblib, threading":
            entry.setdefault("one worker killed", "hangs: nothing came back")
        result[name] = entry or {"not measured": f"no worker within {SECONDS} seconds"}
        print(name, entry, flush=True)
    RESULT.write_text(json.dumps({"cores": os.cpu_count(), **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
