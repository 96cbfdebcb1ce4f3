"""The active entries of dense rows: the k largest of each, or all above a threshold."""

from __future__ import annotations

from typing import Any

import numpy as np

from saelink.kernels.compiled import compiled

LANES = 4
"""Groups that a row is dealt into, for each entry that is kept."""


@compiled(error_model="numpy", fastmath={"nnan", "nsz"})
def top_k(first: int, last: int, values: Any, k: int, ids: Any, kept: Any, counts: Any) -> None:  # pragma: no cover
    """For the rows `first` to `last` of values [n, d]: the ids, ascending, and values of the k largest above 0.

    Ties at the k-th value go to the lower ids. `ids` and `kept` are [n, k], `counts` [n] says how many were found.

    A row is dealt into groups, like cards: the k-th largest of the groups' maxima bounds the k-th largest entry from
    below, so only groups whose maximum reaches it are looked at again, and few candidates are left.
    """
    d = values.shape[1]
    lanes = min(LANES * k, d)
    rounds = (d + lanes - 1) // lanes
    maxima, ordered = np.empty(lanes, np.float32), np.empty(lanes, np.float32)
    candidates = np.empty(d, np.int64)
    found, ranked = np.empty(d, np.float32), np.empty(d, np.float32)
    for row in range(first, last):
        for lane in range(lanes):
            maxima[lane] = values[row, lane]
        for turn in range(1, rounds):
            start = turn * lanes
            for lane in range(min(lanes, d - start)):
                value = values[row, start + lane]
                maxima[lane] = value if value > maxima[lane] else maxima[lane]
        bound = np.float32(0.0)
        if k < lanes:
            for lane in range(lanes):
                ordered[lane] = maxima[lane]
            bound = max(bound, _kth_largest(ordered, lanes, k))
        size = 0
        for lane in range(lanes):
            if maxima[lane] >= bound and maxima[lane] > 0.0:
                for place in range(lane, d, lanes):
                    value = values[row, place]
                    if value >= bound and value > 0.0:
                        at = size  # in ascending order
                        while at > 0 and candidates[at - 1] > place:
                            candidates[at] = candidates[at - 1]
                            found[at] = found[at - 1]
                            at -= 1
                        candidates[at] = place
                        found[at] = value
                        size += 1
        if size > k:
            for place in range(size):
                ranked[place] = found[place]
            bound = _kth_largest(ranked, size, k)
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


@compiled()
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


@compiled()
def _kth_largest(entries: Any, n: int, k: int) -> float:  # pragma: no cover
    """Quickselect among the first n entries, which are reordered."""
    low, high, want = 0, n - 1, k - 1
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
