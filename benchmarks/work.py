"""What every benchmark shares: the machine, its floors, made-up latents, and timing in turn."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from saelink.latents.rows import Rows
from saelink.latents.split import Split, Tokens


@dataclass
class Row:
    """One line of the table: a ratio against its target, and the medians it was made from."""

    work: str
    target: str
    measured: str
    met: bool | None
    """None where there is no target."""
    detail: dict[str, Any]

    def print(self) -> Row:
        mark = {True: "met   ", False: "MISSED", None: "      "}[self.met]
        print(f"{mark} {self.work}: {self.measured}" + (f" (target {self.target})" if self.target else ""))
        for name, value in self.detail.items():
            print(
                f"         {name}: {value:.4g}" if isinstance(value, float) else f"         {name}: {value}", flush=True
            )
        return self


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turn(sides: dict[str, Callable[[], object]], repeats: int = 5, warm: int = 1) -> dict[str, float]:
    """Median seconds of every side, run one after the other `repeats` times after `warm` rounds that don't count."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warm + repeats):
        for name, work in sides.items():
            spent = seconds(work)
            if turn >= warm:
                times[name].append(spent)
    return {name: statistics.median(spent) for name, spent in times.items()}


def gemm_floor(n: int, k: int, m: int, dtype: torch.dtype = torch.float32) -> float:
    """Median seconds of one matrix product [n, k] x [k, m] into a buffer."""
    a, b = torch.rand(n, k).to(dtype), torch.rand(k, m).to(dtype)
    out = torch.empty(n, m, dtype=dtype)
    return in_turn({"gemm": lambda: torch.mm(a, b, out=out)})["gemm"]


def machine() -> dict[str, Any]:
    """Cores, processor, measured rates and versions."""
    n = 3072
    copied = torch.empty(2**27, dtype=torch.uint8)
    source = torch.ones_like(copied)
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    named = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    rates = {
        f"{name} GEMM, GFLOP/s": round(2 * n**3 / gemm_floor(n, n, n, dtype) / 1e9)
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float64", torch.float64))
    }
    copy = in_turn({"copy": lambda: copied.copy_(source)})["copy"]
    versions = {}
    for name in (
        "saelink",
        "torch",
        "numpy",
        "numba",
        "scikit-learn",
        "celer",
        "skglm",
        "sae-lens",
        "transformer-lens",
    ):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "processor": named[0] if named else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **rates,
        "memory copy, GB/s": round(2 * 2**27 / copy / 1e9, 1),
        "versions": versions,
    }


def latents(n: int, d: int, active: int, seed: int) -> Rows:
    """n tokens with exactly `active` of d latents, rates falling like 1/sqrt(rank), values uniform in .2..1.2."""
    generator = torch.Generator().manual_seed(seed)
    weights = (torch.arange(d) + 20.0).rsqrt()
    ids = torch.cat(
        [
            # Gumbel's way to draw without replacement in proportion to the weights
            (weights.log() - torch.rand(len(part), d, generator=generator).log().neg().log())
            .topk(active, dim=1)
            .indices.sort(1)
            .values
            for part in torch.arange(n).split(2048)
        ]
    )
    values = torch.rand(n * active, generator=generator) + 0.2
    return Rows(torch.arange(n + 1) * active, ids.view(-1), values, d)


def planted(n: int, d: int, active: int, seed: int, edges: int = 8) -> tuple[Rows, Rows]:
    """Latents and targets: sparse positive combinations of `edges` sources with noise, the `active` largest kept."""
    source = latents(n, d, active, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    W = torch.zeros(d, d)
    W.scatter_(0, torch.randint(0, d, (edges, d), generator=generator), torch.rand(edges, d, generator=generator))
    from saelink.latents.rows import sparse_linear
    from saelink.saes.sae import active_entries

    parts = []
    for chosen in torch.arange(n).split(4096):
        z = sparse_linear(source.select(chosen), W) + 0.1 * torch.randn(len(chosen), d, generator=generator)
        parts.append(Rows.from_pairs(*active_entries(z, active, None), n=len(chosen), d=d))
    return source, Rows.stack(parts)


def split_of(source: Rows, target: Rows) -> Split:
    n = len(source)
    tokens = Tokens(source, target, torch.arange(n), torch.ones(n, dtype=torch.bool))
    split = Split([lambda: tokens])
    assert len(split) == n
    return split


def as_json(rows: list[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]
