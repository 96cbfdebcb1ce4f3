"""Triton kernels for CUDA, each beside the torch operations it stands for.

They are used where tensors lie on a GPU and Triton is installed (it comes with torch's CUDA builds).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch


def batches(rows: torch.Tensor, step: int, device: str) -> Iterator[torch.Tensor]:
    """rows [n, ...] in order, `step` at a time, on the device; on a GPU the next batch is copied while one is used."""
    pieces = rows.split(step)
    if device == "cpu" or not torch.cuda.is_available():
        yield from (piece.to(device) for piece in pieces)
        return
    copies = torch.cuda.Stream()

    def send(piece: torch.Tensor) -> torch.Tensor:
        with torch.cuda.stream(copies):
            return piece.pin_memory().to(device, non_blocking=True)

    ahead = send(pieces[0])
    for following in [*pieces[1:], None]:
        torch.cuda.current_stream().wait_stream(copies)
        now = ahead
        now.record_stream(torch.cuda.current_stream())
        if following is not None:
            ahead = send(following)
        yield now


def usable(tensor: torch.Tensor) -> bool:
    """Whether the kernels can work on this tensor."""
    return tensor.is_cuda and _installed()


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _kernels() -> tuple[Any, Any]:
    import triton  # pyright: ignore[reportMissingImports]
    import triton.language as tl  # pyright: ignore[reportMissingImports]

    @triton.jit
    def gather_sum(offsets, indices, values, table, out, columns, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # pragma: no cover
        row = tl.program_id(0)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < columns
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for pair in range(tl.load(offsets + row), tl.load(offsets + row + 1)):
            line = tl.load(indices + pair).to(tl.int64) * columns
            total += tl.load(values + pair) * tl.load(table + line + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + row.to(tl.int64) * columns + column, total, mask=inside)

    @triton.jit
    def adam(w, g, m, v, n, rate, root, threshold, l1, PROXIMAL: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # pragma: no cover
        place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = place < n
        weight = tl.load(w + place, mask=inside, other=0.0)
        gradient = tl.load(g + place, mask=inside, other=0.0)
        if not PROXIMAL:
            gradient += l1 * (tl.where(weight > 0, 1.0, 0.0) - tl.where(weight < 0, 1.0, 0.0))
        first = 0.9 * tl.load(m + place, mask=inside, other=0.0) + 0.1 * gradient
        second = 0.999 * tl.load(v + place, mask=inside, other=0.0) + 0.001 * gradient * gradient
        inverse = 1.0 / (tl.sqrt(second) * root + 1e-8)
        weight -= rate * first * inverse
        if PROXIMAL:
            limit = threshold * inverse
            weight -= tl.minimum(tl.maximum(weight, -limit), limit)
        tl.store(w + place, weight, mask=inside)
        tl.store(m + place, first, mask=inside)
        tl.store(v + place, second, mask=inside)

    return gather_sum, adam


def gather_sum(offsets: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Row r of the result is the sum of values[p] * table[indices[p]] over p = offsets[r] .. offsets[r + 1].

    offsets [n + 1] and indices int64, values float32, table [d, m] contiguous, result [n, m] in float32: torch's
    embedding_bag(indices, table, offsets, mode="sum", per_sample_weights=values, include_last_offset=True).
    """
    n, columns = len(offsets) - 1, table.shape[1]
    out = torch.empty(n, columns, device=table.device)
    block = 256
    kernel, _ = _kernels()
    kernel[(n, -(-columns // block))](offsets, indices, values, table.contiguous(), out, columns, BLOCK=block)
    return out


def adam_step(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    *,
    step: int,
    lr: float,
    l1: float,
    proximal: bool,
) -> None:
    """Adam's step number `step` (from 1) in place, with l1 |w| by its subgradient or by the proximal operator.

    What torch.optim.Adam does with the gradient plus l1 sign(w), or with the gradient and then solvers.proximal's
    shrink, in one pass over the memory. All tensors float32 and contiguous.
    """
    n, block = weight.numel(), 1024
    _, kernel = _kernels()
    rate, root = lr / (1 - 0.9**step), (1 - 0.999**step) ** -0.5
    kernel[(-(-n // block),)](
        weight, gradient, first, second, n, rate, root, lr * l1, l1, PROXIMAL=proximal, BLOCK=block
    )
