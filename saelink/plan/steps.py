"""A job's stages in the order they are made, which of them are done, and what the others cost."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from saelink.activations.cache import CacheStage
from saelink.activations.tokens import TokensFacts, TokensStage
from saelink.attention.ov import OVStage
from saelink.attention.stage import MovedStage
from saelink.config.check import l1_alphas
from saelink.config.evidence import AblationValue
from saelink.config.schema import Config
from saelink.config.size import gigabytes
from saelink.errors import SaelinkError
from saelink.evidence.consequences import ConsequencesStage
from saelink.evidence.edge_removals import EdgeRemovalsStage
from saelink.evidence.edges import EdgesStage
from saelink.evidence.effectiveness import EffectivenessStage, has_outputs
from saelink.evidence.evaluate import EvaluateStage
from saelink.evidence.joint_effects import JointStage
from saelink.evidence.logic_trials import LogicTrialsStage
from saelink.evidence.moved_cards import MOST as MOST_LOOKED_AT
from saelink.evidence.moved_cards import MovedCardsStage
from saelink.evidence.moved_verdicts import MovedVerdictsStage
from saelink.evidence.pruned import PrunedStage
from saelink.evidence.stability import StabilityStage, wanted
from saelink.evidence.verify import MOST_PAIRS, VerdictsStage, VerifyStage
from saelink.fit.products.dense import GramStage
from saelink.fit.products.sparse import ProductsStage
from saelink.fit.solvers import SOLVERS
from saelink.fit.train import TrainStage
from saelink.interventions.cross_entropy import BaselinesStage
from saelink.interventions.effects import EffectsStage, measurable, nulls_of
from saelink.interventions.moved_effects import NULLS as MOVED_NULLS
from saelink.interventions.moved_effects import MovedEffectsStage, moved_link
from saelink.interventions.oracle import OracleStage
from saelink.job import Job
from saelink.latents.encode import EncodeStage
from saelink.latents.examples import ExamplesStage
from saelink.latents.link import moved_forms
from saelink.model.describe import model_plan
from saelink.plan.causal import CausalCosts
from saelink.plan.costs import Cost, Costs
from saelink.plan.moved import MovedCosts
from saelink.plan.rates import Rates
from saelink.plan.sizes import sizes_of
from saelink.runtime import memory_when_fresh
from saelink.saes.training import SAEStage
from saelink.store.artifact import Artifact
from saelink.store.recipe import Plan
from saelink.store.store import Store


class Found(Store):
    """A store in which things are found and nothing is made."""

    def drafts(self, plans: list[Plan], *, resumable: bool = False, shared: bool = False) -> Any:
        raise SaelinkError(f"{plans[0].stage} {plans[0].key} is missing")


class Step(NamedTuple):
    """One stage of the job."""

    command: str
    """What makes it: `run` or `verify`, over several layers `graph` or `circuit`."""
    stage: str
    what: str
    cost: Cost
    done: bool


class Planned(NamedTuple):
    """What a job takes."""

    steps: list[Step]
    rates: Rates
    remarks: list[str]
    """What had to be guessed, what won't fit, and what is not counted."""

    @property
    def commands(self) -> list[str]:
        """What makes the steps, in this order."""
        return list(dict.fromkeys(step.command for step in self.steps))

    def total(self, command: str | None = None) -> Cost:
        """Of what is missing, of one command or of both: tokens and seconds and disk in all, memory at its highest."""
        costs = [step.cost for step in self.steps if not step.done and command in (None, step.command)]
        most = max((cost.memory for cost in costs), default=0.0)
        return Cost(0, sum(cost.disk for cost in costs), most, sum(cost.seconds for cost in costs))


Find = Callable[[], Any]
"""The artifact that a step would make, if it is there."""


