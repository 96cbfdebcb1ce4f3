"""What each stage command does with one job: pull, publish, and have it printed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saelink.fit.train import TrainFacts
    from saelink.job import Job
    from saelink.store.artifact import Artifact

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
    from saelink.evidence.compared import comparable
    from saelink.terminal.fit import print_fit

    with tracked(job) as (job, show):
        connector = fitted(job)
        then = same_job("evaluate", job) if job.cfg.runtime.sweep is None else None
        print_fit(job.observer, connector, comparable(job.store, connector), then)
        show(connector)


@contextmanager
def tracked(job: Job) -> Generator[tuple[Job, Callable[..., None]], None, None]:
    """The job, its fit live in W&B, and what shows a connector there with its evaluation and verdicts at the end."""
    from saelink.fit.train import TrainStage
    from saelink.tracking.live import watched
    from saelink.tracking.project import Project
    from saelink.tracking.runs import fit_shown, publish

    project = Project(job.cfg.wandb, job.store)
    project.check()
    with watched(job, project, fit_shown) as (job, fit):

        def show(
            connector: Artifact[Any], evaluation: Artifact[Any] | None = None, verdicts: Artifact[Any] | None = None
        ) -> None:
            assert connector.stage == TrainStage.name
            if not project.disabled and job.cfg.wandb.oracle:
                _draw_oracle(job)
            publish(project, connector, evaluation, job.cfg.runtime.sweep, verdicts, fit.begun)

        yield job, show


def _draw_oracle(job: Job) -> None:
    """Measure the oracle that the charts show. What keeps it from being measured is no reason to lose the fit's run."""
    from saelink.errors import SaelinkError
    from saelink.interventions.oracle import OracleStage

    stage = OracleStage(job, "validation")
    try:
        _ = stage.find() or stage.pull()
    except SaelinkError as error:
        job.observer.say(f"wandb: the charts show no oracle: {error}")


def fitted(job: Job) -> Artifact[TrainFacts]:
    """The job's connector, found or fitted, and noted as its sweep's."""
    from saelink.fit.train import TrainStage
    from saelink.tracking.sweep import record

    connector = TrainStage(job).pull()
    record(job.store, job.cfg.runtime.sweep, connector, swept())
    return connector


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
    from saelink.tracking.project import Project
    from saelink.tracking.runs import publish_experiment
    from saelink.tracking.sweep import record_experiment

    project = Project(job.cfg.wandb, job.store)
    project.check()
    for override in HydraConfig.get().overrides.task:
        if re.match(r"(l1_alpha|seed|connector)\b", override):
            raise SaelinkError(f"{override}: an experiment chooses that itself; see the experiment.* settings")
    for result in run_experiments(job, layers=OUTCOME.layers):
        print_result(job.observer, result)
        record_experiment(job.store, job.cfg.runtime.sweep, result)
        publish_experiment(project, result, group=job.cfg.runtime.sweep)


def run_evaluate(job: Job) -> None:
    from saelink.evidence.evaluate import EvaluateStage
    from saelink.evidence.verdicts import Verdicts
    from saelink.evidence.verify import verdicts_of
    from saelink.terminal.evaluation import print_comparison, print_evaluation

    with tracked(job) as (job, show):
        connector = fitted(job)
        evaluation, judged = EvaluateStage(job).pull(), verdicts_of(job)
        print_evaluation(job.observer, connector, evaluation, None if judged is None else Verdicts(judged))
        if job.cfg.transcoder.path is not None:
            from saelink.evidence.transcoder import TranscoderStage

            print_comparison(job.observer, TranscoderStage(job).pull())
        show(connector, evaluation, judged)
    if job.cfg.eval.verify:
        run_verify(job)


