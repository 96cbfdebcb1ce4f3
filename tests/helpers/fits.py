"""Connectors, problems and fits at the size of a test."""

from __future__ import annotations

from typing import Any

import torch

from saelink.connectors import CONNECTORS
from saelink.connectors.base import Connector
from saelink.fit.products.dense import gram_of
from saelink.fit.solvers import SOLVERS
from saelink.fit.solvers.base import Fit, Problem
from saelink.latents.rows import Rows
from saelink.progress import Progress

from helpers.rows import random_rows, split_of


def make(name: str, d_source: int = 12, d_target: int = 9, **settings: Any) -> Connector:
    kind = CONNECTORS[name]
    connector = kind(kind.Settings(name=name, **settings), d_source, torch.arange(d_target))
    connector.initialise(torch.Generator().manual_seed(0))
    return connector


def problem(source: Rows, target: Rows, l1_alpha: float = 0.0, seed: int = 0, c: float = 1.0) -> Problem:
    split = split_of(source, target)
    return Problem(split, split, l1_alpha, c, seed, "cpu", lambda: gram_of(split))


def solve(connector: Connector, task: Problem, by: str = "adam", **settings: Any) -> Fit:
    solver = SOLVERS[by]
    return solver(solver.Settings(name=by, **settings)).solve(connector, task, Progress())


def planted(n: int = 6000, d_source: int = 40, d_target: int = 25) -> tuple[Rows, Rows, torch.Tensor]:
    """Targets that are sparse non-negative combinations of the sources, three edges each."""
    generator = torch.Generator().manual_seed(7)
    W = torch.zeros(d_source, d_target)
    for target in range(d_target):
        W[torch.randperm(d_source, generator=generator)[:3], target] = torch.tensor([0.9, 0.5, 0.3])
    source = random_rows(n, d_source, seed=8, density=0.1)
    return source, Rows.from_dense(source.dense() @ W), W
