"""Runs a job's experiments in order: says first how many fits are missing and how long they will take."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.experiments import EXPERIMENTS
from saelink.experiments.base import Experiment, ExperimentFacts
from saelink.fit.solvers import SOLVERS
from saelink.fit.solvers.exact import ExactSolver
from saelink.fit.train import TrainStage
from saelink.job import Job
from saelink.latents.encode import encode_hooks
from saelink.runtime import device_of
from saelink.saes.choice import sae_choice
from saelink.store.artifact import Artifact

EXACT_SECONDS = 20.0
"""A lasso of a few thousand latents on both sides; least squares takes less."""


def missing_fits(job: Job) -> dict[str, Config]:
    """The connectors of the job's experiments, and of those they start from, that are not fitted yet, by key."""
    found: dict[str, Config] = {}

    def collect(experiment: Experiment) -> None:
        configured = experiment.configured(job.cfg)
        if job.store.find(experiment.plan(job)) is None:
            for other in experiment.starts_from():
                collect(other)
            for fit in experiment.fits(job.at(configured)).values():
                stage = TrainStage(job.at(fit))
                if stage.find() is None:
                    stage.check_settings()
                    stage.need_ahead()
                    found[stage.key] = fit

    for name in job.cfg.experiment.names:
        collect(EXPERIMENTS[name])
    return found


def estimate(cfg: Config, fits: list[Config]) -> float:
    """About how many seconds the fits take, from the time of one matrix product on this machine.

    A guess to plan a day by: SAE training, caching and cross-entropies come on top.
    """
    device = device_of(cfg)
    a = torch.randn(1024, 1024, device=device)
    product = a @ a
    started = time.perf_counter()
    for _ in range(10):
        torch.matmul(a, a, out=product)
    product[0, 0].item()
    rate = 10 * 2 * 1024**3 / (time.perf_counter() - started)
    d = cfg.sae.d_sae
    total = 0.0
    for fit in fits:
        if SOLVERS[fit.solver.name].uses_gram:
            total += EXACT_SECONDS if fit.l1_alpha else EXACT_SECONDS / 4
        if issubclass(SOLVERS[fit.solver.name], ExactSolver):
            continue
        tokens = SOLVERS[fit.solver.name](fit.solver).work(0, 0).total
        hidden = getattr(fit.connector, "d_hidden", 0)
        dense = 6 * hidden * d if hidden else 2 * d * d * 0.25  # the sparse layer reads a few rows of its matrix
        updates = (2 * hidden * d if hidden else d * d) * 12 / getattr(fit.solver, "batch_tokens", 1024) * 40
        total += tokens * (dense + updates) / rate
    return total


def hooks_of(job: Job) -> list[str]:
    """The hooks of all links that the job's experiments look at."""
    names = job.cfg.experiment.names
    links = [job.at(cfg).link for name in names for cfg in EXPERIMENTS[name].jobs(job.cfg)]
    return list(dict.fromkeys(hook for link in links for hook in [*link.sources, link.target]))


def missing_saes(job: Job) -> list[str]:
    """The hooks of the job's experiments whose SAE has to be trained first."""
    choices = {hook: sae_choice(job.cfg, job.store, hook) for hook in hooks_of(job)}
    return [
        hook
        for hook, choice in choices.items()
        if not choice.exists and not list(job.store.root.glob(f"sae/{choice.key}/manifest.json"))
    ]


def run_experiments(job: Job, layers: int = 1) -> Iterator[Artifact[ExperimentFacts]]:
    """The results of the job's experiments, each as it is done. `layers` is how many jobs there are."""
    names = job.cfg.experiment.names
    for name in names:
        experiment = named(name)
        experiment.check(experiment.own(job.cfg))
    fits = missing_fits(job)
    saes = missing_saes(job)
    minutes = estimate(job.cfg, list(fits.values())) / 60
    line = f"{len(names)} experiments on layer {job.cfg.layer}: {len(fits)} connectors to fit"
    line += f", about {max(minutes, 1):.0f} minutes for them" if fits else ""
    line += f"; {len(saes)} SAEs to train ({', '.join(saes)})" if saes else ""
    job.observer.say(line + (f"; {layers} layers in all" if layers > 1 else ""))
    started = time.monotonic()
    if fits:
        encode_hooks(job.cfg, job.store, hooks_of(job))  # one forward pass for all of them
    for number, name in enumerate(names, 1):
        job.observer.say(f"\n{number} of {len(names)}: {name}, {EXPERIMENTS[name].title}")
        yield EXPERIMENTS[name].run(job)
        job.observer.say(f"{name}: {(time.monotonic() - started) / 60:.1f} minutes since the start")


def named(name: str) -> Experiment:
    """The experiment of this name. Raises SaelinkError when there is none."""
    if name not in EXPERIMENTS:
        raise SaelinkError(f"experiment.names: there is no experiment {name}; known: {', '.join(sorted(EXPERIMENTS))}")
    return EXPERIMENTS[name]
