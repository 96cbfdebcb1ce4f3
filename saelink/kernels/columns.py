"""Adam for a map z = x W (+ b), target column by target column.

The columns share their tokens and nothing else, so a tile of columns can take many steps while its weights and
moments stay in the cache; what would be gigabytes of memory traffic a second is read once per chunk of steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from saelink.kernels.compiled import compiled

TILE = 96
"""Columns of a tile, as measured: fewer cost more loops, with more the weights of 4,096 sources leave the cache."""


@compiled()
def transpose(
    step: int, batch: int, offsets: Any, indices: Any, values: Any, starts: Any, by_column_row: Any, by_column: Any
) -> None:  # pragma: no cover
    """Pairs of the step's `batch` rows by column: column j's are those from starts[step, j] to starts[step, j + 1].

    `by_column_row` takes each pair's row within the batch, ascending in a column, `by_column` its value.
    """
    low = offsets[step * batch]
    counts = np.zeros(starts.shape[1], np.int64)
    for pair in range(low, offsets[(step + 1) * batch]):
        counts[indices[pair] + 1] += 1
    counts[0] = low
    for column in range(len(counts) - 1):
        counts[column + 1] += counts[column]
        starts[step, column] = counts[column]
    starts[step, len(counts) - 1] = counts[len(counts) - 1]
    for row in range(batch):
        for pair in range(offsets[step * batch + row], offsets[step * batch + row + 1]):
            place = counts[indices[pair]]
            counts[indices[pair]] = place + 1
            by_column_row[place] = row
            by_column[place] = values[pair]


@compiled(error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"}, boundscheck=False)
def steps(
    tile: int, batch: int, x_offsets: Any, x_indices: Any, x_values: Any, x_starts: Any, x_rows: Any, x_by_column: Any,
    y_starts: Any, y_rows: Any, y_by_column: Any, W: Any, m: Any, v: Any, b: Any, b_m: Any, b_v: Any, rates: Any,
    done: int, scale: float, l1: float, proximal: bool, relu: bool, matching: bool, has_bias: bool, errors: Any,
) -> None:  # pragma: no cover  # fmt: skip
    """Adam's steps on tile `tile`: W, m, v [tiles, p, TILE], b, b_m, b_v [tiles, TILE], rates [steps].

    `x_offsets` cut the rows of all batches; `x_starts` [steps, p + 1] cut `x_rows` (row within the batch) and
    `x_by_column` (value), a batch's pairs by column, and `y_starts` [steps, tiles * TILE + 1] likewise the targets'.
    The gradient is `scale` times the sum of x_nj (zhat_ni - y_ni), the penalty l1 |w|; `done` steps were made
    before. `errors` [steps] takes the sum of squared errors at each step's start.
    """
    p = W.shape[1]
    w, first_moment, second_moment = W[tile], m[tile], v[tile]
    bias, bias_m, bias_v = b[tile], b_m[tile], b_v[tile]
    z = np.empty((batch, TILE), np.float32)
    g = np.empty(TILE, np.float32)
    one, zero, eps = np.float32(1), np.float32(0), np.float32(1e-8)
    beta1, beta2, left1, left2 = np.float32(0.9), np.float32(0.999), np.float32(0.1), np.float32(0.001)
    factor, penalty = np.float32(scale), np.float32(l1)
    for step in range(len(rates)):
        # The prediction: every row sums the weights of its active latents, eight at a time.
        for row in range(batch):
            for k in range(TILE):
                z[row, k] = bias[k]
            place, end = x_offsets[step * batch + row], x_offsets[step * batch + row + 1]
            while place + 8 <= end:
                j0, j1, j2, j3 = x_indices[place], x_indices[place + 1], x_indices[place + 2], x_indices[place + 3]
                j4, j5, j6, j7 = x_indices[place + 4], x_indices[place + 5], x_indices[place + 6], x_indices[place + 7]
                x0, x1, x2, x3 = x_values[place], x_values[place + 1], x_values[place + 2], x_values[place + 3]
                x4, x5, x6, x7 = x_values[place + 4], x_values[place + 5], x_values[place + 6], x_values[place + 7]
                for k in range(TILE):
                    z[row, k] += ((x0 * w[j0, k] + x1 * w[j1, k]) + (x2 * w[j2, k] + x3 * w[j3, k])) + (
                        (x4 * w[j4, k] + x5 * w[j5, k]) + (x6 * w[j6, k] + x7 * w[j7, k])
                    )
                place += 8
            while place < end:
                j0, x0 = x_indices[place], x_values[place]
                for k in range(TILE):
                    z[row, k] += x0 * w[j0, k]
                place += 1
        total = 0.0
        for row in range(batch):
            part = zero
            for k in range(TILE):
                if relu and z[row, k] < zero:
                    z[row, k] = zero
                part += z[row, k] * z[row, k]
            total += part
        # Minus the targets; under relu and the squared error a silent output gets no gradient.
        for k in range(TILE):
            for place in range(y_starts[step, tile * TILE + k], y_starts[step, tile * TILE + k + 1]):
                row, y = y_rows[place], y_by_column[place]
                predicted = z[row, k]
                total += (predicted - y) * (predicted - y) - predicted * predicted
                if not relu or matching or predicted > zero:
                    z[row, k] = predicted - y
        errors[step] = total
        count = done + step + 1
        correction1, correction2 = 1 - 0.9**count, 1 - 0.999**count
        rate, root = np.float32(rates[step] / correction1), np.float32(1 / np.sqrt(correction2))
        shrinkage = np.float32(rates[step]) * penalty
        for j in range(p):
            for k in range(TILE):
                g[k] = zero
            place, end = x_starts[step, j], x_starts[step, j + 1]
            while place + 8 <= end:
                r0, r1, r2, r3 = x_rows[place], x_rows[place + 1], x_rows[place + 2], x_rows[place + 3]
                r4, r5, r6, r7 = x_rows[place + 4], x_rows[place + 5], x_rows[place + 6], x_rows[place + 7]
                x0, x1 = x_by_column[place], x_by_column[place + 1]
                x2, x3 = x_by_column[place + 2], x_by_column[place + 3]
                x4, x5 = x_by_column[place + 4], x_by_column[place + 5]
                x6, x7 = x_by_column[place + 6], x_by_column[place + 7]
                for k in range(TILE):
                    g[k] += ((x0 * z[r0, k] + x1 * z[r1, k]) + (x2 * z[r2, k] + x3 * z[r3, k])) + (
                        (x4 * z[r4, k] + x5 * z[r5, k]) + (x6 * z[r6, k] + x7 * z[r7, k])
                    )
                place += 8
            while place + 4 <= end:
                r0, r1, r2, r3 = x_rows[place], x_rows[place + 1], x_rows[place + 2], x_rows[place + 3]
                x0, x1 = x_by_column[place], x_by_column[place + 1]
                x2, x3 = x_by_column[place + 2], x_by_column[place + 3]
                for k in range(TILE):
                    g[k] += (x0 * z[r0, k] + x1 * z[r1, k]) + (x2 * z[r2, k] + x3 * z[r3, k])
                place += 4
            while place < end:
                r0, x0 = x_rows[place], x_by_column[place]
                for k in range(TILE):
                    g[k] += x0 * z[r0, k]
                place += 1
            if proximal:
                for k in range(TILE):
                    gradient = factor * g[k]
                    first_moment[j, k] = beta1 * first_moment[j, k] + left1 * gradient
                    second_moment[j, k] = beta2 * second_moment[j, k] + left2 * gradient * gradient
                    inverse = one / (np.sqrt(second_moment[j, k]) * root + eps)
                    moved = w[j, k] - rate * first_moment[j, k] * inverse
                    threshold = shrinkage * inverse
                    w[j, k] = moved - min(max(moved, -threshold), threshold)
            else:
                for k in range(TILE):
                    sign = (one if w[j, k] > zero else zero) - (one if w[j, k] < zero else zero)
                    gradient = factor * g[k] + penalty * sign
                    first_moment[j, k] = beta1 * first_moment[j, k] + left1 * gradient
                    second_moment[j, k] = beta2 * second_moment[j, k] + left2 * gradient * gradient
                    w[j, k] -= rate * first_moment[j, k] / (np.sqrt(second_moment[j, k]) * root + eps)
        if has_bias:
            for k in range(TILE):
                g[k] = zero
            for row in range(batch):
                for k in range(TILE):
                    g[k] += z[row, k]
            for k in range(TILE):
                gradient = factor * g[k]
                bias_m[k] = beta1 * bias_m[k] + left1 * gradient
                bias_v[k] = beta2 * bias_v[k] + left2 * gradient * gradient
                bias[k] -= rate * bias_m[k] / (np.sqrt(bias_v[k]) * root + eps)
