"""The active entries of dense rows: the k largest of each, or all above a threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

GROUP = 16


@njit(cache=True, nogil=True, error_model="numpy")
def top_k(first: int, last: int, values: Any, k: int, ids: Any, kept: Any, counts: Any) -> None:  # pragma: no cover
    """For the rows `first` to `last` of values [n, d]: the ids, ascending, and values of the k largest above 0.

    Ties at the k-th value go to the lower ids. `ids` and `kept` are [n, k], `counts` [n] says how many were found.

    The k-th largest of the maxima of disjoint groups bounds the k-th largest entry from below, so one pass over the
    maxima and one over the row leave few candidates.
    """
    d = values.shape[1]
    lanes = GROUP * max(1, min(d // (4 * GROUP), (4 * k + GROUP - 1) // GROUP))  # groups: entries this far apart
    maxima = np.empty(lanes, values.dtype)
    candidates = np.empty(d, np.int64)
    found = np.empty(d, values.dtype)
    for row in range(first, last):
        entry = values[row]
        bound = np.float32(0.0)
        if k <= lanes and lanes < d:
            for lane in range(lanes):
                maxima[lane] = 0.0
            full = d // lanes * lanes
            for start in range(0, full, lanes):
                for lane in range(lanes):
                    maxima[lane] = max(maxima[lane], entry[start + lane])
            for place in range(full, d):
                maxima[place - full] = max(maxima[place - full], entry[place])
            bound = _kth_largest(maxima.copy(), k)
        size = 0
        for place in range(d):
            if entry[place] >= bound and entry[place] > 0.0:
                candidates[size] = place
                found[size] = entry[place]
                size += 1
        if size > k:
            bound = _kth_largest(found[:size].copy(), k)
            above = 0
            for place in range(size):
                above += found[place] > bound
            ties = k - above
            n = 0
            for place in range(size):
                if found[place] > bound or (found[place] == bound and ties > 0):
                    ties -= found[place] == bound
                    ids[row, n] = candidates[place]
                    kept[row, n] = found[place]
                    n += 1
        else:
            for place in range(size):
                ids[row, place] = candidates[place]
                kept[row, place] = found[place]
        counts[row] = min(size, k)


@njit(cache=True, nogil=True)
def above(first: int, last: int, values: Any, least: Any, ids: Any, kept: Any, counts: Any) -> None:  # pragma: no cover
    """For the rows `first` to `last` of values [n, d]: the ids, ascending, and values of those above least [d].

    `ids` and `kept` are [n, d], of which the first counts[row] entries are filled.
    """
    for row in range(first, last):
        entry, n = values[row], 0
        for place in range(len(entry)):
            if entry[place] > least[place]:
                ids[row, n] = place
                kept[row, n] = entry[place]
                n += 1
        counts[row] = n


@njit(cache=True, nogil=True)
def _kth_largest(entries: Any, k: int) -> float:  # pragma: no cover
    """Quickselect; `entries` is reordered."""
    low, high, want = 0, len(entries) - 1, k - 1
    while low < high:
        pivot = entries[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while entries[i] > pivot:
                i += 1
            while entries[j] < pivot:
                j -= 1
            if i <= j:
                entries[i], entries[j] = entries[j], entries[i]
                i += 1
                j -= 1
        if want <= j:
            high = j
        elif want >= i:
            low = i
        else:
            break
    return entries[want]
