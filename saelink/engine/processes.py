"""Workers that are processes of this machine, by joblib's loky."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Generator, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import closing
from typing import Any, cast

from saelink.engine.work import OPENED, Call, Done, do_tasks
from saelink.errors import reason_of

LEAK = "_MAX_MEMORY_LEAK_SIZE"
"""What loky calls the growth that it takes for a leak."""

LEAVE_SECONDS = 60
"""A process that waits for work for so long ends."""


def _begin(parent: int) -> None:
    """At the start of a process of this machine: it ends with its parent, which alone heeds Ctrl-C."""
    from joblib.externals.loky import process_executor

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # loky takes for a leak what grows by 300 MB, such as pages of a file that is mapped, and starts anew.
    setattr(process_executor, LEAK, sys.maxsize)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
            OPENED.drop_when_idle()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Processes:
    """Processes of this machine, by joblib's loky."""

    def __init__(self, workers: int, threads: int):
        self._workers, self._threads = workers, threads

    def stream(self, call: Call, tasks: list[tuple[int, Any]]) -> Generator[Done, None, None]:
        from joblib import Parallel, delayed, parallel_config

        begun: set[int] = set()

        def calls() -> Iterator[Any]:
            for number, task in tasks:
                begun.add(number)
                yield delayed(do_tasks)(call, [(number, task)])

        settings = {"initializer": _begin, "initargs": (os.getpid(),), "idle_worker_timeout": LEAVE_SECONDS}
        with parallel_config("loky", inner_max_num_threads=self._threads, **settings), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that results were left, which is said where they are
            # No more than each worker's task at a time, so that what was begun is what a dead worker may have had.
            parallel = Parallel(
                n_jobs=max(self._workers, 2), batch_size=1,  # pyright: ignore[reportArgumentType]  # its docstring has numbers too
 pre_dispatch="n_jobs", return_as="generator_unordered",
                max_nbytes=None,
            )  # fmt: skip
            with closing(cast("Generator[list[Done], None, None]", parallel(calls()))) as results:
                try:
                    for found in results:
                        for item in found:
                            begun.discard(item.number)
                            yield item
                except BrokenExecutor as error:
                    reason = reason_of(error, 120)
                    yield from (Done(number, lost=reason) for number in sorted(begun))
