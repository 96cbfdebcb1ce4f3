"""One training step of ours against the same step written densely with autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.work import Row, in_turn, latents, split_of
from saelink.connectors import CONNECTORS
from saelink.connectors.base import Connector
from saelink.fit.solvers.adam import AdamSolver, Columns, Products, Steps, rounded
from saelink.fit.solvers.base import Problem
from saelink.latents.rows import Rows

ACTIVE = 40
BATCH = 2048
ALPHA = 1e-3


def connector_of(name: str, d_source: int, d_target: int, **settings: Any) -> Connector:
    kind = CONNECTORS[name]
    connector = kind(kind.Settings(name=name, init="random", **settings), d_source, torch.arange(d_target))
    connector.initialise(torch.Generator().manual_seed(0))
    return connector


def ours(
    connector: Connector, source: Rows, target: Rows, steps: int, products: Products = Products.float32
) -> Callable[[], object]:
    """`steps` steps of solver=adam, from where the ones before ended."""

    split = split_of(source, target)
    problem = Problem(split, split, ALPHA, 1.0, 0, "cpu", lambda: None)  # type: ignore[arg-type, return-value]
    kind = Columns if Columns.fits(connector, "cpu") else Steps
    worker = kind(AdamSolver(AdamSolver.Settings(name="adam", batch_tokens=BATCH)), connector, problem)
    done = [0]

    def work() -> None:
        with rounded(products):
            worker.run(source, target, [1e-3] * steps, done[0])
        done[0] += steps

    return work


def dense(connector: Connector, source: Rows, target: Rows, fused: bool) -> Callable[[], object]:
    """One dense autograd step on dense tensors that lie ready: predict, squared error + alpha L1, backward, Adam."""
    weights = [parameter.detach().clone().requires_grad_() for parameter in connector.parameters()]
    optimizer = torch.optim.Adam(weights, lr=1e-3, fused=fused)
    chosen = torch.arange(BATCH)
    x, y = source.select(chosen).dense(), target.select(chosen).dense()
    scales = [scale for _, scale in connector.penalised()]

    def work() -> None:
        optimizer.zero_grad()
        out = x @ weights[0]
        if len(weights) == 2:
            out = torch.relu(out) @ weights[1]
        loss = (out - y).pow(2).mean()
        loss = loss + ALPHA * sum(s * weight.abs().sum() for s, weight in zip(scales, weights, strict=True))
        loss.backward()
        optimizer.step()

    return work


def compare(name: str, d: int, steps: int, repeats: int, **settings: Any) -> dict[str, float]:
    source, target = latents(BATCH * steps, d, ACTIVE, 1), latents(BATCH * steps, d, ACTIVE, 2)
    connector = connector_of(name, d, d, **settings)
    sides = {
        "saelink, seconds a step": ours(connector, source, target, steps),
        "dense, Adam as it comes": dense(connector, source, target, False),
        "dense, fused Adam": dense(connector, source, target, True),
    }
    spent = in_turn(sides, repeats)
    first = next(iter(sides))
    return spent | {first: spent[first] / steps}


def rows() -> Iterator[Row]:
    for d, steps, repeats, targets in ((4096, 16, 3, (25, 15)), (16384, 4, 1, (40, None))):
        spent = compare("linear", d, steps, repeats)
        mine, original, fused = spent.values()
        work = f"linear Adam step, {d:,} latents, {ACTIVE} active, batch {BATCH:,}"
        yield Row(
            f"{work}: dense autograd as the original wrote it / saelink",
            f"at least {targets[0]}x",
            f"{original / mine:.0f}x",
            original / mine >= targets[0],
            spent,
        )
        if targets[1]:
            yield Row(
                f"{work}: dense with fused Adam, same precision / saelink",
                f"at least {targets[1]}x",
                f"{fused / mine:.0f}x",
                fused / mine >= targets[1],
                {},
            )
    yield from mlp()


def mlp(d: int = 4096, hidden: int = 512, steps: int = 4) -> Iterator[Row]:
    source, target = latents(BATCH * steps, d, ACTIVE, 1), latents(BATCH * steps, d, ACTIVE, 2)
    connector = connector_of("mlp", d, d, d_hidden=hidden)

    def dense_rounded() -> None:
        with rounded(Products.bfloat16):
            dense_fused()

    dense_fused = dense(connector, source, target, True)
    spent = in_turn(
        {
            "saelink, float32": ours(connector, source, target, steps),
            "saelink, bfloat16 products": ours(connector, source, target, steps, Products.bfloat16),
            "dense, Adam as it comes": dense(connector, source, target, False),
            "dense, fused Adam": dense_fused,
            "dense, fused Adam, bfloat16 products": dense_rounded,
        },
        5,
    )
    exact, fast, original, fused, fused_fast = spent.values()
    exact, fast = exact / steps, fast / steps
    work = f"mlp step, {d:,} latents, {hidden} hidden"
    for what, ratio, least in (
        ("dense autograd as the original wrote it / saelink", original / exact, 3.0),
        ("dense autograd as the original wrote it / saelink, bfloat16 products", original / fast, 5.0),
        ("dense with fused Adam / saelink, both float32", fused / exact, 2.5),
        ("dense with fused Adam / saelink, both bfloat16 products", fused_fast / fast, 2.5),
    ):
        yield Row(f"{work}: {what}", f"at least {least:g}x", f"{ratio:.1f}x", ratio >= least, {})
    seconds = {"saelink, float32": exact, "saelink, bfloat16 products": fast}
    yield Row(f"{work}, seconds a step", "", f"{exact:.3f}, {fast:.3f} in bfloat16", None, spent | seconds)
