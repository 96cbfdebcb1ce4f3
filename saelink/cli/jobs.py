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
    from saelink.circuits.layers import hooks_over

    cache_hooks(job.cfg, job.store, hooks_over(job))


def run_sae(job: Job) -> None:
    from saelink.activations.cache import cache_hooks
    from saelink.circuits.layers import hooks_over
    from saelink.saes.choice import sae_choice
    from saelink.saes.training import SAEStage

    hooks = hooks_over(job)
    if job.cfg.layers is not None:  # one pass of the model for all that will be trained
        missing = [hook for hook in hooks if not sae_choice(job.cfg, job.store, hook).exists]
        missing = [hook for hook in missing if SAEStage(job.cfg, job.store, hook).find() is None]
        cache_hooks(job.cfg, job.store, missing)
    for hook in hooks:
        choice = sae_choice(job.cfg, job.store, hook)
        if not choice.exists:
            SAEStage(job.cfg, job.store, hook).pull()
        else:
            job.observer.say(f"sae: {hook} has one already ({choice.about}, {choice.where})")


def run_encode(job: Job) -> None:
    from saelink.circuits.layers import hooks_over
    from saelink.latents.encode import encode_hooks

    if job.cfg.layers is not None:
        encode_hooks(job.cfg, job.store, hooks_over(job))
        return
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
    from saelink.errors import SaelinkError
    from saelink.evidence.consequences import ConsequencesStage, chosen_edges
    from saelink.evidence.evaluate import EvaluateStage
    from saelink.evidence.joint_effects import JointStage
    from saelink.evidence.logic_trials import LogicTrialsStage
    from saelink.evidence.outlook import outlook
    from saelink.evidence.stability import Stability, StabilityStage, wanted
    from saelink.evidence.verify import VerifyStage
    from saelink.interventions.effects import EffectsStage, check_measurable, need_effects
    from saelink.interventions.moved_effects import moved_link
    from saelink.terminal.joint import print_joint
    from saelink.terminal.logic import print_trials
    from saelink.terminal.verdicts import print_consequences, print_verdicts

    if moved_link(job.cfg):
        run_moved_verify(job)
        return
    if job.cfg.verify.qk:
        raise SaelinkError(f"verify.qk=true link={job.cfg.link.name}: where heads look is tested with link=ov")
    check_measurable(job.cfg)
    chosen_edges(job)  # a mistake there gets its line before hours of work
    EffectsStage(job).check()
    if EffectsStage(job).find() is None:
        need_effects(job)
    own = job.cfg.eval.data is None  # logic and what is removed together are of the fit's own text
    if own:
        JointStage(job).check()
    if wanted(job.cfg):
        StabilityStage(job).check()
    with tracked(job) as (job, show):
        again = StabilityStage(job) if wanted(job.cfg) else None
        ahead = outlook(job)
        if ahead is not None:
            job.observer.say(ahead.text)
        verdicts, evaluation = VerifyStage(job).pull(), EvaluateStage(job).pull()
        stable = None if again is None else Stability(again.pull())
        trials = LogicTrialsStage(job).pull() if own else None
        joint = JointStage(job).pull() if own and job.cfg.verify.joint else None
        asked = job.cfg.verify.consequences or job.cfg.verify.chosen
        lost = ConsequencesStage(job).pull() if asked else None
        print_owed = outputs_of(job)
        print_verdicts(job.observer, verdicts, evaluation, stable)
        print_owed()
        if trials is not None:
            print_trials(job.observer, trials)
        if joint is not None:
            print_joint(job.observer, joint)
        if lost is not None:
            print_consequences(job.observer, lost)
        job.observer.say(f"\n  {verdicts.path}")
        show(fitted(job), evaluation, verdicts)


def outputs_of(job: Job) -> Callable[[], None]:
    """Measure what the output owes to the edges, and what verify.edges_checked and verify.pruned_tokens ask for.

    Returns what prints it.
    """
    from saelink.evidence.edge_removals import EdgeRemovalsStage
    from saelink.evidence.effectiveness import EffectivenessStage, check_edges, has_outputs
    from saelink.evidence.pruned import PrunedStage
    from saelink.terminal.outputs import print_outputs

    settings = job.cfg.verify
    if not has_outputs(job.cfg):
        if settings.edges_checked or settings.pruned_tokens:
            check_edges(job)
        return lambda: None
    outputs = EffectivenessStage(job).pull()
    removed = EdgeRemovalsStage(job).pull() if settings.edges_checked else None
    pruned = PrunedStage(job).pull() if settings.pruned_tokens else None
    return lambda: print_outputs(job.observer, outputs, removed, pruned)


def run_moved_verify(job: Job) -> None:
    from saelink.evidence.evaluate import EvaluateStage
    from saelink.evidence.moved_verdicts import MovedVerdictsStage
    from saelink.interventions.moved_effects import MovedEffectsStage
    from saelink.terminal.verdicts import print_verdicts

    stage, effects = MovedVerdictsStage(job), MovedEffectsStage(job)
    if effects.find() is None:
        effects.need_ahead()  # before hours of work
    with tracked(job) as (job, show):
        verdicts, evaluation = stage.pull(), EvaluateStage(job).pull()
        print_looks = looks_of(job) if job.cfg.verify.qk else None
        print_verdicts(job.observer, verdicts, evaluation, None)
        if print_looks is not None:
            print_looks()
        job.observer.say(f"\n  {verdicts.path}")
        show(fitted(job), evaluation, verdicts)


def looks_of(job: Job) -> Callable[[], None]:
    """Test the pairs of latents that decide where the layer's heads look; returns what prints it."""
    from saelink.looks.deletions import QKDeletionsStage
    from saelink.looks.stage import QKTargetsStage, before_attention, found_or_made
    from saelink.terminal.qk import print_tested

    looking = before_attention(job)
    qk = found_or_made(looking)
    deletions, targets = QKDeletionsStage(looking, qk).pull(), QKTargetsStage(looking, qk).pull()
    return lambda: print_tested(job.observer, qk, deletions, targets)


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
        from saelink.plan.layers import planned_over
        from saelink.plan.rates import measured_rates
        from saelink.plan.steps import planned
        from saelink.runtime import device_of
        from saelink.terminal.plan import print_plan, print_plan_json

        device_of(job.cfg)  # its threads
        how = planned if job.cfg.layers is None else planned_over
        found = how(job, measured_rates(job.store.root))
        (print_plan_json if as_json else print_plan)(job.observer, found)

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

EACH_LAYER: tuple[Command, ...] = (run_train, run_evaluate, run_verify)
"""Commands that run once for each of several layers."""

ALL_LAYERS = ("cache", "sae", "encode", "graph", "intervene", "circuit", "plan")
"""Commands that take several layers together, by name."""
