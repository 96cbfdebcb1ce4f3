"""Products of sparse rows, source latent by source latent: a row of the result stays in the cache while it fills."""

from __future__ import annotations

from typing import Any

import numpy as np

from saelink.kernels.compiled import compiled


@compiled()
def add_products(
    first: int, last: int, by_column: Any, row_of: Any, x_offsets: Any, x_indices: Any, x_values: Any,
    column_offsets: Any, y_offsets: Any, y_indices: Any, y_values: Any, xx: Any, xy: Any,
) -> None:  # pragma: no cover  # fmt: skip
    """Add x_j' x_k for k >= j and x_j' y_i to row j of xx and xy, for the sources j of `first` to `last`.

    `by_column` are the pairs of x sorted by latent (`column_offsets` where each begins), `row_of` the row of a pair.
    """
    for j in range(first, last):
        to_x, to_y = xx[j], xy[j]
        for place in range(column_offsets[j], column_offsets[j + 1]):
            pair = by_column[place]
            row, value = row_of[pair], np.float64(x_values[pair])
            for other in range(pair, x_offsets[row + 1]):
                to_x[x_indices[other]] += value * x_values[other]
            for other in range(y_offsets[row], y_offsets[row + 1]):
                to_y[y_indices[other]] += value * y_values[other]