def planned(job: Job, rates: Rates, look: bool = True) -> Planned:
    """What the job's `saelink run` and `saelink verify` take, stage by stage; nothing is made or fetched for it.
    Of several layers see plan.layers.

    With `look` what is made already is done; without, nothing is asked of the hub or this machine.

    Raises SaelinkError for a model that nothing is known of.
    """
    cfg, remarks = replace(job.cfg, l1_alpha=l1_alphas(job.cfg.l1_alpha)[0]), list[str]()
    store = Found(job.store.root)
    job = Job(cfg, store)
    described, tokens = None, None
    if look:
        described, tokens = counted(job, remarks)
    sizes = sizes_of(cfg, described, None if tokens is None else tokens.facts["tokens"], remarks, look and not remarks)
    costs = Costs(cfg, sizes, rates)
    steps = Steps(job, described, remarks)
    steps.add("model", cfg.model.label, costs.model(), lambda: described)
    steps.add("tokens", cfg.data.label, costs.tokens(), lambda: tokens)
    if not all(encoded(steps, job, costs)):  # so nothing behind them is there, and naming it would make them
        steps.close()
    fitted(steps, job, costs)
    _evaluated(steps, job, costs)
    if moved_link(cfg):
        if judged_through_heads(cfg):
            _moved_effects(steps, job, costs)
    elif measurable(cfg):
        judged = cfg.eval.verify
        if judged is None:
            judged = sizes.d_source * sizes.d_target <= MOST_PAIRS
        effects = "run" if judged else "verify"
        steps.add("effects", "what ablations do", costs.effects(), lambda: EffectsStage(job).find(), effects)
        steps.add("verdicts", "of all edges", costs.verdicts(), lambda: VerdictsStage(job).find(), effects)
    for i, hook in enumerate(sizes.hooks):
        steps.add("examples", within(hook), costs.examples(i), partial(_find, ExamplesStage, job, hook))
    steps.add("oracle", "test documents", costs.oracle(), lambda: OracleStage(job).find())
    steps.add("edges", "logic, clusters", costs.edges(), lambda: EdgesStage(job).find())
    if cfg.link.sources == ["ov"] and sizes.d_source * sizes.d_target <= MOST_LOOKED_AT:
        moved = MovedCosts(costs)
        steps.add("ov", "computed edges", moved.ov(), lambda: OVStage(cfg, store).find())
        steps.add("moved_cards", "the strongest", moved.cards(), lambda: MovedCardsStage(job).find())
    steps.add("report", "the page, penalties", costs.report(), lambda: None)
    if measurable(cfg):
        _verified(steps, job, costs)
    found = Planned(steps.steps, rates, remarks)
    remarks += left_out(cfg)
    if look:
        warn(job, found, costs)
    return found


def judged_through_heads(cfg: Config) -> bool:
    """Whether `saelink verify` takes a link from moved latents: of linear connectors, ablated to zero."""
    return cfg.connector.name == "linear" and cfg.verify.ablation is AblationValue.zero


def left_out(cfg: Config) -> list[str]:
    """In a line what this job would do besides and is not in its plan."""
    lines: list[str] = []
    if moved_link(cfg) and not judged_through_heads(cfg):
        lines.append(f"link={cfg.link.name}: saelink verify takes linear connectors and verify.ablation=zero alone")
    if cfg.verify.qk:
        lines.append("verify.qk=true: where heads look, and its tests, are not counted")
    if cfg.experiment.names:
        names = ", ".join(cfg.experiment.names)
        lines.append(
            f"experiment.names=[{names}]: an experiment's fits are not counted; it says their number when it runs"
        )
    return lines


def _moved_effects(steps: Steps, job: Job, costs: Costs) -> None:
    """Effects through attention."""
    moved, command = MovedCosts(costs), "run" if job.cfg.eval.verify else "verify"
    steps.add("moved_effects", "what ablations do", moved.effects(), lambda: MovedEffectsStage(job).find(), command)
    for null in MOVED_NULLS:
        steps.add("moved_effects", null, moved.effects(True), partial(_moved_null, job, null), command)
    steps.add("moved_verdicts", "of all edges", moved.verdicts(), lambda: MovedVerdictsStage(job).find(), command)


def _verified(steps: Steps, job: Job, costs: Costs) -> None:
    """What `saelink verify` adds."""
    cfg, settings, tests = job.cfg, job.cfg.verify, CausalCosts(costs)
    for null in nulls_of(cfg):
        steps.add("effects", null, costs.effects(True), partial(_null, job, null), "verify")
    steps.add("verify", "against chance", costs.verdicts(), lambda: VerifyStage(job).find(), "verify")
    if wanted(cfg):
        steps.add("stability", "fits on halves", costs.stability(), lambda: StabilityStage(job).find(), "verify")
    if cfg.eval.data is None:
        steps.add("logic_trials", "named logic", tests.logic_trials(), lambda: LogicTrialsStage(job).find(), "verify")
        if settings.joint:
            steps.add("joint", "several sources", tests.joint(), lambda: JointStage(job).find(), "verify")
    if settings.consequences or settings.chosen:
        lost = tests.consequences()
        steps.add("consequences", "the next token", lost, lambda: ConsequencesStage(job).find(), "verify")
    if has_outputs(cfg):
        owed = costs.outputs()
        steps.add("effectiveness", "of all edges", owed, lambda: EffectivenessStage(job).find(), "verify")
        if settings.edges_checked:
            removed = tests.edge_removals()
            steps.add("edge_removals", "single edges", removed, lambda: EdgeRemovalsStage(job).find(), "verify")
        if settings.pruned_tokens:
            steps.add("pruned", "all but the best", tests.pruned(), lambda: PrunedStage(job).find(), "verify")


def counted(job: Job, remarks: list[str]) -> tuple[Artifact[Any] | None, Artifact[TokensFacts] | None]:
    """The described model and the counted tokens, where they are there."""
    described, tokens = None, None
    with _known(remarks):
        described = job.store.find(model_plan(job.cfg))
        tokens = None if described is None else TokensStage(job.cfg, job.store).find()
    return described, tokens


def within(hook: str) -> str:
    """A hook's name without what all have: 1.hook_mlp_out."""
    return hook.removeprefix("blocks.")


def _find(stage: Any, job: Job, hook: str) -> Any:
    return stage(job.cfg, job.store, hook).find()


def _null(job: Job, null: str) -> Any:
    return EffectsStage(job, null=null).find()