def run_verify(job: Job) -> None:
    from saelink.evidence.consequences import ConsequencesStage, chosen_edges
    from saelink.evidence.evaluate import EvaluateStage
    from saelink.evidence.outlook import outlook
    from saelink.evidence.stability import Stability, StabilityStage, wanted
    from saelink.evidence.verify import VerifyStage
    from saelink.interventions.effects import EffectsStage, check_measurable, need_effects
    from saelink.interventions.moved_effects import moved_link
    from saelink.terminal.verdicts import print_consequences, print_verdicts

    if moved_link(job.cfg):
        run_moved_verify(job)
        return
    check_measurable(job.cfg)
    chosen_edges(job)  # a mistake there gets its line before hours of work
    EffectsStage(job).check()
    if EffectsStage(job).find() is None:
        need_effects(job)
    if wanted(job.cfg):
        StabilityStage(job).check()
    with tracked(job) as (job, show):
        again = StabilityStage(job) if wanted(job.cfg) else None
        ahead = outlook(job)
        if ahead is not None:
            job.observer.say(ahead.text)
        verdicts, evaluation = VerifyStage(job).pull(), EvaluateStage(job).pull()
        stable = None if again is None else Stability(again.pull())
        asked = job.cfg.verify.consequences or job.cfg.verify.chosen
        lost = ConsequencesStage(job).pull() if asked else None
        print_verdicts(job.observer, verdicts, evaluation, stable)
        show_outputs(job)
        if lost is not None:
            print_consequences(job.observer, lost)
        job.observer.say(f"\n  {verdicts.path}")
        show(fitted(job), evaluation, verdicts)


def show_outputs(job: Job) -> None:
    """What the output owes to the edges, and what verify.edges_checked and verify.pruned_tokens ask for, printed."""
    from saelink.evidence.edge_removals import EdgeRemovalsStage
    from saelink.evidence.effectiveness import EffectivenessStage, check_edges, has_outputs
    from saelink.evidence.pruned import PrunedStage
    from saelink.terminal.outputs import print_outputs

    settings = job.cfg.verify
    if not has_outputs(job.cfg):
        if settings.edges_checked or settings.pruned_tokens:
            check_edges(job)
        return
    outputs = EffectivenessStage(job).pull()
    removed = EdgeRemovalsStage(job).pull() if settings.edges_checked else None
    pruned = PrunedStage(job).pull() if settings.pruned_tokens else None
    print_outputs(job.observer, outputs, removed, pruned)


def run_moved_verify(job: Job) -> None:
    from saelink.evidence.evaluate import EvaluateStage
    from saelink.evidence.moved_verdicts import MovedVerdictsStage
    from saelink.terminal.verdicts import print_verdicts

    stage = MovedVerdictsStage(job)
    with tracked(job) as (job, show):
        verdicts, evaluation = stage.pull(), EvaluateStage(job).pull()
        print_verdicts(job.observer, verdicts, evaluation, None)
        job.observer.say(f"\n  {verdicts.path}")
        show(fitted(job), evaluation, verdicts)


def run_qk(job: Job) -> None:
    from saelink.evidence.names import Names
    from saelink.looks.stage import QKTargetsStage, before_attention, found_or_made
    from saelink.terminal.qk import print_head, print_heads

    job = before_attention(job)
    artifact = found_or_made(job)
    targets = QKTargetsStage(job, artifact).pull() if job.cfg.qk.targets else None
    if job.cfg.head is None:
        print_heads(job.observer, artifact, Names(job), targets)
    else:
        print_head(job.observer, artifact, Names(job), job.tokens, job.cfg.head, targets)
    job.observer.say(f"\n  {artifact.path}")


def run_export(job: Job) -> None:
    from saelink.share.export import ExportStage

    artifact = ExportStage(job).pull()
    edges = artifact.facts["edges"]
    job.observer.say(f"\n  export     {artifact.path} ({edges:,} edges: csv, parquet, GraphML, JSON)")


def run_report(job: Job) -> None:
    from hydra.core.hydra_config import HydraConfig

    from saelink.report.stage import ReportStage, page_path

    # What is no part of a key is no part of the page: equal recipes make equal pages, wherever they are made.
    given = (override.lstrip("+") for override in HydraConfig.get().overrides.task)
    overrides = [override for override in given if not re.match(r"(runtime|wandb|report\.path)\b", override)]
    artifact = ReportStage(job, shlex.join(["saelink", "report", *overrides])).pull()
    path, size = page_path(job.cfg, artifact), artifact.facts["bytes"] / 1e6
    job.observer.say(f"\n  report     {path} ({size:.0f} MB; opens in any browser, offline)")


