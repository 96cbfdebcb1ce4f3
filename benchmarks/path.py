"""Several penalties of an mlp as one path (solver.path_tokens) against each trained by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch

from benchmarks.frontier import POST
from benchmarks.steps import connector_of
from benchmarks.work import Row, planted, seconds, split_of
from saelink.connectors.base import Connector
from saelink.fit.penalties import worth_starting_at
from saelink.fit.solvers.base import Problem
from saelink.fit.solvers.proximal import ProximalSolver
from saelink.fit.train import TrainFacts
from saelink.latents.split import Split
from saelink.progress import Progress

BATCH = 1024
SHARE = 0.4
"""Training length of every penalty but the smallest, of one run's."""


def rows(d: int = 1024, hidden: int = 256, tokens: int = 80_000, steps: int = 600) -> Iterator[Row]:
    source, target = planted(tokens, d, 20, 1)
    train = split_of(*(side.select(torch.arange(tokens - 10_000)) for side in (source, target)))
    held = split_of(*(side.select(torch.arange(tokens - 10_000, tokens)) for side in (source, target)))

    def fit(alpha: float, length: int, start: Connector | None = None) -> tuple[Connector, float, dict[str, float]]:
        connector = connector_of("mlp", d, d, d_hidden=hidden)
        if start is not None:
            connector.load_state_dict(start.state_dict())
        settings = {"lr": 3e-3, "lr_decay": 0.5, "batch_tokens": BATCH, "tokens": length * BATCH}
        solver = ProximalSolver(ProximalSolver.Settings(name="proximal", validate_every=length * BATCH, **settings))
        found: list[dict[str, float]] = []

        def work() -> None:
            found.append(solver.solve(connector, _problem(train, held, alpha), Progress()).final)

        return connector, seconds(work), found[0]

    fit(1e-3, 20)
    alone, path, warm = [], [], []
    for alpha in sorted(POST):
        alone.append(fit(alpha, steps))
        # As train.penalties does it.
        warm.append(bool(path) and worth_starting_at(cast(TrainFacts, {"c": 1.0, **path[-1][2]}), alpha))
        path.append(fit(alpha, round(SHARE * steps), path[-1][0]) if warm[-1] else fit(alpha, steps))
    ratio = sum(point[1] for point in path) / alone[0][1]
    above = [theirs[2]["objective"] / mine[2]["objective"] - 1 for theirs, mine in zip(path, alone, strict=True)]
    yield Row(
        f"mlp path of {len(POST)} alphas, {d:,} latents, {hidden} hidden, proximal",
        "3x one run's time, each objective within 1% of its own run's",
        f"{ratio:.1f}x, at worst {max(above):+.1%}",
        ratio <= 3 and max(above) <= 0.01,
        {
            "alphas": sorted(POST),
            "objective alone": [float(f"{point[2]['objective']:.4g}") for point in alone],
            "objective on the path, against alone": [f"{share:+.1%}" for share in above],
            "started at the one before": warm,
            "seconds alone": [round(point[1], 1) for point in alone],
            "seconds on the path": [round(point[1], 1) for point in path],
        },
    )


def _problem(train: Split, held: Split, alpha: float) -> Problem:
    return Problem(train, held, alpha, 1.0, 0, "cpu", lambda: None)  # type: ignore[arg-type, return-value]
