"""How fast this machine is, in a second: what every estimate of time is divided by."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from saelink.store.files import temporary_of, write_durably


class Rates(NamedTuple):
    """What this process reaches now, with the threads it has and whatever else the machine does."""

    gemm: float
    """float32 operations a second in a matrix product, two for each multiply and add."""
    pairs: float
    """Products of two active latents a second, added to dense sums by the loops of fit/products."""
    disk: float
    """Bytes a second written durably to the store's disk."""


SECONDS = 0.4
"""Each rate is measured for about so long."""

REFERENCE = Rates(gemm=189e9, pairs=160e6, disk=1e9)
"""Those of the machine whose stages are in benchmarks/run.json: two quiet cores."""


def measured_rates(folder: Path) -> Rates:
    """The three rates, in under two seconds where the loops are compiled already; of the disk that `folder` is on."""
    return Rates(_gemm(), _pairs(), _disk(folder))


def _rate(work: Callable[[], float]) -> float:
    """Units a second of work that returns how many it did; the best of what fits into SECONDS, the first left out."""
    work()
    best, until = 0.0, time.perf_counter() + SECONDS
    while True:
        started = time.perf_counter()
        units = work()
        now = time.perf_counter()
        best = max(best, units / max(now - started, 1e-9))
        if now >= until:
            return best


def _gemm() -> float:
    """At the shape of an SAE's encoding."""
    x, w, out = torch.ones(1024, 576), torch.ones(576, 2304), torch.empty(1024, 2304)

    def product() -> float:
        torch.mm(x, w, out=out)
        return 2.0 * 1024 * 576 * 2304

    return _rate(product)


def _pairs() -> float:
    """Sums of a few thousand tokens, 32 of 2,304 latents active at random on each side."""
    from saelink.fit.products.dense import sums_of
    from saelink.latents.rows import Rows
    from saelink.latents.split import Tokens

    n, d, k = 2048, 1024, 32
    generator = torch.Generator().manual_seed(0)

    def side() -> Rows:
        latents = torch.rand(n, d, generator=generator).topk(k, dim=1).indices.sort(dim=1).values
        row = torch.repeat_interleave(torch.arange(n), k)
        return Rows.from_pairs(row, latents.flatten(), torch.ones(n * k), n=n, d=d)

    tokens = Tokens(side(), side(), torch.arange(n), torch.ones(n, dtype=torch.bool))

    def sums() -> float:
        sums_of([tokens], d, d)
        return pairs_of(n, k, k)

    return _rate(sums)


def pairs_of(n_tokens: float, l0_source: float, l0_target: float) -> float:
    """Products that X'X (its upper half) and X'Y take."""
    return n_tokens * l0_source * (l0_source / 2 + l0_target)


def _disk(folder: Path) -> float:
    """A file of 32 MB, written and synced; it goes at once."""
    while not folder.exists():  # a plan makes no folder
        folder = folder.absolute().parent
    data = os.urandom(2**20) * 32
    path = temporary_of(folder / "rate")
    try:
        started = time.perf_counter()
        write_durably(path, data)
        return len(data) / max(time.perf_counter() - started, 1e-9)
    finally:
        path.unlink(missing_ok=True)
