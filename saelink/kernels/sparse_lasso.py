"""The lasso of one target on products of which only the pairs that meet are kept.

What a target costs follows the sources that it meets, not how many there are. It goes down a path of penalties, as
`lasso.descend` does; the sources that violate the optimality condition join, and of each that does, its products with
the others that joined are read once. The gradient is kept over all sources, so the duality gap is that of the whole
problem; it is zero, and never looked at, for sources that meet neither the target nor a source with a weight.
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
def _move(
    offsets: Any, indices: Any, values: Any, x: Any, centred: bool, j: int, change: float, q: Any, met: Any, n: int,
    meets: Any,
) -> int:  # pragma: no cover  # fmt: skip
    """The gradient after the weight of source j has changed; how many sources are met then, see `solve_target`."""
    for pair in range(offsets[j], offsets[j + 1]):
        k = indices[pair]
        if not meets[k]:
            meets[k] = True
            met[n] = k
            n += 1
        q[k] -= change * values[pair]
    if centred:
        shift = change * x[j]
        for k in range(len(q)):
            q[k] += shift * x[k]
    return n


@compiled(error_model="numpy")
def _largest(q: Any, met: Any, positive: bool) -> float:  # pragma: no cover
    """The largest gradient among the sources met, in magnitude; of `positive` weights only those above zero count."""
    largest = 0.0
    for i in range(len(met)):
        largest = max(largest, q[met[i]] if positive else abs(q[met[i]]))
    return largest


@compiled(error_model="numpy")
def _gap(c: Any, yy: float, lam: float, w: Any, chosen: Any, q: Any, largest: float) -> float:  # pragma: no cover
    """The duality gap over all sources, as `lasso.gap_of_row`, where `w` are the weights of the chosen ones."""
    wc, wq, l1 = 0.0, 0.0, 0.0
    for i in range(len(w)):
        wc += w[i] * c[chosen[i]]
        wq += w[i] * q[chosen[i]]
        l1 += abs(w[i])
    scale = min(1.0, lam / largest) if largest > 0.0 else 1.0
    rr = yy - wc - wq
    return rr / 2 + lam * l1 - (scale * (yy - wc) - scale * scale * rr / 2)


@compiled(error_model="numpy")
def _join(
    offsets: Any, indices: Any, values: Any, x: Any, centred: bool, cut: float, positive: bool, q: Any, met: Any,
    place: Any, chosen: Any, size: int, G: Any,
) -> tuple[Any, int, Any]:  # pragma: no cover  # fmt: skip
    """The sources chosen so far, with those met whose gradient is above `cut`; how many; the products among them.

    `chosen` and G have room to spare; place[j] is where j stands among the chosen, or -1.
    """
    before = size
    for i in range(len(met)):
        j = met[i]
        if place[j] < 0 and (q[j] if positive else abs(q[j])) > cut:
            if size == len(chosen):
                longer = np.empty(2 * size, np.int64)
                longer[:size] = chosen
                chosen = longer
            chosen[size] = j
            size += 1
    chosen[before:size].sort()  # in which order they were met makes no difference
    for i in range(before, size):
        place[chosen[i]] = i
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
    centred: bool, lam: float, tolerance: float, max_sweeps: int, positive: bool, c: Any, q: Any, met: Any, meets: Any,
    place: Any,
) -> tuple[Any, Any, float, float]:  # pragma: no cover  # fmt: skip
    """The sources with a weight, ascending, their weights, the duality gap over all sources, and the squared error.

    G is symmetric, row j in values[offsets[j] : offsets[j + 1]]; c is sparse too; x and y are means; `centred`
    says to solve around them (yy is the variance then).

    Scratch of p sources each, as they are here again at the end: c and q, zero; meets, false; place, -1. met [p] takes
    the sources that are met: those with a product with the target, or with a source that has a weight (all of them
    where it is centred).
    """
    p, n = len(q), 0
    if centred:  # c - xy less (G - xx')w
        for j in range(p):
            met[j], meets[j], c[j] = j, True, -x[j] * y
        n = p
    for pair in range(len(c_indices)):
        j = c_indices[pair]
        c[j] += c_values[pair]
        if not meets[j]:
            meets[j] = True
            met[n] = j
            n += 1
    for i in range(n):
        q[met[i]] = c[met[i]]
    ids, w, gap, error, n = _solve(
        offsets, indices, values, x, yy, centred, lam, tolerance, max_sweeps, positive, c, q, met, n, meets, place
    )
    for i in range(n):
        j = met[i]
        c[j], q[j], meets[j], place[j] = 0.0, 0.0, False, -1
    kept = np.flatnonzero(w)
    ids, w = ids[kept], w[kept]
    order = np.argsort(ids)
    return ids[order], w[order], max(gap, 0.0), error


@compiled(error_model="numpy")
def _solve(
    offsets: Any, indices: Any, values: Any, x: Any, yy: float, centred: bool, lam: float, tolerance: float,
    max_sweeps: int, positive: bool, c: Any, q: Any, met: Any, n: int, meets: Any, place: Any,
) -> tuple[Any, Any, float, float, int]:  # pragma: no cover  # fmt: skip
    """The sources that joined, their weights, gap and error as in `solve_target`, and how many were met."""
    allowed = tolerance * yy / 2
    top = _largest(q, met[:n], positive)
    nobody = np.empty(0, np.int64)
    gap = _gap(c, yy, lam, np.empty(0), nobody, q, top)
    if top <= lam or gap <= allowed:
        return nobody, np.empty(0), gap, yy, n
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
            chosen, size, G = _join(
                offsets, indices, values, x, centred, cut, positive, q, met[:n], place, chosen, size, G
            )
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
                gap = _gap(c, yy, lam, w[:size], mine, q, _largest(q, met[:n], positive))
                if gap <= allowed or swept >= max_sweeps or slack < 1e-13:
                    break
                if (
                    size == before and attempt > 0
                ):  # the sources are all there; what is left is how far they were solved
                    slack /= 4
            inner, then = q[mine], w[:size].copy()
            working, active = np.empty(size, np.int64), 0
            for i in range(size):
                if then[i] != 0.0 or (inner[i] if positive else abs(inner[i])) > level:
                    working[active] = i
                    active += 1
            part, used = _inner(
                G, G, c[mine], level, w, inner, slack, max(max_sweeps - swept, 1), positive, part, working[:active]
            )
            swept += used
            for i in range(size):
                if w[i] != then[i]:
                    n = _move(offsets, indices, values, x, centred, mine[i], w[i] - then[i], q, met, n, meets)
            if swept >= max_sweeps:
                break
        if last or swept >= max_sweeps:
            break
    mine = chosen[:size].copy()
    for i in range(n):
        q[met[i]] = c[met[i]]
    for i in range(size):  # the gradient anew, without what was rounded
        if w[i] != 0.0:
            n = _move(offsets, indices, values, x, centred, mine[i], w[i], q, met, n, meets)
    gap = _gap(c, yy, lam, w[:size], mine, q, _largest(q, met[:n], positive))
    error = yy - np.dot(w[:size], c[mine]) - np.dot(w[:size], q[mine])  # yy - 2 w'c + w'Gw
    return mine, w[:size].copy(), gap, error, n


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
