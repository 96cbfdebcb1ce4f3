"""The lasso of one target on products of which only the pairs that meet are kept.

What a target costs follows the sources that it meets. It is solved on the sources whose product with it passes the
penalty, down a path of penalties as `lasso.descend` does; then the gradient over all sources says which others have to
join, until the duality gap over all sources is small enough.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from saelink.kernels.compiled import compiled
from saelink.kernels.lasso import KNOT_SLACK, _solve, descend

RIDGE = 1e-10
"""Added to the diagonal where a support is refitted, times its mean: latents that always fire together."""

ROUNDS = 60
"""Times that sources may join."""


@compiled(error_model="numpy")
def _gather(
    offsets: Any, indices: Any, values: Any, x: Any, centred: bool, chosen: Any, place: Any
) -> Any:  # pragma: no cover
    """[s, s] float32 G on the sources `chosen`; place[j] is where j stands among them, or -1."""
    s = len(chosen)
    G = np.zeros((s, s), np.float32)
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
def _gradient(
    offsets: Any, indices: Any, values: Any, x: Any, y: float, centred: bool, c_indices: Any, c_values: Any,
    chosen: Any, w: Any, q: Any,
) -> None:  # pragma: no cover  # fmt: skip
    """q = c - Gw over all sources, where w are the weights of `chosen`."""
    q[:] = 0.0
    for pair in range(len(c_indices)):
        q[c_indices[pair]] = c_values[pair]
    shift = y
    for i in range(len(chosen)):
        if w[i] != 0.0:
            for pair in range(offsets[chosen[i]], offsets[chosen[i] + 1]):
                q[indices[pair]] -= w[i] * values[pair]
            shift -= w[i] * x[chosen[i]]
    if centred:  # c - xy less (G - xx')w
        for j in range(len(q)):
            q[j] -= x[j] * shift


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
    size = 0
    for j in range(p):
        if (q[j] if positive else abs(q[j])) > lam:
            size += 1
    chosen = np.empty(size, np.int64)
    size = 0
    for j in range(p):
        if (q[j] if positive else abs(q[j])) > lam:
            chosen[size] = j
            place[j] = size
            size += 1
    w, gap, swept = np.zeros(size), _gap(np.empty(0), yy, lam, np.empty(0), np.empty(0), q, positive), 0
    if size == 0 or gap <= allowed:
        place[chosen] = -1
        return nobody, np.empty(0), max(gap, 0.0), yy
    c = q[chosen].copy()
    part = np.empty((64, 64), np.float32)
    aim, slack, error = tolerance, KNOT_SLACK, yy
    for attempt in range(ROUNDS):
        G = _gather(offsets, indices, values, x, centred, chosen, place)
        if attempt == 0:
            level, gaps, sweeps = np.full(1, np.inf), np.zeros(1), np.zeros(1, np.int64)
            out = np.zeros((1, size))
            start, there = np.zeros((1, size)), c.copy().reshape(1, size)
            before, before_q = start.copy(), there.copy()
            descend(
                0, 1, G, G, c.reshape(1, size), np.full(1, yy), lam, aim, max_sweeps, positive, level, start, there,
                before, before_q, out, gaps, sweeps,
            )  # fmt: skip
            w = out[0].copy()
            swept += sweeps[0]
        else:
            inner = q[chosen].copy()
            part, used, _ = _solve(
                G, G, c, yy, lam, lam, w, inner, slack, aim, max(max_sweeps - swept, 1), positive, part
            )
            swept += used
        _gradient(offsets, indices, values, x, y, centred, c_indices, c_values, chosen, w, q)
        gap = _gap(c, yy, lam, w, q[chosen], q, positive)
        error = yy - np.dot(w, c) - np.dot(w, q[chosen])  # yy - 2 w'c + w'Gw
        if gap <= allowed or swept >= max_sweeps:
            break
        joining = 0
        for j in range(p):
            if place[j] < 0 and (q[j] if positive else abs(q[j])) > lam:
                joining += 1
        if joining == 0:  # the sources are all there; what is left is how far they were solved
            aim, slack = aim / 8, slack / 8
            if slack < 1e-14:
                break
            continue
        more, w_more, c_more = np.empty(size + joining, np.int64), np.zeros(size + joining), np.zeros(size + joining)
        more[:size], w_more[:size], c_more[:size] = chosen, w, c
        for j in range(p):
            if place[j] < 0 and (q[j] if positive else abs(q[j])) > lam:
                more[size] = j
                place[j] = size
                if centred:
                    c_more[size] = -x[j] * y
                size += 1
        first_new = len(chosen)
        for pair in range(len(c_indices)):
            at = place[c_indices[pair]]
            if at >= first_new:
                c_more[at] += c_values[pair]
        chosen, w, c = more, w_more, c_more
    place[chosen] = -1
    kept = 0
    for i in range(size):
        kept += w[i] != 0.0
    ids, weights, kept = np.empty(kept, np.int64), np.empty(kept), 0
    for i in range(size):
        if w[i] != 0.0:
            ids[kept], weights[kept] = chosen[i], w[i]
            kept += 1
    order = np.argsort(ids)
    return ids[order], weights[order], max(gap, 0.0), error


@compiled(error_model="numpy")
def refit_target(
    offsets: Any, indices: Any, values: Any, x: Any, c_indices: Any, c_values: Any, yy: float, y: float,
    centred: bool, chosen: Any, place: Any,
) -> tuple[Any, float]:  # pragma: no cover  # fmt: skip
    """Least squares on the sources `chosen`: their weights and the squared error. Arguments as in `solve_target`."""
    s = len(chosen)
    for i in range(s):
        place[chosen[i]] = i
    G = _gather(offsets, indices, values, x, centred, chosen, place).astype(np.float64)
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
