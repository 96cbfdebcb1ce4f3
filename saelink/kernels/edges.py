"""What each edge of a connector does on the tokens where its source is active."""

from __future__ import annotations

from typing import Any

import numpy as np

from saelink.kernels.compiled import compiled


@compiled()
def remove_each(
    first: int, last: int, begins: Any, rows: Any, values: Any, z: Any, y: Any, relu: bool, offsets: Any, source: Any,
    weight: Any, change: Any, both: Any, added: Any,
) -> None:  # pragma: no cover  # fmt: skip
    """For columns `first` to `last` of z and y [columns, n], predictions before their relu and true values.

    Source j is active on rows[begins[j] : begins[j + 1]] with those values. Column c's edges are source, weight
    [offsets[c] : offsets[c + 1]]; for each of them `change` takes how much the column's sum of squared errors grows
    without it, `both` the number of tokens with source and target active, `added` the sum of |weight x| over those.
    """
    for c in range(first, last):
        for edge in range(offsets[c], offsets[c + 1]):
            w, total, fired, sum_added = np.float64(weight[edge]), 0.0, 0, 0.0
            for at in range(begins[source[edge]], begins[source[edge] + 1]):
                t = rows[at]
                term = w * values[at]
                with_it, without = np.float64(z[c, t]), np.float64(z[c, t]) - term
                if relu:
                    with_it, without = max(with_it, 0.0), max(without, 0.0)
                true = np.float64(y[c, t])
                total += (without - true) ** 2 - (with_it - true) ** 2
                if true > 0:
                    fired += 1
                    sum_added += abs(term)
            change[edge], both[edge], added[edge] = total, fired, sum_added


@compiled()
def companions(
    begins: Any, rows: Any, offsets: Any, indices: Any, leader: int, fired: Any, counts: Any
) -> None:  # pragma: no cover
    """counts [2, d]: on how many tokens of `leader` each latent is active, where the target is silent and fires."""
    for at in range(begins[leader], begins[leader + 1]):
        t = rows[at]
        side = 1 if fired[t] else 0
        for pair in range(offsets[t], offsets[t + 1]):
            counts[side, indices[pair]] += 1
