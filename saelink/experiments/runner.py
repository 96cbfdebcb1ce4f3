"""Runs a job's experiments in order: says first how many fits are missing and how long they will take."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from saelink.config.schema import Config
from saelink.connectors import CONNECTORS
from saelink.errors import SaelinkError
from saelink.experiments import EXPERIMENTS
from saelink.experiments.base import Experiment
from saelink.experiments.tables import TEXT_FILE, shown_rows, table_text
from saelink.fit.solvers import SOLVERS
from saelink.fit.solvers.exact import ExactSolver
from saelink.fit.train import train_plan
from saelink.latents.encode import encode_all
from saelink.latents.link import link_of
from saelink.runtime import device_of
from saelink.saes.choice import sae_choice
from saelink.store.artifact import Artifact
from saelink.store.store import Store

EXACT_SECONDS = 20.0
"""A lasso of a few thousand latents on both sides; least squares takes less."""


def missing_fits(cfg: Config, store: Store) -> dict[str, Config]:
    """The connectors of the job's experiments, and of those they start from, that are not fitted yet, by key."""
    found: dict[str, Config] = {}

    def collect(experiment: Experiment) -> None:
        configured = experiment.configured(cfg)
        if store.find(experiment.plan(cfg, store)) is None:
            for other in experiment.starts_from():
                collect(other)
            for fit in experiment.fits(configured, store).values():
                plan = train_plan(fit, store)
                if store.find(plan) is None:
                    SOLVERS[fit.solver.name](fit.solver).check(CONNECTORS[fit.connector.name], fit.connector)
                    found[plan.key] = fit

    for name in cfg.experiment.names:
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
        tokens = SOLVERS[fit.solver.name](fit.solver).tokens(0)
        hidden = getattr(fit.connector, "d_hidden", 0)
        dense = 6 * hidden * d if hidden else 2 * d * d * 0.25  # the sparse layer reads a few rows of its matrix
        updates = (2 * hidden * d if hidden else d * d) * 12 / getattr(fit.solver, "batch_tokens", 1024) * 40
        total += tokens * (dense + updates) / rate
    return total


def hooks_of(cfg: Config, store: Store) -> list[str]:
    """The hooks of all links that the job's experiments look at."""
    links = [link_of(job, store) for name in cfg.experiment.names for job in EXPERIMENTS[name].jobs(cfg)]
    return list(dict.fromkeys(hook for link in links for hook in [*link.sources, link.target]))


def missing_saes(cfg: Config, store: Store) -> list[str]:
    """The hooks of the job's experiments whose SAE has to be trained first."""
    choices = {hook: sae_choice(cfg, store, hook) for hook in hooks_of(cfg, store)}
    return [
        hook
        for hook, choice in choices.items()
        if not choice.exists and not list(store.root.glob(f"sae/{choice.key}/manifest.json"))
    ]


def run_experiments(cfg: Config, store: Store, layers: int = 1) -> Iterator[Artifact]:
    """Run the job's experiments one after the other; print each table as it is done. `layers` is how many jobs."""
    for name in cfg.experiment.names:
        named(name)
    fits = missing_fits(cfg, store)
    saes = missing_saes(cfg, store)
    minutes = estimate(cfg, list(fits.values())) / 60
    line = f"{len(cfg.experiment.names)} experiments on layer {cfg.layer}: {len(fits)} connectors to fit"
    line += f", about {max(minutes, 1):.0f} minutes for them" if fits else ""
    line += f"; {len(saes)} SAEs to train ({', '.join(saes)})" if saes else ""
    store.say(line + (f"; {layers} layers in all" if layers > 1 else ""))
    started = time.monotonic()
    if fits:
        encode_all(cfg, store, hooks_of(cfg, store))  # one forward pass for all of them
    for number, name in enumerate(cfg.experiment.names, 1):
        store.say(f"\n{number} of {len(cfg.experiment.names)}: {name}, {EXPERIMENTS[name].title}")
        artifact = EXPERIMENTS[name].run(cfg, store)
        show(store, artifact)
        yield artifact
        store.say(f"{name}: {(time.monotonic() - started) / 60:.1f} minutes since the start")


def show(store: Store, artifact: Artifact) -> None:
    """Print an experiment's table and what stands under it."""
    store.say("")
    store.say(table_text(shown_rows(artifact)))
    store.say(artifact.file(TEXT_FILE).read_text().rstrip())
    store.say(f"\n  {artifact.path}")


def named(name: str) -> None:
    """Raise SaelinkError when there is no experiment of this name."""
    from saelink.experiments import EXPERIMENTS

    if name not in EXPERIMENTS:
        raise SaelinkError(f"experiment.names: there is no experiment {name}; known: {', '.join(sorted(EXPERIMENTS))}")
