"""Latents' activations sorted by latent, and looked up around places of the text."""

from __future__ import annotations

from typing import Any

from saelink.kernels.compiled import compiled


@compiled()
def by_latent(
    offsets: Any, indices: Any, values: Any, context: int, drop: int, begins: Any, rows: Any, by_value: Any, sums: Any
) -> int:  # pragma: no cover
    """Rows and values of every latent's activations, ascending, latent j's from begins[j] to begins[j + 1].

    Positions before `drop` are left out; `sums` takes each latent's sum. Gives the number of activations.
    """
    for row in range(len(offsets) - 1):
        if row % context >= drop:
            for pair in range(offsets[row], offsets[row + 1]):
                begins[indices[pair] + 1] += 1
                sums[indices[pair]] += values[pair]
    for j in range(len(sums)):
        begins[j + 1] += begins[j]
    after = begins[:-1].copy()
    for row in range(len(offsets) - 1):
        if row % context >= drop:
            for pair in range(offsets[row], offsets[row + 1]):
                place = after[indices[pair]]
                rows[place], by_value[place] = row, values[pair]
                after[indices[pair]] = place + 1
    return begins[-1]


@compiled()
def look(
    first: int, last: int, offsets: Any, indices: Any, values: Any, rows: Any, latents: Any, context: int, window: int,
    out: Any,
) -> None:  # pragma: no cover  # fmt: skip
    """out[r, k] = the value of latents[r] on row rows[r] - window + k, where that is in the same sequence."""
    for r in range(first, last):
        begin = rows[r] // context * context
        for k in range(out.shape[1]):
            row = rows[r] - window + k
            if row < begin or row >= begin + context:
                continue
            low, high = offsets[row], offsets[row + 1]
            while low < high:
                middle = (low + high) // 2
                if indices[middle] < latents[r]:
                    low = middle + 1
                else:
                    high = middle
            if low < offsets[row + 1] and indices[low] == latents[r]:
                out[r, k] = values[low]
