"""One of every stage on a small world, in an order in which each finds what it is made from."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import saelink
from saelink.activations.cache import CacheStage
from saelink.activations.norms import NormsStage
from saelink.activations.tokens import TokensStage
from saelink.attention.ov import OVStage
from saelink.attention.stage import MovedStage
from saelink.circuits.ancestors import CircuitStage
from saelink.circuits.intervene import InterventionStage
from saelink.circuits.stage import LayersGraphStage
from saelink.evidence.consequences import ConsequencesStage
from saelink.evidence.edge_removals import EdgeRemovalsStage
from saelink.evidence.edges import EdgesStage
from saelink.evidence.effectiveness import EffectivenessStage
from saelink.evidence.evaluate import EvaluateStage
from saelink.evidence.hidden_units import HiddenUnitsStage
from saelink.evidence.joint_effects import JointStage
from saelink.evidence.logic_trials import LogicTrialsStage
from saelink.evidence.moved_cards import MovedCardsStage
from saelink.evidence.moved_verdicts import MovedVerdictsStage
from saelink.evidence.protocol import CircuitTestsStage
from saelink.evidence.pruned import PrunedStage
from saelink.evidence.stability import StabilityStage
from saelink.evidence.token_ablation import AblationsStage
from saelink.evidence.transcoder import TranscoderStage
from saelink.evidence.verify import VerdictsStage, VerifyStage
from saelink.experiments import EXPERIMENTS
from saelink.experiments.base import ExperimentStage
from saelink.fit.products.dense import GramStage
from saelink.fit.train import TrainStage
from saelink.interventions.cross_entropy import BaselinesStage
from saelink.interventions.effects import NULLS, EffectsStage
from saelink.interventions.moved_effects import NULLS as MOVED_NULLS
from saelink.interventions.moved_effects import MovedEffectsStage
from saelink.interventions.oracle import OracleStage
from saelink.interventions.sae_losses import SAELossesStage
from saelink.job import Job
from saelink.latents.encode import EncodeStage
from saelink.latents.examples import ExamplesStage
from saelink.latents.top_tokens import TopTokensStage
from saelink.looks.deletions import QKDeletionsStage
from saelink.looks.stage import QKStage, QKTargetsStage, before_attention
from saelink.model.vocabulary import VocabularyStage
from saelink.report.prompt import GraphPageStage
from saelink.report.stage import ReportStage
from saelink.saes.training import SAEStage
from saelink.share.blind import BlindStage
from saelink.share.export import ExportStage
from saelink.share.graph.stage import GraphStage
from saelink.store.stage import Stage

PROMPT = "graph.prompt=the old king sat on the mat"

LAYERS = (
    "layers=0-1",
    PROMPT,
    "layer=1",
    "solver=exact",
    "l1_alpha=1e-3",
    "circuit.attention=false",
    "circuit.sequences=4",
)


HIDDEN = (
    "connector=mlp",
    "connector.d_hidden=8",
    "solver=adam",
    "solver.tokens=4096",
    "solver.batch_tokens=256",
    "l1_alpha=0",
)


@dataclass(frozen=True)
class Made:
    """A stage and the settings that it is made with."""

    name: str
    build: Callable[[Job], Any]
    words: tuple[str, ...] = ()


def _test(job: Job) -> Any:
    """The circuit of the first target that has one."""
    from saelink.evidence.verdicts import REFUTED, Verdicts

    verdicts = Verdicts(VerdictsStage(job).pull())
    target = next(t for t in verdicts.targets() if set(verdicts.into(t).values()) - set(REFUTED))
    return CircuitTestsStage(job, [target])


def _hook(stage: Any, which: str) -> Callable[[Job], Any]:
    return lambda job: stage(job.cfg, job.store, job.link.sources[0] if which == "source" else job.link.target)


def _shown(job: Job) -> Any:
    return AblationsStage(job, job.sides.target, [0, 1, 2])


def _targets(job: Job) -> Any:
    return QKTargetsStage(job, QKStage(job, 0).pull())


def _deletions(job: Job) -> Any:
    return QKDeletionsStage(job, QKStage(job, 0).pull())


CHAIN = [
    Made("tokens", lambda job: TokensStage(job.cfg, job.store)),
    *(Made("cache", _hook(CacheStage, which)) for which in ("source", "target")),
    *(Made("encode", _hook(EncodeStage, which)) for which in ("source", "target")),
    Made("gram", GramStage),
    Made("train", TrainStage),
    Made("vocabulary", lambda job: VocabularyStage(job.cfg, job.store, job.model)),
    *(Made("top_tokens", _hook(TopTokensStage, which)) for which in ("source", "target")),
    Made("evaluate", EvaluateStage),
    Made("effects", EffectsStage),
    Made("verdicts", VerdictsStage),
    *(Made("effects", lambda job, null=null: EffectsStage(job, null=null)) for null in NULLS),
    Made("verify", VerifyStage),
    Made("edges", EdgesStage),
    Made("stability", StabilityStage),
    Made("logic_trials", LogicTrialsStage),
    Made("joint", JointStage),
    Made("effectiveness", EffectivenessStage),
    Made("edge_removals", EdgeRemovalsStage, ("verify.edges_checked=5", "verify.check_tokens=64")),
    Made("pruned", PrunedStage, ("verify.pruned_tokens=64",)),
    Made("consequences", ConsequencesStage, ("verify.consequences=2",)),
    Made("circuit_tests", _test),
    *(Made("examples", _hook(ExamplesStage, which)) for which in ("source", "target")),
    Made("ablations", _shown),
    Made("blind", BlindStage),
    Made("oracle", OracleStage),
    Made("ce", BaselinesStage),
    Made("sae_losses", SAELossesStage),
    Made("transcoder", TranscoderStage),
    Made("report", ReportStage, ("report.l1_alphas=[]", "report.ablated=0")),
    Made("export", ExportStage),
    Made("graph", GraphStage, (PROMPT,)),
    Made("graph_page", GraphPageStage, (PROMPT,)),
    Made("norms", lambda job: NormsStage(job.cfg, job.store)),
    Made("experiment", lambda job: ExperimentStage(job, EXPERIMENTS["noise_threshold"])),
    Made("edges", EdgesStage, HIDDEN),
    Made("hidden", HiddenUnitsStage, HIDDEN),
    Made(
        "sae",
        _hook(SAEStage, "target"),
        ("sae=train", "sae.path=null", "sae.d_sae=48", "sae.k=4", "sae.batch_tokens=256"),
    ),
]
"""Those of a link within a layer; `connector=mlp` finds its own fit."""

ATTENTION = [
    Made("moved", lambda job: MovedStage(job.cfg, job.store, 0), ("link=ov",)),
    Made("ov", lambda job: OVStage(job.cfg, job.store), ("link=ov",)),
    Made("moved_effects", MovedEffectsStage, ("link=ov",)),
    *(
        Made("moved_effects", lambda job, null=null: MovedEffectsStage(job, null=null), ("link=ov",))
        for null in MOVED_NULLS
    ),
    Made("moved_verdicts", MovedVerdictsStage, ("link=ov",)),
    Made("moved_cards", MovedCardsStage, ("link=ov",)),
    Made("qk", lambda job: QKStage(before_attention(job), 0)),
    Made("qk_targets", lambda job: _targets(before_attention(job))),
    Made("qk_deletions", lambda job: _deletions(before_attention(job))),
]

SEVERAL = [
    Made("layers_graph", LayersGraphStage),
    Made("intervention", lambda job: InterventionStage(job, ["IF0@L1=0"])),
    Made("circuit", lambda job: CircuitStage(job, "OF0@L1")),
]
"""Those over several layers, all with LAYERS."""


def every_stage() -> set[type[Stage[Any]]]:
    """All stages that there are: whatever is one and can be made."""
    for module in pkgutil.walk_packages(saelink.__path__, "saelink."):
        if not module.name.startswith(("saelink.kernels.", "saelink.__main__")):
            importlib.import_module(module.name)
    found, waiting = set[type[Stage[Any]]](), [Stage]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            waiting.append(kind)
            if kind.__module__.startswith("saelink.") and "name" in vars(kind):
                found.add(kind)
    return found
