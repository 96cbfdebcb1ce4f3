"""Workers on one command: two against one, and on paper 64, from the CPU time of every task.

    python -m benchmarks.workers [width] [tokens] [folder]     # 32,768 latents and all tokens unless given

Between random TopK-32 SAEs, as in benchmarks/wide.py. First every task of the products and of the fit is done here, one
after the other, on one thread, and its CPU time taken, which other work on the machine hardly changes. From these the
length of a run by N workers is computed: each takes the next task, after START seconds of imports. Then `saelink train`
is run with one and with two workers of one thread, in turn. Writes benchmarks/workers.json.
"""

from __future__ import annotations

import heapq
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.wide import measured, write_saes
from saelink import api
from saelink.engine.tasks import Engine
from saelink.engine.work import Work
from saelink.fit.train import TrainStage
from saelink.job import Job
from saelink.progress import Observer
from saelink.store.store import Store

RESULT = Path(__file__).with_name("workers.json")

START = 6.0
"""Seconds in which a worker imports torch and opens what it needs, on a quiet machine."""


class Clocked(Engine):
    """Does every task here, and keeps its CPU time."""

    def __init__(self, job: Job, times: dict[str, list[float]]):
        super().__init__(job.cfg.runtime, Observer())
        self._times = times

    @property
    def several(self) -> bool:
        return True

    def run(
        self, what: str, work: Work[Any, Any, Any], tasks: Sequence[Any], done: Callable[[Any, Any], object],
        state: Any = None,
    ) -> None:  # fmt: skip
        state = work.open() if state is None else state
        for task in tasks:
            begun = time.process_time()
            result = work.run(state, task)
            self._times.setdefault(what, []).append(time.process_time() - begun)
            done(task, result)


def by(workers: int, tasks: list[float]) -> float:
    """Seconds until the last of these tasks is done, each by whoever is free first."""
    free = [START] * workers
    for seconds in tasks:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def main() -> None:
    width = int(sys.argv[1]) if len(sys.argv) > 1 else 32_768
    tokens = sys.argv[2] if len(sys.argv) > 2 else "null"
    folder = Path(sys.argv[3] if len(sys.argv) > 3 else tempfile.mkdtemp()).resolve()
    folder.mkdir(exist_ok=True)
    saes = folder / f"saes-{width}"
    if not saes.exists():
        write_saes(saes, width)
    settings = [f"data.max_tokens={tokens}", "sae=folder", f"sae.path={saes}", "sae.check=false", "runtime.threads=1"]
    settings += [f"runtime.outputs={folder}/outputs", "wandb.mode=disabled"]
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {}
    job = Job(api.configure(*settings), Store(folder / "outputs"))
    job.__dict__["engine"] = Clocked(job, times)
    _ = job.sides
    for stage in ("products", "train"):
        shutil.rmtree(folder / "outputs" / stage, ignore_errors=True)
    fit = TrainStage(job).pull()
    found: dict[str, Any] = {"latents": width, "training tokens": fit.facts["n_tokens"]}
    for what, seconds in times.items():
        found[what] = {
            "tasks": len(seconds),
            "CPU seconds, all": round(sum(seconds), 1),
            "CPU seconds, longest": round(max(seconds), 2),
            "seconds by workers, computed": {n: round(by(n, seconds), 1) for n in (1, 2, 8, 64)},
        }
    found["cores"] = os.cpu_count()
    _keep(f"{width:,} latents, {tokens} tokens", found)
    runs: dict[str, list[float]] = {}
    for _ in range(2):
        for workers in (1, 2):
            for stage in ("products", "train"):
                shutil.rmtree(folder / "outputs" / stage, ignore_errors=True)
            entry = measured("train", [*settings, f"runtime.workers={workers}"], folder)
            runs.setdefault(f"{workers} workers", []).append(entry["seconds"])
    found["saelink train, seconds, in turn"] = runs
    _keep(f"{width:,} latents, {tokens} tokens", found)


def _keep(name: str, found: dict[str, Any]) -> None:
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    RESULT.write_text(json.dumps({**known, name: found}, indent=1) + "\n")
    print(json.dumps(found, indent=1), flush=True)


if __name__ == "__main__":
    main()
