"""The lasso of many rows that share their Gram matrix, down a path of penalties.

    minimise over w   yy/2 - c'w + w'Gw/2 + lam |w|_1

Coordinate descent on a working set: the weights in use and what violates the optimality condition, forecast by the
sequential strong rule (R. Tibshirani et al., "Strong rules for discarding predictors in lasso-type problems", 2012).
The inner sweeps keep the change of their gradient in float32, for half the memory traffic and twice the lanes; the
weights and the gradient over all sources are float64 and follow after each round, so no rounding stays. Every few
sweeps the iterates are extrapolated (Anderson's method, as Q. Bertrand and M. Massias, "Anderson acceleration of
coordinate descent", 2021), which is what makes correlated latents at small penalties affordable.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from saelink.kernels.compiled import compiled

KNOT = 0.7
"""Between the penalty at which all weights are zero and the wanted one, the path visits the powers of this."""

KNOT_SLACK = 0.05
"""Violations of the optimality condition left at a knot, as a share of its penalty."""

MEMORY = 5
"""Sweeps between two extrapolations."""


@compiled(error_model="numpy")
def gap_of_row(c: Any, yy: float, lam: float, w: Any, q: Any, positive: bool) -> float:  # pragma: no cover
    """Duality gap at w with q = c - Gw, from the residual scaled down until it is dual feasible."""
    wc, wq, l1, largest = 0.0, 0.0, 0.0, 0.0
    for j in range(len(c)):
        largest = max(largest, q[j] if positive else abs(q[j]))
        if w[j] != 0.0:
            wc += w[j] * c[j]
            wq += w[j] * q[j]
            l1 += abs(w[j])
    scale = min(1.0, lam / largest) if largest > 0.0 else 1.0
    rr = yy - wc - wq  # squared residual: yy - 2 w'c + w'Gw
    primal = rr / 2 + lam * l1
    dual = scale * (yy - wc) - scale * scale * rr / 2
    return primal - dual


@compiled(error_model="numpy")
def descend(
    first: int, last: int, G: Any, G32: Any, C: Any, yy: Any, lam: float, tolerance: float, max_sweeps: int,
    positive: bool, level: Any, W: Any, Q: Any, W_before: Any, Q_before: Any, out: Any, gaps: Any, sweeps: Any,
) -> None:  # pragma: no cover  # fmt: skip
    """Solve rows `first` to `last` of C [m, p] at `lam` into `out`, until each gap is `tolerance` times yy/2.

    W and Q = C - WG [m, p] are where each row stands at its last knot, `level` [m] (infinite: W is zero), W_before
    and Q_before where it stood at the knot before; they go on to the last knot above `lam`, which does not depend on
    the penalties asked for. Between two penalties at which a weight appears or goes the solution is linear in the
    penalty, so each solve starts on the line through the two knots. `gaps` and `sweeps` [m] say
    how close each row came and what it took. Nothing is left of a row that max_sweeps cut short but its larger gap.
    """
    p = C.shape[1]
    part = np.empty((256, 256), np.float32)
    w, q = np.empty(p), np.empty(p)
    for row in range(first, last):
        if np.isinf(level[row]):
            top = 0.0
            for j in range(p):
                if G[j, j] > 0.0:
                    top = max(top, C[row, j] if positive else abs(C[row, j]))
            level[row] = KNOT ** np.floor(np.log(max(top, 1e-300)) / np.log(KNOT))
        count = 0
        while level[row] * KNOT > lam:
            before = level[row]
            level[row] = before * KNOT
            for j in range(p):
                now_w, now_q = W[row, j], Q[row, j]
                W[row, j] += KNOT * (now_w - W_before[row, j])
                Q[row, j] += KNOT * (now_q - Q_before[row, j])
                W_before[row, j], Q_before[row, j] = now_w, now_q
            part, used, _ = _solve(
                G, G32, C[row], yy[row], level[row], before, W[row], Q[row], KNOT_SLACK, 0.0, max_sweeps, positive, part
            )
            count += used
        ahead = (level[row] - lam) / (level[row] / KNOT - level[row]) if lam < level[row] else 0.0
        for j in range(p):
            w[j] = W[row, j] + ahead * (W[row, j] - W_before[row, j])
            q[j] = Q[row, j] + ahead * (Q[row, j] - Q_before[row, j])
        if positive:  # the line through two knots may cross zero
            for j in range(p):
                if w[j] < 0.0:
                    _subtract(q, -w[j], G[j])
                    w[j] = 0.0
        part, used, gap = _solve(
            G, G32, C[row], yy[row], lam, max(level[row], lam), w, q, KNOT_SLACK, tolerance, max_sweeps, positive, part
        )
        out[row] = w
        gaps[row] = gap
        sweeps[row] = count + used


@compiled(error_model="numpy")
def _solve(
    G: Any, G32: Any, c: Any, yy: float, lam: float, before: float, w: Any, q: Any, slack: float, tolerance: float,
    max_sweeps: int, positive: bool, part: Any,
) -> tuple[Any, int, float]:  # pragma: no cover  # fmt: skip
    """One row at one penalty, from w and q in place. With tolerance 0 it stops at `slack`, without a gap."""
    p = len(c)
    working, place = np.empty(p, np.int64), np.full(p, -1)
    size, done, gap = 0, 0, np.inf
    forecast = max(2 * lam - before, 0.0) if before > lam else lam
    for attempt in range(200):
        entering = 0
        cut = lam * (1 + slack)
        for j in range(p):
            if place[j] < 0 and G[j, j] > 0.0:
                size_now = q[j] if positive else abs(q[j])
                if size_now > cut:
                    entering += 1
                if w[j] != 0.0 or size_now > cut or (attempt == 0 and size_now > forecast):
                    place[j] = size
                    working[size] = j
                    size += 1
        if attempt > 0 and entering == 0:
            if tolerance == 0.0:
                break
            gap = gap_of_row(c, yy, lam, w, q, positive)
            if gap <= tolerance * yy / 2 or done >= max_sweeps or slack < 1e-12:
                break
            slack /= 4
        elif attempt == 0 and tolerance > 0.0:
            gap = gap_of_row(c, yy, lam, w, q, positive)
            if gap <= tolerance * yy / 2:
                break
        if size == 0:
            break
        if done >= max_sweeps:
            gap = gap_of_row(c, yy, lam, w, q, positive)
            break
        part, used = _inner(G, G32, c, lam, w, q, slack, max_sweeps - done, positive, part, working[:size])
        done += used
    return part, done, gap


@compiled(error_model="numpy", fastmath={"contract", "reassoc"})
def _subtract(target: Any, factor: Any, row: Any) -> None:  # pragma: no cover
    for i in range(len(target)):
        target[i] -= factor * row[i]


@compiled(error_model="numpy")
def _inner(
    G: Any, G32: Any, c: Any, lam: float, w: Any, q: Any, slack: float, max_sweeps: int, positive: bool, part: Any,
    working: Any,
) -> tuple[Any, int]:  # pragma: no cover  # fmt: skip
    """Sweeps over the working set until no condition is violated by more than slack * lam; w and q follow."""
    size = len(working)
    if size > len(part):
        part = np.empty((size + size // 3, size + size // 3), np.float32)
    for i in range(size):
        line, source = part[i], G32[working[i]]
        for k in range(size):
            line[k] = source[working[k]]
    weights, diagonal, base, moved = np.empty(size), np.empty(size), np.empty(size), np.zeros(size, np.float32)
    for i in range(size):
        weights[i], base[i], diagonal[i] = w[working[i]], q[working[i]], G[working[i], working[i]]
    past_w, past_g = np.empty((MEMORY + 1, size)), np.empty((MEMORY + 1, size), np.float32)
    stored, done = 0, 0
    enough = slack * lam
    while done < max_sweeps:
        done += 1
        worst = 0.0
        for k in range(size):
            g, old = base[k] + np.float64(moved[k]), weights[k]
            if old == 0.0 and (g if positive else abs(g)) <= lam:
                continue
            z = g + diagonal[k] * old
            new = 0.0
            if z > lam:
                new = (z - lam) / diagonal[k]
            elif z < -lam and not positive:
                new = (z + lam) / diagonal[k]
            change = new - old
            violation = abs(change) * diagonal[k]
            worst = max(worst, violation)
            if violation > 0.2 * enough or (new == 0.0 and old != 0.0) or (positive and old < 0.0):
                weights[k] = new
                _subtract(moved, np.float32(change), part[k, :size])
        if done == 1:  # what float32 can do from here; the next round starts from a gradient in float64
            enough = max(enough, 1e-4 * worst)
        if worst <= enough:
            break
        for k in range(size):
            past_w[stored, k], past_g[stored, k] = weights[k], moved[k]
        stored += 1
        if stored > MEMORY:
            _extrapolate(c, lam, positive, working, weights, base, moved, past_w, past_g)
            stored = 0
    for i in range(size):
        change = weights[i] - w[working[i]]
        if change != 0.0:
            w[working[i]] = weights[i]
            _subtract(q, change, G[working[i]])
    return part, done


@compiled(error_model="numpy")
def _extrapolate(
    c: Any, lam: float, positive: bool, working: Any, weights: Any, base: Any, moved: Any, past_w: Any, past_g: Any
) -> None:  # pragma: no cover
    """Replace the weights by the affine combination of the last iterates that Anderson's method picks, if better."""
    size = len(weights)
    M = np.zeros((MEMORY, MEMORY + 1))
    for a in range(MEMORY):
        for b in range(a + 1):
            total = 0.0
            for k in range(size):
                total += (past_w[a + 1, k] - past_w[a, k]) * (past_w[b + 1, k] - past_w[b, k])
            M[a, b] = M[b, a] = total
        M[a, MEMORY] = 1.0
    trace = 0.0
    for a in range(MEMORY):
        trace += M[a, a]
    for a in range(MEMORY):
        M[a, a] += 1e-12 * trace + 1e-300
    for a in range(MEMORY):  # elimination; M is positive definite
        for b in range(a + 1, MEMORY):
            factor = M[b, a] / M[a, a]
            for k in range(a, MEMORY + 1):
                M[b, k] -= factor * M[a, k]
    weight = np.empty(MEMORY)
    for a in range(MEMORY - 1, -1, -1):
        rest = M[a, MEMORY]
        for b in range(a + 1, MEMORY):
            rest -= M[a, b] * weight[b]
        weight[a] = rest / M[a, a]
    total = weight.sum()
    if not np.isfinite(total) or total == 0.0:
        return
    weight /= total
    new_w, new_g = np.zeros(size), np.zeros(size, np.float32)
    for a in range(MEMORY):
        share = np.float32(weight[a])
        for k in range(size):
            new_w[k] += weight[a] * past_w[a + 1, k]
            new_g[k] += share * past_g[a + 1, k]
    now, then = 0.0, 0.0
    for k in range(size):
        linear = c[working[k]]
        now += lam * abs(weights[k]) - 0.5 * weights[k] * (linear + base[k] + moved[k])
        then += lam * abs(new_w[k]) - 0.5 * new_w[k] * (linear + base[k] + new_g[k])
        if positive and new_w[k] < 0.0:
            return
    if then < now:
        for k in range(size):
            weights[k], moved[k] = new_w[k], new_g[k]
