"""What a target SAE gives when its inputs were changed: the change row by row, and its sums source by source."""

from __future__ import annotations

from typing import Any

import numpy as np

from saelink.kernels.compiled import compiled

LOOKED_AT = 64
"""Entries that are compared together: most hold nothing that reaches the threshold."""


@compiled(error_model="numpy")
def changed_rows(
    first: int, last: int, tokens: Any, offsets: Any, indices: Any, values: Any, pre: Any, floor: Any, column_floor: Any
) -> tuple[Any, Any, Any]:  # pragma: no cover
    """Before minus after, where that is not 0, for the rows `first` to `last` of pre [rows, d].

    Row r was changed at token t = tokens[r]; before are the sparse values offsets[t] to offsets[t + 1], ascending;
    after is pre where that is at least floor[r] and above column_floor [d], else 0. Gives how many entries each row
    has, then of all their places, ascending in each row, and the changes.
    """
    d = pre.shape[1]
    counts = np.zeros(last - first, np.int64)
    found, changes, n = np.empty(4096, np.int32), np.empty(4096, np.float32), 0
    ids, after = np.empty(d, np.int32), np.empty(d, np.float32)
    for r in range(first, last):
        entry, least, size = pre[r], floor[r], 0
        for start in range(0, d, LOOKED_AT):
            end, hits = min(start + LOOKED_AT, d), 0
            for i in range(start, end):
                hits += entry[i] >= least
            if hits:
                for i in range(start, end):
                    if entry[i] >= least and entry[i] > column_floor[i]:
                        ids[size], after[size] = i, entry[i]
                        size += 1
        low, high = offsets[tokens[r]], offsets[tokens[r] + 1]
        found, changes = _room(found, changes, n, size + high - low)
        before_row = n
        n = _minus(indices, values, low, high, ids, after, 0, size, found, changes, n)
        counts[r - first] = n - before_row
    return counts, found[:n].copy(), changes[:n].copy()


@compiled(error_model="numpy")
def subtracted_rows(
    first: int, last: int, tokens: Any, offsets: Any, indices: Any, values: Any, ends: Any, ids: Any, after: Any
) -> tuple[Any, Any, Any]:  # pragma: no cover
    """The same as `changed_rows`, after being given sparsely: row r is ids and after [ends[r] : ends[r + 1]]."""
    counts = np.zeros(last - first, np.int64)
    found, changes, n = np.empty(4096, np.int32), np.empty(4096, np.float32), 0
    for r in range(first, last):
        low, high = offsets[tokens[r]], offsets[tokens[r] + 1]
        found, changes = _room(found, changes, n, ends[r + 1] - ends[r] + high - low)
        before_row = n
        n = _minus(indices, values, low, high, ids, after, ends[r], ends[r + 1], found, changes, n)
        counts[r - first] = n - before_row
    return counts, found[:n].copy(), changes[:n].copy()


@compiled(error_model="numpy")
def _room(found: Any, changes: Any, n: int, more: int) -> tuple[Any, Any]:  # pragma: no cover
    """The same arrays, or larger ones where `more` entries don't fit behind the first n."""
    if n + more <= len(found):
        return found, changes
    larger, bigger = np.empty(2 * (n + more), np.int32), np.empty(2 * (n + more), np.float32)
    larger[:n], bigger[:n] = found[:n], changes[:n]
    return larger, bigger


@compiled(error_model="numpy")
def _minus(
    indices: Any, values: Any, a: int, a_end: int, ids: Any, after: Any, b: int, b_end: int, found: Any, changes: Any,
    n: int,
) -> int:  # pragma: no cover  # fmt: skip
    """Append one sparse row minus another where they differ; how many entries there are then."""
    last = np.int64(2**62)
    while a < a_end or b < b_end:
        i = np.int64(indices[a]) if a < a_end else last
        j = np.int64(ids[b]) if b < b_end else last
        change = np.float32(0.0)
        if i <= j:
            change += values[a]
            a += 1
        if j <= i:
            change -= after[b]
            b += 1
        if change != 0:
            found[n], changes[n] = min(i, j), change
            n += 1
    return n


@compiled(error_model="numpy")
def sums_by_source(
    first: int, last: int, cuts: Any, fold: Any, offsets: Any, indices: Any, values: Any, d: int, folds: int
) -> tuple[Any, Any, Any, Any, Any]:  # pragma: no cover
    """Of the sources `first` to `last` the changes summed by target, and by target and group of documents.

    Source s was ablated in the rows cuts[s] to cuts[s + 1], each of a group fold[r] < folds; row r's changes are
    `indices` and `values` [offsets[r] : offsets[r + 1]]. Gives how many targets each source changed; of these the
    target, ascending in each source, the mean over the source's rows, and a set of groups, bit f for group f; and for
    each group in the set, in that order, the sum. They are summed in float64.
    """
    counts = np.zeros(last - first, np.int64)
    total = np.zeros((d, folds))
    met = np.zeros(d, np.bool_)
    size = 4096
    target, mean, groups = np.empty(size, np.int32), np.empty(size, np.float32), np.empty(size, np.int16)
    sums = np.empty(size * folds, np.float32)
    n = m = 0
    for s in range(first, last):
        for r in range(cuts[s], cuts[s + 1]):
            f = fold[r]
            for pair in range(offsets[r], offsets[r + 1]):
                total[indices[pair], f] += values[pair]
                met[indices[pair]] = True
        changed = met.sum()
        if n + changed > size:
            more = 2 * (n + changed)
            target, mean, groups, sums = _larger(target, mean, groups, sums, n, m, more, folds)
            size = more
        rows = max(cuts[s + 1] - cuts[s], 1)
        for i in range(d):
            if not met[i]:
                continue
            everything, those = 0.0, 0
            for f in range(folds):
                everything += total[i, f]
                if total[i, f] != 0:
                    those |= 1 << f
                    sums[m] = total[i, f]
                    m += 1
                total[i, f] = 0.0
            target[n], mean[n], groups[n] = i, everything / rows, those
            n += 1
            met[i] = False
        counts[s - first] = changed
    return counts, target[:n].copy(), mean[:n].copy(), groups[:n].copy(), sums[:m].copy()


@compiled(error_model="numpy")
def _larger(
    target: Any, mean: Any, groups: Any, sums: Any, n: int, m: int, size: int, folds: int
) -> tuple[Any, Any, Any, Any]:  # pragma: no cover
    new_target, new_mean, new_groups = np.empty(size, np.int32), np.empty(size, np.float32), np.empty(size, np.int16)
    new_sums = np.empty(size * folds, np.float32)
    new_target[:n], new_mean[:n], new_groups[:n], new_sums[:m] = target[:n], mean[:n], groups[:n], sums[:m]
    return new_target, new_mean, new_groups, new_sums


@compiled(error_model="numpy")
def sums_by_group(groups: Any, sums: Any, out: Any) -> None:  # pragma: no cover
    """Fill out [pairs, folds] with the sums that `sums_by_source` gave, 0 where a group is not in a pair's set."""
    at = 0
    for pair in range(len(groups)):
        for f in range(out.shape[1]):
            there = (groups[pair] >> f) & 1
            out[pair, f] = sums[at] if there else 0.0
            at += there
