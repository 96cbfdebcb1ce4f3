"""The exact path: the whole frontier against our own Adam's epochs, and a path against other lasso solvers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.steps import ACTIVE, BATCH, connector_of, ours
from benchmarks.work import Row, in_turn, planted, seconds, split_of
from saelink.fit.lasso.coordinate import Lasso
from saelink.fit.products.dense import Gram, gram_of

TOLERANCE = 1e-4
PEER_TOLERANCE = 2e-10
"""Ours, beside scikit-learn at its default."""


def down(products: Gram, alphas: list[float]) -> tuple[float, list[dict[str, float]]]:
    """Seconds of a path over `alphas`, falling, and what each penalty came to, its certificate made anew."""
    lasso = Lasso(products.xx, products.xy, products.yy)
    spent, found = 0.0, []
    for alpha in sorted(alphas, reverse=True):
        before = time.perf_counter()
        W, _ = lasso.solve(alpha / 2, TOLERANCE, 20_000)
        took = time.perf_counter() - before
        spent += took
        primal, dual = lasso.certificate(W, alpha / 2)
        gaps = (primal - dual) / (products.yy / 2).clamp(min=1e-300)
        found.append(
            {
                "alpha": alpha,
                "seconds": round(took, 3),
                "edges a target": round((W != 0).sum().item() / W.shape[1], 1),
                "worst gap": float(f"{gaps.max().item():.2g}"),
            }
        )
    return spent, found


def grid(products: Gram, n: int = 20, lowest: float = 3e-3) -> list[float]:
    """n alphas, log-spaced from the largest alpha_max to `lowest` of its median over rows."""
    top = 2 * products.xy.abs().amax(0)
    return np.geomspace(top.max().item(), lowest * top.median().item(), n).tolist()


POST = [1e-7, 1e-5, 1e-3, 0.1, 10.0, 100.0]


def rows(d: int = 4096, tokens: int = 200_000) -> Iterator[Row]:
    source, target = planted(tokens, d, ACTIVE, 1)
    split = split_of(source, target)
    gram_of([_first(split)])  # compile
    products: list[Gram] = []
    pass_seconds = seconds(lambda: products.append(gram_of(split)))
    steps = 16
    part = torch.arange(BATCH * steps)
    adam = ours(connector_of("linear", d, d), source.select(part), target.select(part), steps)
    epoch = in_turn({"adam": adam}, 3)["adam"] / (BATCH * steps) * tokens
    spent, found = down(products[0], grid(products[0]))
    total, budget = pass_seconds + spent, 3 * epoch
    worst = max(point["worst gap"] for point in found)
    detail: dict[str, Any] = {"pass over the data, seconds": pass_seconds, "three epochs of Adam, seconds": budget}
    yield Row(
        f"exact frontier of 20 alphas, {d:,} x {d:,}, {tokens:,} tokens, pass over the data included",
        "3 epochs of our Adam for one alpha; worst gap 1e-4",
        f"{total:.1f} s, {total / epoch:.1f} epochs, worst gap {worst:.1g}",
        total <= budget and worst <= TOLERANCE,
        detail | {f"path, {name}": [point[name] for point in found] for name in found[0]},
    )
    yield from against_scikit_learn(products[0], grid(products[0])[8::2])
    yield from against_others(products[0], grid(products[0])[8::2])
    post, found = down(products[0], POST)
    worst = max(point["worst gap"] for point in found)
    yield Row(
        "the post's own alphas, 1e-7 to 100",
        "3 x the budget above; worst gap 1e-4",
        f"{pass_seconds + post:.1f} s, {(pass_seconds + post) / epoch:.1f} epochs, worst gap {worst:.1g}",
        pass_seconds + post <= 3 * budget and worst <= TOLERANCE,
        {f"path, {name}": [point[name] for point in found] for name in found[0]},
    )


def against_scikit_learn(products: Gram, alphas: list[float], n_targets: int = 24) -> Iterator[Row]:
    """The same columns of the same Gram, one thread each, every penalty started from the one before."""
    from sklearn.linear_model import lasso_path

    products, X, y = as_rows(products, n_targets)
    gram_matrix, Xy = X.T @ X, X.T @ y
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        lasso = Lasso(products.xx, products.xy, products.yy)
        coefficients: list[Any] = [None] * y.shape[1]
        points = []
        for alpha in alphas:
            started = time.perf_counter()
            W, _ = lasso.solve(alpha / 2, PEER_TOLERANCE, 20_000)
            mine = time.perf_counter() - started
            started = time.perf_counter()
            for i in range(y.shape[1]):
                settings: dict[str, Any] = {"alphas": [alpha / 2], "precompute": gram_matrix, "max_iter": 100_000}
                _, found, _ = lasso_path(X, y[:, i], Xy=Xy[:, i], coef_init=coefficients[i], **settings)
                coefficients[i] = found[:, 0]
            theirs = time.perf_counter() - started
            V = torch.from_numpy(np.stack(coefficients, 1))
            gaps = [(lasso.gaps(w, alpha / 2) / (products.yy / 2)).median().item() for w in (W, V)]
            points.append((theirs / mine, gaps[1] / max(gaps[0], 1e-12), mine, theirs, *gaps))
    finally:
        torch.set_num_threads(threads)
    faster, tighter = min(p[0] for p in points), min(p[1] for p in points)
    names = ("times faster", "times tighter", "saelink, seconds", "scikit-learn, seconds", "gap", "scikit-learn's gap")
    yield Row(
        f"exact path against scikit-learn's lasso_path, same Gram, {y.shape[1]} targets, one thread: worst alpha",
        "2x faster and gap 5x tighter",
        f"{faster:.1f}x faster, {tighter:.1f}x tighter",
        faster >= 2 and tighter >= 5,
        {"alphas": [float(f"{a:.2g}") for a in alphas]}
        | {name: [float(f"{p[k]:.2g}") for p in points] for k, name in enumerate(names)},
    )


def against_others(products: Gram, alphas: list[float], n_targets: int = 4) -> Iterator[Row]:
    """celer and skglm on as many rows as there are sources, which is all of the data that matters to a lasso."""
    products, X, y = as_rows(products, n_targets)
    n = len(X)
    sides: dict[str, Callable[[int], np.ndarray[Any, Any]]] = {}
    try:
        from celer import celer_path  # pyright: ignore[reportMissingImports]

        sides["celer"] = lambda i: celer_path(X, y[:, i], "lasso", alphas=np.array(alphas) / 2)[1]
    except ImportError:
        pass
    try:
        from skglm.datafits import Quadratic  # pyright: ignore[reportMissingImports]
        from skglm.penalties import L1  # pyright: ignore[reportMissingImports]
        from skglm.solvers import AndersonCD  # pyright: ignore[reportMissingImports]

        def skglm(i: int) -> np.ndarray[Any, Any]:
            path = AndersonCD(fit_intercept=False, tol=1e-8).path(
                X, y[:, i], Quadratic(), L1(1.0), np.array(alphas) / 2
            )
            return path[1]

        sides["skglm"] = skglm
    except ImportError:
        pass
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        lasso = Lasso(products.xx, products.xy, products.yy)
        lasso.solve(alphas[0] / 2, PEER_TOLERANCE, 20_000)  # compile
        for name, path in sides.items():
            path(0)
            lasso = Lasso(products.xx, products.xy, products.yy)
            started = time.perf_counter()
            mine = [lasso.solve(alpha / 2, PEER_TOLERANCE, 20_000)[0] for alpha in alphas]
            own = time.perf_counter() - started
            started = time.perf_counter()
            theirs = torch.from_numpy(np.stack([path(i) for i in range(n_targets)], 1))
            other = time.perf_counter() - started
            gaps = [
                max(
                    (lasso.gaps(W, alpha / 2) / (products.yy / 2)).max().item()
                    for W, alpha in zip(side, alphas, strict=True)
                )
                for side in (mine, [theirs[:, :, k] for k in range(len(alphas))])
            ]
            yield Row(
                f"exact path against {name}, {n:,} rows, {n_targets} targets, {len(alphas)} alphas, one thread",
                "at least 20x",
                f"{other / own:.0f}x, worst gap {gaps[0]:.1g} against {gaps[1]:.1g}",
                other / own >= 20,
                {"saelink, seconds": own, f"{name}, seconds": other},
            )
    finally:
        torch.set_num_threads(threads)


def as_rows(products: Gram, n_targets: int) -> tuple[Gram, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Some of the targets, and p + 1 rows X, y that have exactly their Gram matrix, X'y and y'y.

    X is the Cholesky factor; a last row holds what of y is out of reach.
    """
    n = len(products.xx)
    part = torch.arange(0, products.xy.shape[1], max(products.xy.shape[1] // n_targets, 1))[:n_targets]
    products = products.explain(part)
    factor = torch.linalg.cholesky(products.xx + 1e-10 * torch.eye(n, dtype=torch.float64))
    reach = torch.linalg.solve_triangular(factor, products.xy, upper=False)
    rest = (products.yy - reach.square().sum(0)).clamp(min=0).sqrt()
    scale = (n + 1) ** 0.5
    X = np.asfortranarray(scale * torch.cat([factor.T, torch.zeros(1, n, dtype=torch.float64)]).numpy())
    return products, X, scale * torch.cat([reach, rest[None]]).numpy()


def _first(split: Any) -> Any:
    return next(iter(split)).select(torch.arange(1000))
