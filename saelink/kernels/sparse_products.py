"""Products of sparse rows, latent by latent, of which only the pairs that meet are kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from saelink.kernels.compiled import compiled


@compiled(error_model="numpy")
def product_rows(
    first: int, last: int, starts: Any, rows: Any, values: Any, offsets: Any, indices: Any, others: Any, d: int,
    scale: float,
) -> tuple[Any, Any, Any]:  # pragma: no cover  # fmt: skip
    """scale * a_j' b_k over all k that meet j, for the latents j of `first` to `last`, summed in float64.

    a is given by latent: j's activations are values[starts[j] : starts[j + 1]], on these rows. b is given by row:
    `offsets`, `indices`, `others` (its values), with `d` latents. Gives how many pairs each j has, then for all
    of them k, ascending in each j, and the product, float32.
    """
    counts = np.zeros(last - first, np.int64)
    total = np.zeros(d)
    met = np.zeros(d, np.bool_)
    found, products, n = np.empty(4096, np.int32), np.empty(4096, np.float32), 0
    for j in range(first, last):
        for place in range(starts[j], starts[j + 1]):
            value = np.float64(values[place])
            for pair in range(offsets[rows[place]], offsets[rows[place] + 1]):
                k = indices[pair]
                total[k] += value * others[pair]
                met[k] = True
        if n + d > len(found):
            larger, bigger = np.empty(2 * (n + d), np.int32), np.empty(2 * (n + d), np.float32)
            larger[:n], bigger[:n] = found[:n], products[:n]
            found, products = larger, bigger
        before = n
        for k in range(d):
            if met[k]:
                found[n], products[n] = k, total[k] * scale
                n += 1
                total[k] = 0.0
                met[k] = False
        counts[j - first] = n - before
    return counts, found[:n].copy(), products[:n].copy()


@compiled(error_model="numpy")
def add_rows(
    first: int, last: int, offsets_a: Any, indices_a: Any, values_a: Any, share_a: float, offsets_b: Any,
    indices_b: Any, values_b: Any, share_b: float,
) -> tuple[Any, Any, Any]:  # pragma: no cover  # fmt: skip
    """share_a * A + share_b * B for rows `first` to `last` of two sparse matrices, in the form of `product_rows`."""
    most = offsets_a[last] - offsets_a[first] + offsets_b[last] - offsets_b[first]
    counts, found, sums, n = np.zeros(last - first, np.int64), np.empty(most, np.int32), np.empty(most, np.float32), 0
    for j in range(first, last):
        before = n
        a, b = offsets_a[j], offsets_b[j]
        while a < offsets_a[j + 1] or b < offsets_b[j + 1]:
            k_a = indices_a[a] if a < offsets_a[j + 1] else np.int32(2**31 - 1)
            k_b = indices_b[b] if b < offsets_b[j + 1] else np.int32(2**31 - 1)
            total = 0.0
            if k_a <= k_b:
                total += share_a * values_a[a]
                a += 1
            if k_b <= k_a:
                total += share_b * values_b[b]
                b += 1
            found[n], sums[n] = min(k_a, k_b), total
            n += 1
        counts[j - first] = n - before
    return counts, found[:n].copy(), sums[:n].copy()
