"""Speed on a CUDA GPU, as `python -m benchmarks` on the CPU: every row with its target, benchmarks/gpu.json at the end.

    python -m benchmarks.gpu     # under 9 minutes on one GPU with 80 GB

Written and checked on small sizes without a GPU (`--rehearse`); see the README for whether it has been run on one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.frontier import TOLERANCE, grid
from benchmarks.steps import ACTIVE, connector_of
from benchmarks.work import Row, as_json, latents, machine, planted, split_of
from saelink.fit.lasso.batched import BatchedLasso
from saelink.fit.lasso.dense import DenseLasso
from saelink.fit.products.dense import gram_of
from saelink.fit.products.paired import paired_gram
from saelink.fit.solvers.adam import AdamSolver, Steps
from saelink.fit.solvers.base import Problem
from saelink.latents.rows import Rows
from saelink.saes.sae import SAE

ALPHA = 1e-3


class Sizes:
    """What is measured, and a small copy for a rehearsal."""

    def __init__(self, device: str, small: bool):
        self.device = device
        self.d = 256 if small else 32_768
        self.batch = 64 if small else 8192
        self.d_in, self.d_sae, self.tokens = (32, 128, 512) if small else (2048, 32_768, 65_536)
        self.lasso = 64 if small else 4096
        self.wide = 64 if small else 32_768


def timed(work: Callable[[], object], device: str, repeats: int = 7) -> float:
    """Median seconds, the device waited for; two calls before that don't count."""
    spent = []
    for turn in range(repeats + 2):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        if turn >= 2:
            spent.append(time.perf_counter() - started)
    return sorted(spent)[len(spent) // 2]


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def linear_step(size: Sizes) -> Iterator[Row]:
    """One step of solver=adam on the whole matrix against the same step dense in bfloat16 with fused Adam."""
    d, batch, device = size.d, size.batch, size.device
    active = min(ACTIVE, d // 8)
    source, target = latents(batch, d, active, 1), latents(batch, d, active, 2)
    connector = connector_of("linear", d, d).to(device)
    split = split_of(source, target)
    problem = Problem(split, split, ALPHA, 1.0, 0, device, lambda: None)  # type: ignore[arg-type, return-value]
    workers = [Steps(AdamSolver(AdamSolver.Settings(name="adam", batch_tokens=batch)), connector, problem)]
    on_device = [side.to(device) for side in (source, target)]
    step = [0]

    def ours() -> None:
        workers[0].run(on_device[0], on_device[1], [1e-3], step[0])
        step[0] += 1

    own = timed(ours, device)
    workers.clear()  # its moments' room is wanted below
    x, y = (Rows.dense(side).to(device, torch.bfloat16) for side in (source, target))
    W = torch.zeros(d, d, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([W], lr=1e-3, fused=True)

    def dense() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            error = x @ W - y
        (error.float().square().mean() + ALPHA * W.abs().sum() / d).backward()
        optimizer.step()

    theirs = timed(dense, device, 3)
    yield Row(
        f"linear Adam step, {d:,} x {d:,}, {active} active, batch {batch:,}: dense bfloat16 with fused Adam / saelink",
        "at least 10x",
        f"{theirs / own:.1f}x",
        theirs / own >= 10,
        {"saelink, seconds": own, "dense, seconds": theirs},
    )


def encode(size: Sizes) -> Iterator[Row]:
    """Encode with the acts' copy to the GPU, against the product alone."""
    device, n = size.device, size.tokens
    W = torch.randn(size.d_in, size.d_sae) / size.d_in**0.5
    zero = torch.zeros
    sae = SAE(W, zero(size.d_sae), W.T.contiguous(), zero(size.d_in), 32, None).to(device, torch.bfloat16)
    acts = torch.randn(n, size.d_in).to(torch.bfloat16)
    step = min(8192, n)
    room = torch.empty(step, size.d_sae, device=device, dtype=torch.bfloat16)
    on_device = acts[:step].to(device)

    def ours() -> None:
        for first in range(0, n, step):
            sae.encode_sparse(acts[first : first + step].to(device, non_blocking=True), room)

    def product() -> None:
        for _ in range(0, n, step):
            torch.mm(on_device, sae.W_enc, out=room)

    own, floor = timed(ours, device), timed(product, device)
    yield Row(
        f"encode, {size.d_in:,} -> {size.d_sae:,}, TopK 32, bfloat16, {n:,} tokens: of its product's rate",
        "at least 70%",
        f"{floor / own:.0%}",
        floor / own >= 0.7,
        {"saelink, seconds": own, "product, seconds": floor},
    )


def frontier(size: Sizes) -> Iterator[Row]:
    """The exact path by dense proximal steps."""
    d, device = size.lasso, size.device
    products = gram_of(split_of(*planted(4096 if d < 1000 else 200_000, d, min(ACTIVE, d // 8), 1))).to(device)
    lasso = DenseLasso(products.xx, products.xy, products.yy)
    worst, spent = 0.0, 0.0
    for alpha in grid(products):
        found: list[Any] = []
        spent += timed_once(
            lambda alpha=alpha, found=found: found.append(lasso.solve(alpha / 2, TOLERANCE, 20_000)), device
        )
        worst = max(worst, (found[0][1] / (products.yy / 2).clamp(min=1e-300)).max().item())
    yield Row(
        f"exact frontier of 20 alphas, {d:,} x {d:,}, from the products on",
        "",
        f"{spent:.1f} s, worst gap {worst:.1g}",
        None,
        {"seconds": spent},
    )


def wide(size: Sizes) -> Iterator[Row]:
    """Products and fit of a wide dictionary, in sparse form."""
    d, n, device = size.wide, 2048 if size.wide < 1000 else 200_000, size.device
    source, target = planted(n, d, min(ACTIVE, d // 8), 1)
    tokens = split_of(source, target).whole()
    made: list[Any] = []
    products_seconds = timed_once(lambda: made.append(paired_gram(tokens, device)), device)
    products = made[0].explain(torch.arange(0, d, max(d // 4096, 1)))
    lasso = BatchedLasso(products, device=device)
    lam = 0.01 * products.yx.values.max().item()
    spent = timed_once(lambda: made.append(lasso.solve(lam, TOLERANCE, 20_000)), device)
    worst = (made[1].gaps / (products.yy / 2).clamp(min=1e-300)).max().item()
    yield Row(
        f"sparse products of {d:,} x {d:,}, {n:,} tokens, and the lasso of {len(products.yy):,} targets on them",
        "",
        f"{products_seconds:.1f} s and {spent:.1f} s, worst gap {worst:.1g}",
        None,
        {"products, seconds": products_seconds, "fit, seconds": spent, "edges": len(made[1].source)},
    )


def timed_once(work: Callable[[], object], device: str) -> float:
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def main() -> None:
    rehearse = "--rehearse" in sys.argv[1:]
    if not torch.cuda.is_available() and not rehearse:
        sys.exit(
            "benchmarks.gpu: torch finds no CUDA device; --rehearse runs small sizes on the CPU and writes nothing"
        )
    size = Sizes("cpu" if rehearse else "cuda", rehearse)
    with torch.inference_mode(False):
        found = [row.print() for part in (linear_step, encode, frontier, wide) for row in part(size)]
    if not rehearse:
        about = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, **machine()}
        result = {"machine": about, "rows": as_json(found)}
        Path(__file__).with_name("gpu.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
