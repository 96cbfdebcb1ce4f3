"""Weak scaling: twice the text with two workers against one worker's, one thread each, on the real model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks.work import Row
from saelink.activations.tokens import TokensStage
from saelink.api import configure
from saelink.latents.link import link_of
from saelink.store.store import Store

TOKENS = 98_304
"""A worker's: two shards and a half of training text, and what validation and test add."""

REPEATS = 2


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        for workers in (1, 2):  # text and model are there before any clock runs
            job = configure(*_settings(name, workers))
            store = Store(job.runtime.outputs)
            link_of(job, store)
            TokensStage(job, store).pull()
        yield _row(name, "cache", "cache", [])
        yield _row(name, "encode straight from the model", "encode", ["stream=true"])


def _settings(folder: str, workers: int) -> list[str]:
    return [f"data.max_tokens={workers * TOKENS}", f"runtime.outputs={folder}/outputs"]


def _row(folder: str, what: str, command: str, words: list[str]) -> Row:
    one, two = [], []
    for _ in range(REPEATS):
        one.append(_seconds(folder, command, words, 1))
        two.append(_seconds(folder, command, words, 2))
    share = median(one) / median(two)
    return Row(
        f"weak scaling: {what}, {TOKENS:,} tokens a worker, 1 worker's time / 2 workers' on 2 cores",
        "at least 80%",
        f"{share:.0%}",
        share >= 0.8,
        {"seconds, 1 worker": median(one), "seconds, 2 workers": median(two)},
    )


def _seconds(folder: str, command: str, words: list[str], workers: int) -> float:
    """Wall time of all workers, their start-up included, which every process pays alike."""
    for stage in ("cache", "encode"):
        shutil.rmtree(Path(folder) / "outputs" / stage, ignore_errors=True)
    root = str(Path(__file__).parent.parent)
    started = time.perf_counter()
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "saelink", command, *_settings(folder, workers), *words, "runtime.shared=true",
             "runtime.threads=1"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
        )
        for _ in range(workers)
    ]  # fmt: skip
    for process in running:
        _, error = process.communicate()
        if process.returncode:
            raise RuntimeError(error.decode())
    return time.perf_counter() - started
