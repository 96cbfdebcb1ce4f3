"""Workers that are jobs of SLURM, by submitit, or processes that stand in for them."""

from __future__ import annotations

import shutil
import sys
import time
import uuid
from collections import deque
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from saelink.config.process import EngineKind, RuntimeConfig
from saelink.engine.work import Call, Done, do_tasks, needs_extra
from saelink.errors import SaelinkError, reason_of

CHUNKS = 4
"""Jobs of SLURM for each of the workers: each does its share of the tasks, one after the other."""

SUBMITIT = (
    "timeout_min",
    "mem_gb",
    "cpus_per_task",
    "gpus_per_node",
    "name",
    "stderr_to_stdout",
    "nodes",
    "tasks_per_node",
)
"""What submitit calls by the same name for every cluster; all others are SLURM's."""


class SlurmJobs:
    """Jobs of SLURM, each with a share of the tasks; or the same as processes here, without SLURM."""

    def __init__(self, runtime: RuntimeConfig, workers: int, threads: int, what: str):
        self._workers, self._local = workers, runtime.engine is EngineKind.slurm_local
        self._folder = Path(runtime.outputs).resolve() / "engine" / f"{what}-{uuid.uuid4().hex[:12]}"
        settings = {"timeout_min": 240, "cpus_per_task": threads, "name": "saelink", "stderr_to_stdout": True}
        settings |= runtime.slurm
        if not self._local:
            settings.setdefault("array_parallelism", workers)
        self._settings = {name if name in SUBMITIT else f"slurm_{name}": value for name, value in settings.items()}

    def stream(self, call: Call, tasks: list[tuple[int, Any]]) -> Generator[Done, None, None]:
        with needs_extra("slurm", "submitit"):
            import submitit
        chunks = deque(
            tasks[first :: self._workers * CHUNKS] for first in range(min(self._workers * CHUNKS, len(tasks)))
        )
        try:
            executor = submitit.AutoExecutor(self._folder, cluster="local" if self._local else "slurm")
            executor.update_parameters(**self._settings)
        except (RuntimeError, NameError, TypeError) as error:
            raise SaelinkError(f"runtime.engine=slurm, runtime.slurm: {reason_of(error)}") from None
        running: list[tuple[Any, list[tuple[int, Any]]]] = []
        try:
            while chunks or running:
                if not self._local and chunks:  # all at once: SLURM itself has them wait
                    jobs = executor.map_array(do_tasks, [call] * len(chunks), list(chunks))
                    running, chunks = list(zip(jobs, chunks, strict=True)), deque()
                while chunks and len(running) < self._workers:
                    running.append((executor.submit(do_tasks, call, chunks[0]), chunks.popleft()))
                over = [entry for entry in running if entry[0].done()]
                running = [entry for entry in running if entry not in over]
                for job, chunk in over:
                    yield from self._outcome(job, chunk)
                if not over:
                    time.sleep(0.2)
        finally:
            for job, _ in running:
                job.cancel(check=False)
            if sys.exc_info()[0] is None:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _outcome(self, job: Any, chunk: list[tuple[int, Any]]) -> Iterator[Done]:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            yield from job.result()
        except FailedJobError as error:
            raise SaelinkError(
                f"runtime.engine=slurm: a job could not begin ({reason_of(error)}); see {self._folder}"
            ) from None
        except UncompletedJobError as error:
            reason = reason_of(error, 120)
            yield from (Done(number, lost=reason) for number, _ in chunk)
