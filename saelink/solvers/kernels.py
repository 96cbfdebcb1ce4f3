"""The compiled loops of the exact solver."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import njit, prange


def solve_rows(G: Any, C: Any, lam: float, W: Any, tolerance: float, max_sweeps: int, threads: int) -> None:
    """The lasso of every row of C [m, p] with the shared G [p, p], float64 arrays; W [m, p] is start and result."""
    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    numba.set_num_threads(max(min(threads, most), 1))
    _solve_rows(G, C, lam, W, tolerance, max_sweeps)


@njit(parallel=True, cache=True)
def _solve_rows(G: Any, C: Any, lam: float, W: Any, tolerance: float, max_sweeps: int) -> None:  # pragma: no cover
    for row in prange(len(C)):
        _solve_row(G, C[row], lam, W[row], tolerance, max_sweeps)


@njit(cache=True)
def _solve_row(G: Any, c: Any, lam: float, w: Any, tolerance: float, max_sweeps: int) -> None:  # pragma: no cover
    """Active-set coordinate descent down a path of penalties, in place.

    From the penalty at which all weights are zero, by steps of .6, down to `lam`; each step works on the weights in
    use and those that the sequential strong rule can't rule out (R. Tibshirani et al., "Strong rules for discarding
    predictors in lasso-type problems", 2012), and takes in what violates the optimality condition until nothing does
    by more than `tolerance` of the penalty.
    """
    p = len(c)
    q = c.copy()
    used = 0
    for j in range(p):
        if w[j] != 0.0:
            used += 1
            q -= G[j] * w[j]
    level = lam
    if used == 0:
        for j in range(p):
            level = max(level, abs(q[j]))
    working = np.empty(p, np.int64)
    while True:
        before = level
        level = max(lam, level * 0.6)
        last = level == lam
        slack = tolerance if last else max(tolerance, 1e-2)
        for attempt in range(100):
            cut = level * (1.0 + slack)
            size, entering = 0, 0
            for j in range(p):
                if G[j, j] <= 0.0:
                    continue
                size_before = abs(q[j])
                if w[j] != 0.0 or size_before > (max(2 * level - before, 0.0) if attempt == 0 else cut):
                    if w[j] == 0.0 and size_before > cut:
                        entering += 1
                    working[size] = j
                    size += 1
            if size == 0 or (attempt > 0 and entering == 0):
                break
            part = np.empty((size, size))
            weights, gradient = np.empty(size), np.empty(size)
            for i in range(size):
                weights[i], gradient[i] = w[working[i]], q[working[i]]
                for k in range(size):
                    part[i, k] = G[working[i], working[k]]
            for _ in range(max_sweeps):
                for k in range(size):
                    z = gradient[k] + part[k, k] * weights[k]
                    new = 0.0
                    if z > level:
                        new = (z - level) / part[k, k]
                    elif z < -level:
                        new = (z + level) / part[k, k]
                    change = new - weights[k]
                    if change != 0.0:
                        weights[k] = new
                        for i in range(size):
                            gradient[i] -= change * part[k, i]
                worst = 0.0
                for k in range(size):
                    if weights[k] > 0.0:
                        off = abs(gradient[k] - level)
                    elif weights[k] < 0.0:
                        off = abs(gradient[k] + level)
                    else:
                        off = abs(gradient[k]) - level
                    worst = max(worst, off)
                if worst <= slack * level:
                    break
            for i in range(size):
                change = weights[i] - w[working[i]]
                if change != 0.0:
                    w[working[i]] = weights[i]
                    q -= G[working[i]] * change
        if last:
            return
