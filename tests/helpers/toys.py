"""Works for the tests of the engine: workers import them by name."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from saelink.engine.work import Work
from saelink.errors import SaelinkError
from saelink.fit.lasso.blocks import TargetsBlock, TargetsWork
from saelink.fit.products.matrix import SparseGram
from saelink.store.draft import Part


@dataclass(frozen=True)
class Toy(Work[int, int, tuple[int, int, int]]):
    """Doubles a number; says in which process, and on how many threads."""

    folder: str = ""
    """Where tasks that are begun leave a file."""
    dies: tuple[int, ...] = ()
    """Tasks that kill their worker,"""
    times: int = 1
    """so often."""
    bad: int = -1
    broken: int = -1
    slow: float = 0.0

    def open(self) -> int:
        return 2

    def run(self, state: int, task: int) -> tuple[int, int, int]:
        if self.folder:
            with (Path(self.folder) / str(task)).open("a") as begun:
                begun.write("x")
        time.sleep(self.slow)
        if task in self.dies and len((Path(self.folder) / str(task)).read_text()) <= self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        if task == self.bad:
            raise SaelinkError(f"task={task}: is none; give another")
        if task == self.broken:
            raise KeyError(task)
        return state * task, os.getpid(), torch.get_num_threads()


@dataclass(frozen=True)
class DyingTargets(TargetsWork):
    """Solves targets, but the first worker that comes to the second block dies."""

    def run(self, state: SparseGram, task: TargetsBlock) -> Part:
        flag = Path(self.draft.folder) / "died"
        if task.first and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(state, task)


@dataclass(frozen=True)
class FailingTargets(TargetsWork):
    """Solves targets below the 20th, and refuses the others."""

    def run(self, state: SparseGram, task: TargetsBlock) -> Part:
        if task.first > 20:
            raise SaelinkError(f"targets from {task.first}: can't be solved; give others")
        return super().run(state, task)
