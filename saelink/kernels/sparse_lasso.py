"""The lasso of one target on products of which only the pairs that meet are kept.

What a target costs follows the sources that it meets. It goes down a path of penalties, as `lasso.descend` does; the
sources that violate the optimality condition join, and of each that does, its products with the others that joined are
read once. The gradient is kept over all sources, so the duality gap is that of the whole problem.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from saelink.kernels.compiled import compiled
from saelink.kernels.lasso import KNOT, KNOT_SLACK, _inner

RIDGE = 1e-10
"""Added to the diagonal where a support is refitted, times its mean: latents that always fire together."""

ROUNDS = 200
"""Times that sources may join at one penalty."""


@compiled(error_model="numpy")
def _gradient(
    offsets: Any, indices: Any, values: Any, x: Any, y: float, centred: bool, c_indices: Any, c_values: Any,
    chosen: Any, w: Any, q: Any,
) -> None:  # pragma: no cover  # fmt: skip
    """q = c - Gw over all sources, where w are the weights of `chosen`."""
    q[:] = 0.0
    for pair in range(len(c_indices)):
        q[c_indices[pair]] = c_values[pair]
    if centred:  # c - xy less (G - xx')w
        for j in range(len(q)):
            q[j] -= x[j] * y
    for i in range(len(chosen)):
        if w[i] != 0.0:
            _move(offsets, indices, values, x, centred, chosen[i], w[i], q)


@compiled(error_model="numpy")
def _move(
    offsets: Any, indices: Any, values: Any, x: Any, centred: bool, j: int, change: float, q: Any
) -> None:  # pragma: no cover
    """The gradient after the weight of source j has changed."""
    for pair in range(offsets[j], offsets[j + 1]):
        q[indices[pair]] -= change * values[pair]
    if centred:
        shift = change * x[j]
        for k in range(len(q)):
            q[k] += shift * x[k]


@compiled(error_model="numpy")
def _gap(c: Any, yy: float, lam: float, w: Any, q_chosen: Any, q: Any, positive: bool) -> float:  # pragma: no cover
    """The duality gap over all sources, as `lasso.gap_of_row`; c, w and q_chosen are those of the chosen sources."""
    largest = 0.0
    for j in range(len(q)):
        largest = max(largest, q[j] if positive else abs(q[j]))
    wc, wq, l1 = 0.0, 0.0, 0.0
    for i in range(len(w)):
        wc += w[i] * c[i]
        wq += w[i] * q_chosen[i]
        l1 += abs(w[i])
    scale = min(1.0, lam / largest) if largest > 0.0 else 1.0
    rr = yy - wc - wq
    return rr / 2 + lam * l1 - (scale * (yy - wc) - scale * scale * rr / 2)


@compiled(error_model="numpy")
def _join(
    offsets: Any, indices: Any, values: Any, x: Any, centred: bool, cut: float, positive: bool, q: Any, place: Any,
    chosen: Any, size: int, G: Any,
) -> tuple[Any, int, Any]:  # pragma: no cover  # fmt: skip
    """The sources chosen so far, with those whose gradient is above `cut`; how many; and the products among them.

    `chosen` and G have room to spare; place[j] is where j stands among the chosen, or -1.
    """
    before = size
    for j in range(len(q)):
        if place[j] < 0 and (q[j] if positive else abs(q[j])) > cut:
            if size == len(chosen):
                longer = np.empty(2 * size, np.int64)
                longer[:size] = chosen
                chosen = longer
            chosen[size] = j
            place[j] = size
            size += 1
    if size > len(G):
        larger = np.zeros((2 * size, 2 * size), np.float32)
        larger[:before, :before] = G[:before, :before]
        G = larger
    for i in range(before, size):
        j = chosen[i]
        for pair in range(offsets[j], offsets[j + 1]):
            at = place[indices[pair]]
            if at >= 0:
                G[i, at] = G[at, i] = values[pair]
        if centred:
            for k in range(i + 1):
                G[i, k] -= x[j] * x[chosen[k]]
                G[k, i] = G[i, k]
    return chosen, size, G


@compiled(error_model="numpy")
def solve_target(
    offsets: Any, indices: Any, values: Any, x: Any, c_indices: Any, c_values: Any, yy: float, y: float,
    centred: bool, lam: float, tolerance: float, max_sweeps: int, positive: bool, q: Any, place: Any,
) -> tuple[Any, Any, float, float]:  # pragma: no cover  # fmt: skip
    """The sources with a weight, ascending, their weights, the duality gap over all sources, and the squared error.

    G is symmetric, row j in values[offsets[j] : offsets[j + 1]]; c is sparse too; x and y are means; `centred`
    says to solve around them (yy is the variance then). Scratch: q [p] float64; place [p] int64, all -1 again after.
    """
    p = len(q)
    nobody = np.empty(0, np.int64)
    _gradient(offsets, indices, values, x, y, centred, c_indices, c_values, nobody, np.empty(0), q)
    allowed = tolerance * yy / 2
    top = 0.0
    for j in range(p):
        top = max(top, q[j] if positive else abs(q[j]))
    gap, error = _gap(np.empty(0), yy, lam, np.empty(0), np.empty(0), q, positive), yy
    if top <= lam or gap <= allowed:
        return nobody, np.empty(0), max(gap, 0.0), yy
    first = q.copy()
    chosen, size, swept = np.empty(64, np.int64), 0, 0
    G, part = np.zeros((64, 64), np.float32), np.empty((64, 64), np.float32)
    w = np.zeros(64)
    level = KNOT ** np.floor(np.log(top) / np.log(KNOT))
    while True:
        level = max(level * KNOT, lam)
        last = level == lam
        slack = KNOT_SLACK
        for attempt in range(ROUNDS):
            before, cut = size, level * (1 + (0.0 if last else slack))
            chosen, size, G = _join(offsets, indices, values, x, centred, cut, positive, q, place, chosen, size, G)
            if size > len(w):
                longer = np.zeros(2 * size)
                longer[: len(w)] = w
                w = longer
            if size == before and not last and attempt > 0:
                break
            if size == 0:
                break
            mine = chosen[:size]
            if last:
                gap = _gap(first[mine], yy, lam, w[:size], q[mine], q, positive)
                if gap <= allowed or swept >= max_sweeps or slack < 1e-13:
                    break
                if (
                    size == before and attempt > 0
                ):  # the sources are all there; what is left is how far they were solved
                    slack /= 4
            inner, then = q[mine], w[:size].copy()
            working, n = np.empty(size, np.int64), 0
            for i in range(size):
                if then[i] != 0.0 or (inner[i] if positive else abs(inner[i])) > level:
                    working[n] = i
                    n += 1
            part, used = _inner(
                G, G, first[mine], level, w, inner, slack, max(max_sweeps - swept, 1), positive, part, working[:n]
            )
            swept += used
            for i in range(size):
                if w[i] != then[i]:
                    _move(offsets, indices, values, x, centred, mine[i], w[i] - then[i], q)
            if swept >= max_sweeps:
                break
        if last or swept >= max_sweeps:
            break
    mine = chosen[:size].copy()
    _gradient(offsets, indices, values, x, y, centred, c_indices, c_values, mine, w, q)  # without what was rounded
    gap = _gap(first[mine], yy, lam, w[:size], q[mine], q, positive)
    error = yy - np.dot(w[:size], first[mine]) - np.dot(w[:size], q[mine])  # yy - 2 w'c + w'Gw
    place[mine] = -1
    kept = 0
    for i in range(size):
        kept += w[i] != 0.0
    ids, weights, kept = np.empty(kept, np.int64), np.empty(kept), 0
    for i in range(size):
        if w[i] != 0.0:
            ids[kept], weights[kept] = mine[i], w[i]
            kept += 1
    order = np.argsort(ids)
    return ids[order], weights[order], max(gap, 0.0), error


@compiled(error_model="numpy")
def _gather(
    offsets: Any, indices: Any, values: Any, x: Any, centred: bool, chosen: Any, place: Any
) -> Any:  # pragma: no cover
    """[s, s] G on the sources `chosen`; place[j] is where j stands among them, or -1."""
    s = len(chosen)
    G = np.zeros((s, s))
    for i in range(s):
        j = chosen[i]
        for pair in range(offsets[j], offsets[j + 1]):
            at = place[indices[pair]]
            if at >= 0:
                G[i, at] = values[pair]
        if centred:
            for k in range(s):
                G[i, k] -= x[j] * x[chosen[k]]
    return G


@compiled(error_model="numpy")
def refit_target(
    offsets: Any, indices: Any, values: Any, x: Any, c_indices: Any, c_values: Any, yy: float, y: float,
    centred: bool, chosen: Any, place: Any,
) -> tuple[Any, float]:  # pragma: no cover  # fmt: skip
    """Least squares on the sources `chosen`: their weights and the squared error. Arguments as in `solve_target`."""
    s = len(chosen)
    for i in range(s):
        place[chosen[i]] = i
    G = _gather(offsets, indices, values, x, centred, chosen, place)
    c = np.zeros(s)
    for pair in range(len(c_indices)):
        if place[c_indices[pair]] >= 0:
            c[place[c_indices[pair]]] = c_values[pair]
    ridge = 0.0
    for i in range(s):
        if centred:
            c[i] -= x[chosen[i]] * y
        ridge += RIDGE * G[i, i] / s
        place[chosen[i]] = -1
    for i in range(s):
        G[i, i] += ridge
    w = np.linalg.solve(G, c)
    return w, yy - np.dot(w, c)