def _moved_null(job: Job, null: str) -> Any:
    return MovedEffectsStage(job, null=null).find()


def _moved(job: Job, place: int) -> Any:
    return MovedStage(job.cfg, job.store, place).find()


def encoded(steps: Steps, job: Job, costs: Costs, command: str = "run") -> list[bool]:
    """Activations, SAEs and latents; of each hook, then of each source that heads move, whether latents are there."""
    cfg, hooks = job.cfg, costs.sizes.hooks
    latents = [steps.is_done(partial(_find, EncodeStage, job, hook)) for hook in hooks]
    cached = [steps.is_done(partial(_find, CacheStage, job, hook)) for hook in hooks]
    through = [i for i, there in enumerate(cached) if not there] or list(range(len(hooks)))
    names = ", ".join(within(hooks[i]) for i in through) + (", streamed" if cfg.stream else "")
    done = all(cached) or (cfg.stream and all(latents))
    steps.add("cache", names, costs.cache(through), lambda: True if done else None, command)
    for i, hook in enumerate(hooks):
        if costs.sizes.trained[i]:
            steps.add("sae", within(hook), costs.sae(i), partial(_find, SAEStage, job, hook), command)
    for i, hook in enumerate(hooks):
        steps.add("encode", within(hook), costs.encode(i), partial(_find, EncodeStage, job, hook), command)
    through_heads = [place for place, form in enumerate(moved_forms(cfg)) if form]
    for i, place in enumerate(through_heads):
        find, hook = partial(_moved, job, place), hooks[costs.sizes.reads[place][0]]
        latents.append(steps.is_done(find))
        steps.add("moved", f"{within(hook)}, by heads", MovedCosts(costs).moved(i), find, command)
    return latents


def fitted(steps: Steps, job: Job, costs: Costs, command: str = "run", layer: str = "") -> None:
    """What the fit is made from, and the fit; `layer` is said with each."""
    cfg = job.cfg
    solver = f"{layer}{cfg.connector.name} by {cfg.solver.name}"
    if SOLVERS[cfg.solver.name](cfg.solver).uses_effects:
        measured = costs.effects(split="train")
        steps.add("effects", f"{layer}on training text", measured, lambda: EffectsStage(job, "train").find(), command)
    if costs.wide:
        steps.add("products", f"{layer}pairs that meet", costs.products(), lambda: ProductsStage(job).find(), command)
    elif costs.gram:
        steps.add("gram", f"{layer}products", costs.products(), lambda: GramStage(job).find(), command)
    steps.add("train", solver, costs.train(), lambda: TrainStage(job).find(), command)


def _evaluated(steps: Steps, job: Job, costs: Costs) -> None:
    if job.cfg.eval.ce:
        steps.add("ce", "what it is compared with", costs.losses(), lambda: BaselinesStage(job).find())
    steps.add("evaluate", "test documents", costs.evaluate(), lambda: EvaluateStage(job).find())


class _known:
    """Keeps what can't be told, because something is out of reach, as a remark; once."""

    def __init__(self, remarks: list[str]):
        self._remarks = remarks

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, SaelinkError):
            return False
        if not any(line.startswith("what is made already") for line in self._remarks):
            reason = str(error).split(";")[0]
            self._remarks.append(f"what is made already can't be told: {reason}")
        return True


class Steps:
    """The steps so far."""

    def __init__(self, job: Job, described: Artifact[Any] | None, remarks: list[str]):
        self.job, self._described, self._remarks = job, described, remarks
        self.steps: list[Step] = []

    def close(self) -> None:
        """From now on nothing is there."""
        self._described = None

    def is_done(self, find: Find) -> bool:
        """Whether there is such an artifact; without a described model there is nothing to find."""
        if self._described is None:
            return False
        with _known(self._remarks):
            return find() is not None
        return False

    def add(self, stage: str, what: str, cost: Cost, find: Find, command: str = "run") -> None:
        self.steps.append(Step(command, stage, what, cost, self.is_done(find)))


def warn(job: Job, found: Planned, costs: Costs) -> None:
    """Say what won't fit into memory or on the disk, and what has to be fetched first."""
    room = memory_when_fresh()
    for step in found.steps:
        if room is not None and not step.done and step.cost.memory > room:
            found.remarks.append(
                f"{step.stage} ({step.what}) needs about {gigabytes(step.cost.memory)} of memory and "
                f"{gigabytes(room)} can be had: it may be refused"
            )
    left = _disk_left(job)
    if left is not None and found.total().disk > left:
        found.remarks.append(f"{gigabytes(found.total().disk)} are to be written and {gigabytes(left)} are free")
    if job.cfg.model.source.name == "hub" and not found.steps[0].done:
        size = gigabytes(2.0 * costs.sizes.model.parameters)
        found.remarks.append(f"the hub sends about {size} of weights (16 bits each), and the text; not in these times")


def _disk_left(job: Job) -> int | None:
    import shutil

    folder = job.store.root.absolute()
    while not folder.exists():
        folder = folder.parent
    with suppress(OSError):
        return shutil.disk_usage(folder).free
    return None
