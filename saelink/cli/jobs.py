"""What each stage command does with one job: pull, publish, and have it printed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saelink.job import Job

Command = Callable[["Job"], None]


def run_cache(job: Job) -> None:
    from saelink.activations.cache import cache_hooks

    cache_hooks(job.cfg, job.store, [*job.link.sources, job.link.target])


def run_sae(job: Job) -> None:
    from saelink.saes.choice import sae_choice
    from saelink.saes.training import SAEStage

    for hook in [*job.link.sources, job.link.target]:
        choice = sae_choice(job.cfg, job.store, hook)
        if not choice.exists:
            SAEStage(job.cfg, job.store, hook).pull()
        else:
            job.observer.say(f"sae: {hook} has one already ({choice.about}, {choice.where})")


def run_encode(job: Job) -> None:
    _ = job.sides


def run_train(job: Job) -> None:
    from saelink.fit.train import TrainStage
    from saelink.tracking.runs import publish
    from saelink.tracking.sweep import record

    connector = TrainStage(job).pull()
    record(job.store, job.cfg.runtime.sweep, connector, swept())
    publish(job.cfg.wandb, job.store, connector, group=job.cfg.runtime.sweep)


def run_all(job: Job) -> None:
    """The whole chain, or the experiments of an experiment file."""
    if not job.cfg.experiment.names:
        run_evaluate(job)
        return
    from hydra.core.hydra_config import HydraConfig

    from saelink.cli.outcome import OUTCOME
    from saelink.errors import SaelinkError
    from saelink.experiments.runner import run_experiments
    from saelink.terminal.experiments import print_result
    from saelink.tracking.runs import publish_experiment
    from saelink.tracking.sweep import record_experiment

    for override in HydraConfig.get().overrides.task:
        if re.match(r"(l1_alpha|seed|connector)\b", override):
            raise SaelinkError(f"{override}: an experiment chooses that itself; see the experiment.* settings")
    for result in run_experiments(job, layers=OUTCOME.layers):
        print_result(job.observer, result)
        record_experiment(job.store, job.cfg.runtime.sweep, result)
        publish_experiment(job.cfg.wandb, job.store, result, group=job.cfg.runtime.sweep)


def run_evaluate(job: Job) -> None:
    from saelink.evidence.evaluate import EvaluateStage
    from saelink.fit.train import TrainStage
    from saelink.terminal.evaluation import print_comparison, print_evaluation
    from saelink.tracking.runs import publish
    from saelink.tracking.sweep import record

    connector = TrainStage(job).pull()
    evaluation = EvaluateStage(job).pull()
    record(job.store, job.cfg.runtime.sweep, connector, swept())
    print_evaluation(job.observer, connector, evaluation)
    if job.cfg.transcoder.path is not None:
        from saelink.evidence.transcoder import TranscoderStage

        print_comparison(job.observer, TranscoderStage(job).pull())
    publish(job.cfg.wandb, job.store, connector, evaluation, group=job.cfg.runtime.sweep)
    if job.cfg.eval.verify:
        run_verify(job)


def run_verify(job: Job) -> None:
    from saelink.evidence.consequences import ConsequencesStage, chosen_edges
    from saelink.evidence.evaluate import EvaluateStage
    from saelink.evidence.stability import Stability, StabilityStage, wanted
    from saelink.evidence.verify import VerifyStage
    from saelink.fit.train import TrainStage
    from saelink.interventions.effects import check_measurable
    from saelink.terminal.verdicts import print_consequences, print_verdicts
    from saelink.tracking.runs import publish

    check_measurable(job.cfg)
    chosen_edges(job)  # a mistake there gets its line before hours of work
    again = StabilityStage(job) if wanted(job.cfg) else None
    verdicts, evaluation = VerifyStage(job).pull(), EvaluateStage(job).pull()
    stable = None if again is None else Stability(again.pull())
    asked = job.cfg.verify.consequences or job.cfg.verify.chosen
    lost = ConsequencesStage(job).pull() if asked else None
    print_verdicts(job.observer, verdicts, evaluation, stable)
    if lost is not None:
        print_consequences(job.observer, lost)
    job.observer.say(f"\n  {verdicts.path}")
    publish(job.cfg.wandb, job.store, TrainStage(job).pull(), evaluation, job.cfg.runtime.sweep, verdicts)


def run_export(job: Job) -> None:
    from saelink.share.export import ExportStage

    artifact = ExportStage(job).pull()
    edges = artifact.facts["edges"]
    job.observer.say(f"\n  export     {artifact.path} ({edges:,} edges: csv, parquet, GraphML, JSON)")


def run_report(job: Job) -> None:
    from hydra.core.hydra_config import HydraConfig

    from saelink.report.stage import ReportStage, page_path

    # What is no part of a key is no part of the page: equal recipes make equal pages, wherever they are made.
    overrides = [o for o in HydraConfig.get().overrides.task if not re.match(r"\+*(runtime|wandb|report\.path)\b", o)]
    artifact = ReportStage(job, shlex.join(["saelink", "report", *overrides])).pull()
    path, size = page_path(job.cfg, artifact), artifact.facts["bytes"] / 1e6
    job.observer.say(f"\n  report     {path} ({size:.0f} MB; opens in any browser, offline)")


def track(keys: list[str]) -> Command:
    """Publish train artifacts by their keys."""

    def command(job: Job) -> None:
        from saelink.tracking.runs import publish_key

        for key in keys:
            publish_key(job.cfg.wandb, job.store, key)

    return command


def show(side: str, latent: str, as_json: bool) -> Command:
    """Print the card of a target or source latent."""

    def command(job: Job) -> None:
        import sys
        from dataclasses import replace

        from saelink.config.check import single
        from saelink.report.cards.cards import Cards
        from saelink.terminal.cards import print_card_json, print_new_card
        from saelink.terminal.progress import TerminalObserver

        if as_json:  # the card alone goes to standard output
            store = type(job.store)(job.store.root, TerminalObserver(sys.stderr))
            job = replace(job, store=store)
        cards = Cards(job.at(single(job.cfg)))
        found = cards.target(int(latent)) if side == "target" else cards.source(cards.source_number(latent))
        if as_json:
            print_card_json(found)
        else:
            print_new_card(found)

    return command


def graph(prompt: list[str]) -> Command:
    """A prompt's attribution graph; without a prompt here graph.prompt's."""

    def command(job: Job) -> None:
        from dataclasses import replace

        from saelink.config.check import single
        from saelink.errors import SaelinkError
        from saelink.share.graph.stage import GraphStage
        from saelink.terminal.graph import print_graph

        if len(prompt) > 1:
            raise SaelinkError(f'graph: give one text, in quotes: saelink graph "{" ".join(prompt)}"')
        cfg = single(job.cfg)
        if prompt:
            cfg = replace(cfg, graph=replace(cfg.graph, prompt=prompt[0]))
        print_graph(job.observer, GraphStage(job.at(cfg)).pull())

    return command


def swept() -> str:
    """The overrides that make this job differ from the others of its sweep."""
    from hydra.core.hydra_config import HydraConfig

    overrides = HydraConfig.get().overrides.task
    return " ".join(override.lstrip("+") for override in overrides if not override.startswith("runtime.sweep="))


EACH_PENALTY: tuple[Command, ...] = (run_all, run_train, run_evaluate, run_verify, run_export)
"""Commands that run once for each penalty of a list."""
