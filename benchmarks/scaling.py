"""Weak scaling: twice the text with two workers against one worker's, one thread each, on the real model."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks.work import Row
from saelink import api
from saelink.data import tokens
from saelink.link import link_of
from saelink.store import Store

TOKENS = 163_840  # five shards and what validation and test add
REPEATS = 3


def rows() -> Iterator[Row]:
    yield _row("cache", "cache", [])
    yield _row("encode straight from the model", "encode", ["stream=true"])


def _row(what: str, command: str, words: list[str]) -> Row:
    one, two = [], []
    for _ in range(REPEATS):
        one.append(_seconds(command, words, 1))
        two.append(_seconds(command, words, 2))
    share = median(one) / median(two)
    return Row(
        f"weak scaling: {what}, {TOKENS:,} tokens a worker, 1 worker's time / 2 workers' on 2 cores",
        "at least 80%",
        f"{share:.0%}",
        share >= 0.8,
        {"seconds, 1 worker": median(one), "seconds, 2 workers": median(two)},
    )


def _seconds(command: str, words: list[str], workers: int) -> float:
    """From an empty store but for the text, the model and its start-up, which every process pays alike."""
    with tempfile.TemporaryDirectory() as name:
        settings = [f"data.max_tokens={workers * TOKENS}", f"runtime.outputs={name}/outputs", *words]
        job = api.configure(*settings)
        store = Store(job.runtime.outputs, say=lambda line: None)
        link_of(job, store)
        tokens(job, store)
        started = time.perf_counter()
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "saelink", command, *settings, f"runtime.worker={n}", "runtime.threads=1"],
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=Path(name),
                env=_one_thread(),
            )
            for n in range(workers)
        ]  # fmt: skip
        for process in running:
            _, error = process.communicate()
            if process.returncode:
                raise RuntimeError(error.decode())
        return time.perf_counter() - started


def _one_thread() -> dict[str, str]:
    root = str(Path(__file__).parent.parent)
    return {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONPATH": root}
