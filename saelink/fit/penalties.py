"""The jobs of a list of penalties, each by itself or as one path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from saelink.config.check import l1_alphas
from saelink.connectors import CONNECTORS
from saelink.errors import SaelinkError
from saelink.fit.solvers import SOLVERS
from saelink.fit.train import TrainFacts, TrainStage
from saelink.job import Job
from saelink.store.artifact import Artifact


def penalties(job: Job) -> Iterator[Job]:
    """The job of each penalty in cfg.l1_alpha, a number or a list.

    With solver.path_tokens they are one path upwards: each but the smallest starts at the weights of the one before and
    trains for path_tokens, unless at the new penalty these are worse than no weights at all; then it is fitted as
    always. Ask for the next only when the one before is trained.
    """
    alphas = l1_alphas(job.cfg.l1_alpha)
    path_tokens = getattr(job.cfg.solver, "path_tokens", 0)
    if not path_tokens:
        yield from (job.at(replace(job.cfg, l1_alpha=alpha)) for alpha in alphas)
        return
    cfg = job.cfg
    SOLVERS[cfg.solver.name](cfg.solver).check(CONNECTORS[cfg.connector.name], cfg.connector)
    if len(alphas) < 2:
        raise SaelinkError(
            f"solver.path_tokens={path_tokens} needs several penalties in one job: l1_alpha=[1e-5,1e-3,.1] without -m"
        )
    alone = replace(cfg, solver=replace(cfg.solver, path_tokens=0))
    step = replace(alone, solver=replace(alone.solver, tokens=path_tokens))
    before: Artifact[TrainFacts] | None = None
    for alpha in sorted(set(alphas)):
        chosen = replace(alone, l1_alpha=alpha)
        if before is not None and worth_starting_at(before.facts, alpha):
            chosen = replace(step, l1_alpha=alpha, connector=replace(cfg.connector, init=before.key))
        yield job.at(chosen)
        before = TrainStage(job.at(chosen)).find()
        assert before is not None, "the next penalty was asked for before this one was trained"


def worth_starting_at(facts: TrainFacts, l1_alpha: float) -> bool:
    """Whether a fit's weights do no worse at this penalty than none. (A hidden penalty is not counted.)"""
    # No weights at all do as well as none, whichever way the two sums, one of float32 squares, were rounded.
    rounding = 1 + 1e-6
    return facts["validation_mse"] / facts["c"] + l1_alpha * facts["l1"] <= facts["zero_objective"] * rounding