def plan(as_json: bool) -> Command:
    """Print what the job will take; as JSON nothing else is on standard output."""

    def command(job: Job) -> None:
        from saelink.plan.rates import measured_rates
        from saelink.plan.steps import planned
        from saelink.runtime import device_of
        from saelink.terminal.plan import print_plan, print_plan_json

        device_of(job.cfg)  # its threads
        found = planned(job, measured_rates(job.store.root))
        (print_plan_json if as_json else print_plan)(job.observer, found)

    return command


def track(keys: list[str]) -> Command:
    """Publish train artifacts by their keys."""

    def command(job: Job) -> None:
        from saelink.tracking.project import Project
        from saelink.tracking.runs import publish_key

        project = Project(job.cfg.wandb, job.store)
        project.check()
        for key in keys:
            if not publish_key(job.cfg.wandb, job.store, key):
                job.observer.say(f"wandb: {key} is in project {project.name} already, with all there is of it")

    return command


def show(side: str, latent: str, as_json: bool, verbose: bool) -> Command:
    """Print the card of a target or source latent; with `verbose` also what it was found in."""

    def command(job: Job) -> None:
        import sys
        from dataclasses import replace

        from saelink.config.check import single
        from saelink.report.cards.cards import Cards
        from saelink.terminal.cards import print_card_json, print_new_card
        from saelink.terminal.progress import TerminalObserver

        # A card as JSON is alone on standard output.
        observer = TerminalObserver(sys.stderr if as_json else None, verbose)
        job = replace(job, store=job.store.telling(observer))
        cards = Cards(job.at(single(job.cfg)))
        found = cards.target(int(latent)) if side == "target" else cards.source(cards.source_number(latent))
        if side == "target" and job.cfg.link.sources == ["ov"]:
            from saelink.evidence.moved_edges import moved_edges
            from saelink.terminal.moved import print_moved

            edges = moved_edges(cards.job, int(latent))
            found["moved"] = [edge._asdict() for edge in edges]
            if not as_json:
                print_new_card(found)
                print_moved(found["name"], edges)
                return
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
        from saelink.report.prompt import GraphPageStage
        from saelink.share.graph.stage import GraphStage
        from saelink.terminal.graph import print_graph

        if len(prompt) > 1:
            raise SaelinkError(f'graph: give one text, in quotes: saelink graph "{" ".join(prompt)}"')
        cfg = single(job.cfg)
        if prompt:
            cfg = replace(cfg, graph=replace(cfg.graph, prompt=prompt[0]))
        graph = GraphStage(job.at(cfg)).pull()
        page = GraphPageStage(job.at(cfg)).pull()
        print_graph(job.observer, graph, page.path / page.facts["file"])

    return command


def same_job(command: str, job: Job) -> str:
    """Another command with this job's overrides, as one would type it."""
    from hydra.core.hydra_config import HydraConfig

    kept = [
        each
        for each in HydraConfig.get().overrides.task
        if not re.match(r"\+*(runtime\.sweep|l1_alpha)=", each) or each == f"l1_alpha={job.cfg.l1_alpha}"
    ]
    asked = any(re.match(r"\+*l1_alpha=", each) for each in HydraConfig.get().overrides.task)
    if asked and not any(each.startswith("l1_alpha=") for each in kept):
        kept.append(f"l1_alpha={job.cfg.l1_alpha:g}")
    return shlex.join(["saelink", command, *kept])


def swept() -> str:
    """The overrides that make this job differ from the others of its sweep."""
    from hydra.core.hydra_config import HydraConfig

    from saelink.errors import without_passwords

    overrides = HydraConfig.get().overrides.task
    said = (override.lstrip("+") for override in overrides if not override.startswith("runtime.sweep="))
    return without_passwords(" ".join(said))


EACH_PENALTY: tuple[Command, ...] = (run_all, run_train, run_evaluate, run_verify, run_export)
"""Commands that run once for each penalty of a list."""
