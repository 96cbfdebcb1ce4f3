"""The connectors whose circuits a page shows: those asked for, cheap ones beside them, and any others of the store."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from omegaconf import OmegaConf

from saelink.config.check import l1_alphas
from saelink.config.schema import Config, Normalise
from saelink.connectors import CONNECTORS
from saelink.errors import SaelinkError
from saelink.evidence.stability import solved
from saelink.fit.solvers import SOLVERS
from saelink.fit.train import TrainFacts, TrainStage
from saelink.job import Job
from saelink.store.artifact import Artifact

WHERE = "report.connectors"


def included(job: Job) -> list[Job]:
    """A job for each connector on the page, first the one it is about.

    These are the penalties asked for; where they are solved exactly and so cost little, those of report.l1_alphas; and
    the connectors of the store that report.connectors names. Raises SaelinkError for a key that can't be shown here.
    """
    cfg = job.cfg
    asked = l1_alphas(cfg.l1_alpha)
    cheap = solved(cfg) and not CONNECTORS[cfg.connector.name].relu_output
    more = cfg.report.l1_alphas if cheap and asked[0] else []
    jobs = [job.at(replace(cfg, l1_alpha=float(alpha))) for alpha in dict.fromkeys([*asked, *more])]
    if not cfg.report.connectors:
        return jobs
    there = {TrainStage(each).key for each in jobs}
    for key in dict.fromkeys(cfg.report.connectors):
        found = _of_key(jobs[0], key)
        if TrainStage(found).key not in there:
            there.add(TrainStage(found).key)
            jobs.append(found)
    return jobs


def _of_key(job: Job, key: str) -> Job:
    """The job that made a connector of the store, with this one's latents."""
    artifact = job.store.get(key)
    if artifact.stage != TrainStage.name:
        raise SaelinkError(f"{WHERE}: {key} is of {artifact.stage}; give keys of connectors: saelink ls --stage train")
    connector = cast("Artifact[TrainFacts]", artifact)
    other = job.at(_settings_of(job.cfg, connector))
    if TrainStage(other).key != connector.key:
        raise SaelinkError(
            f"{WHERE}: {key} maps other latents than this report's, or was fitted with settings that can't be told "
            "from its recipe; make a report of its own"
        )
    return other


def _settings_of(cfg: Config, connector: Artifact[TrainFacts]) -> Config:
    """The configuration with what the connector's recipe says of its fit."""
    recipe = connector.recipe
    name, solver = recipe["connector"]["name"], recipe["solver"]["name"]
    if name not in CONNECTORS or solver not in SOLVERS:
        raise SaelinkError(f"{WHERE}: {connector.key} is a {name} by {solver}, which is not installed here")
    return replace(
        cfg,
        connector=_typed(CONNECTORS[name].Settings, recipe["connector"]),
        solver=_typed(SOLVERS[solver].Settings, recipe["solver"]),
        l1_alpha=float(recipe["l1_alpha"]),
        normalise=Normalise[recipe["normalise"]],
        seed=recipe.get("seed", cfg.seed),
        targets=replace(cfg.targets, min_rate=recipe["min_rate"]),
    )


def _typed(kind: type[Any], values: dict[str, Any]) -> Any:
    """Settings as their dataclass, enums from their names."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), values))
