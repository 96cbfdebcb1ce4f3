"""Tasks on many workers, by engines that others keep: joblib's loky on one machine, Ray on many, SLURM by submitit.

A `Work` says what a worker opens once and does for each task. `Engine.run` gives tasks to workers, a few at a time, and
each result to its caller as it comes. A worker that dies is replaced and its task done again; an error in a task, or a
signal, cancels what is left. Which worker does what changes no byte, as long as tasks are cut the same way however many
workers there are.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from saelink.config.process import EngineKind, RuntimeConfig
from saelink.config.schema import Config
from saelink.config.size import gigabytes
from saelink.engine.processes import Processes
from saelink.engine.ray_cluster import RayCluster, ray_address
from saelink.engine.slurm import SlurmJobs
from saelink.engine.work import Backend, Call, Done, RemoteError, Result, State, Task, Work, raised
from saelink.errors import SaelinkError
from saelink.progress import Observer
from saelink.runtime import memory_available

RETRIES = 3
"""So often a task whose worker died is done again."""


class Engine:
    """The workers that the settings ask for; `observer` is told when one was lost."""

    def __init__(self, runtime: RuntimeConfig, observer: Observer):
        self.runtime, self.observer = runtime, observer

    @property
    def several(self) -> bool:
        """Whether tasks go to other processes."""
        return self.runtime.workers > 1

    def several_on(self, device: str) -> bool:
        """Whether tasks that compute on `device` do: workers of one machine would share its GPU."""
        return self.several and (device == "cpu" or self.runtime.engine in (EngineKind.ray, EngineKind.slurm))

    @property
    def threads(self) -> int:
        """CPU threads of each worker: so many that together they are no more than there are cores."""
        if self.runtime.threads is not None:
            return self.runtime.threads
        if self.runtime.engine is EngineKind.ray and ray_address(self.runtime) is not None:
            return 1
        if self.runtime.engine is EngineKind.slurm:
            return int(self.runtime.slurm.get("cpus_per_task", 1))
        return max(cores() // self.runtime.workers, 1)

    def of_worker(self, cfg: Config) -> Config:
        """The configuration as a worker has it: alone, in the same folders, with its share of the threads."""
        outputs = str(Path(cfg.runtime.outputs).resolve())
        alone = RuntimeConfig(
            device=cfg.runtime.device, outputs=outputs, threads=self.threads, memory=cfg.runtime.memory,
            forward_tokens=cfg.runtime.forward_tokens,
        )  # fmt: skip
        return replace(cfg, runtime=alone)

    def run(
        self,
        what: str,
        work: Work[State, Task, Result],
        tasks: Sequence[Task],
        done: Callable[[Task, Result], object],
        state: State | None = None,
    ) -> None:
        """Do all tasks; `done` is called here with each and its result, as they come.

        With one worker it is done here, with `state` if what `work` opens is open already. `what` names it in lines.
        Raises what the first failing task raised, and SaelinkError when workers die again and again.
        """
        if not self.several or len(tasks) < 2:
            opened = work.open() if state is None and tasks else state
            for task in tasks:
                done(task, work.run(opened, task))  # pyright: ignore[reportArgumentType]  # None where that is its state
            return
        missing, losses = dict(enumerate(tasks)), Counter[int]()
        backend = self._backend(what, min(self._workers(what, work), len(tasks)))
        call = Call(uuid.uuid4().hex, work, self.threads, str(Path.cwd()))
        while missing:
            with closing(backend.stream(call, list(missing.items()))) as stream:
                lost = self._take(what, stream, missing, losses, done)
            if lost:
                some = "a worker was lost with its task" if lost == 1 else f"workers were lost with {lost} tasks"
                self.observer.say(f"{what}: {some}; what they did not finish is done again")

    def _take(
        self,
        what: str,
        stream: Iterator[Done],
        missing: dict[int, Any],
        losses: Counter[int],
        done: Callable[[Any, Any], object],
    ) -> int:
        """Results as they come; how many tasks were lost with their workers."""
        lost = 0
        for item in stream:
            if item.lost:
                lost += 1
                losses[item.number] += 1
                if losses[item.number] > RETRIES:
                    raise SaelinkError(
                        f"{what}: {RETRIES + 1} workers ended in the middle of the same work ({item.lost}); if "
                        "it was for want of memory, use fewer (runtime.workers)"
                    )
            elif item.error is not None:
                raise raised(item.error) from (RemoteError(item.error.trace) if item.error.kind == "bug" else None)
            else:
                done(missing.pop(item.number), item.value)
        return lost

    def _workers(self, what: str, work: Work[Any, Any, Any]) -> int:
        """As many as are asked for, or as many as there is memory for on this machine."""
        asked, each = self.runtime.workers, work.memory()
        free = memory_available()
        if self.runtime.engine is not EngineKind.processes or not each or free is None or asked * each <= free:
            return asked
        fit = max(free // each, 1)
        self.observer.say(
            f"{what}: {fit} of {asked} workers, each needs {gigabytes(each)} and {gigabytes(free)} are free"
        )
        return fit

    def _backend(self, what: str, workers: int) -> Backend:
        kind = self.runtime.engine
        if kind is EngineKind.ray:
            return RayCluster(self.runtime, workers, self.threads)
        if kind is EngineKind.processes:
            return Processes(workers, self.threads)
        return SlurmJobs(self.runtime, workers, self.threads, what)


def engine_of(cfg: Config, observer: Observer) -> Engine:
    """The engine of a job."""
    return Engine(cfg.runtime, observer)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
