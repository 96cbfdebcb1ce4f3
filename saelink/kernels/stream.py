"""Latents' activations sorted by latent."""

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
