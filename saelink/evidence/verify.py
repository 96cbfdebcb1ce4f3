"""What a connector claims of the model's latents against what ablating them does: the stage `verify`.

A connector claims that target i loses  claim_ij  on average when source j goes: what its own prediction loses on the
tokens where j is active. For a linear map that is w_ij times j's mean activation there.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from saelink import memory
from saelink.evidence.claims import WAY_OUT, Claims, claims, claims_bytes, need_claims
from saelink.evidence.moved_verdicts import MovedVerdictsStage
from saelink.evidence.saturation import causes, saturated
from saelink.evidence.verdicts import FIGURES_FILE, NULLS_FILE, VERDICTS_FILE, VerifyFacts, judged, shuffled
from saelink.fit.train import TrainFacts, TrainStage, fitted_connector, shape_of
from saelink.interventions.effects import (
    NULLS,
    EffectsStage,
    check_measurable,
    load_effects,
    measurable,
    nulls_of,
)
from saelink.interventions.moved_effects import moved_link
from saelink.interventions.pairs import Effects
from saelink.job import Job, JobStage
from saelink.latents.link import load_split
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.stage import Need


class VerdictsStage(JobStage[VerifyFacts]):
    """The verdicts on the edges of the configured connector, by effects on test documents.

    Files: `figures.json`; `edges.safetensors` with, by claimed edge, `target`, `source`, `claim`, `effect` and
    `verdict` (a place in VERDICTS), and `missed_target`, `missed_source`, `missed_effect` for strong effects it lacks.
    Claims and effects are in units of the target's mean active value. Raises SaelinkError for a link whose effects
    can't be measured.
    """

    name = "verdicts"
    version = 3

    def __init__(self, job: Job):
        super().__init__(job.measured)
        check_measurable(job.cfg)
        self._train = TrainStage(self.job)

    def recipe(self) -> dict[str, Any]:
        return {"strong": self.job.cfg.verify.strong}

    def inputs(self) -> dict[str, str]:
        return {"connector": self._train.key, "effects": EffectsStage(self.job).key}

    def about(self) -> str:
        return self._train.about() + ("" if self.job.fitted is None else f", on {self.job.cfg.data.label}")

    def need(self) -> Need:
        job, sides = self.job, self.job.sides
        pairs, n_edges = EffectsStage(job).pull().facts["pairs"], self._train.pull().facts["n_edges"]
        needed = memory.verdicts(shape_of(job.fit), n_edges, pairs, sides.d_source, sides.split_bytes("test"))
        return Need(needed + claims_bytes(job), WAY_OUT)

    def pull(self) -> Artifact[VerifyFacts]:
        if self.find() is None:
            need_claims(self.job)
        return super().pull()

    def make(self, draft: Draft) -> VerifyFacts:
        measured = load_effects(EffectsStage(self.job).pull())
        claimed, ids = claims_of(self.job, self._train.pull(), measured)
        figures, tensors = judged(claimed, measured, ids, self.job.cfg.verify.strong)
        draft.save_json(FIGURES_FILE, figures)
        draft.save_tensors(VERDICTS_FILE, tensors)
        return cast("VerifyFacts", figures)


def claims_of(job: Job, train: Artifact[TrainFacts], measured: Effects) -> tuple[Claims, torch.Tensor]:
    """What a connector claims, see `claims.claims`, and the numbers [d_target] of the targets that it explains."""
    connector = fitted_connector(train)
    ids = connector.target_ids  # on the CPU; `claims` moves the connector
    test = load_split(job.cfg, job.sides, "test", ids)
    settings = job.cfg.verify
    found = claims(connector, measured, test, settings.tokens_per_source, job.device, job.observer, settings.ablation)
    return found, ids


class VerifyStage(VerdictsStage):
    """The verdicts, and what they would be by chance.

    Files: those of `VerdictsStage`; `nulls.json`, the same figures against effects that the edges should not agree
    with, those of effects.NULLS (of permuted decoders also `saturated`, see saturation) and "shuffled pairs", every
    source with the effects of another, and in each `sources_ablated`, how many sources it is measured on. Raises
    SaelinkError for a link whose effects can't be measured.
    """

    name = "verify"
    version = 7

    def inputs(self) -> dict[str, str]:
        nulls = {null: EffectsStage(self.job, null=null).key for null in nulls_of(self.job.cfg)}
        return {**super().inputs(), "verdicts": VerdictsStage(self.job).key, **nulls}

    def make(self, draft: Draft) -> VerifyFacts:
        job, strong = self.job, self.job.cfg.verify.strong
        verdicts = VerdictsStage(job).pull()
        measured = load_effects(EffectsStage(job).pull())
        nulls = {null: EffectsStage(job, null=null).pull() for null in nulls_of(job.cfg)}
        claimed, ids = claims_of(job, self._train.pull(), measured)
        draft.save_json(FIGURES_FILE, verdicts.json(FIGURES_FILE))
        figures: dict[str, dict[str, Any]] = {}
        for name, null in nulls.items():
            figures[name] = judged(claimed, load_effects(null), ids, strong)[0]
            figures[name]["sources_ablated"] = null.facts["sources"]
        null = figures[NULLS[0]]
        null["saturated"] = saturated(verdicts.json(FIGURES_FILE), null)
        strongest = verdicts.tensors(VERDICTS_FILE)["source"].long()[: max(null["sources_judged"], 1)]
        if len(strongest):
            null |= causes(job, measured, strongest)
        figures["shuffled pairs"] = judged(shuffled(claimed, measured.d_source), measured, ids, strong)[0]
        figures["shuffled pairs"]["sources_ablated"] = measured.d_source
        draft.save_json(NULLS_FILE, figures)
        draft.save_tensors(VERDICTS_FILE, verdicts.tensors(VERDICTS_FILE))
        return verdicts.facts


def verdicts_stage(job: Job) -> JobStage[VerifyFacts]:
    """The verdicts on the configured connector; of a link from moved latents by their own effects."""
    return MovedVerdictsStage(job) if moved_link(job.cfg) else VerdictsStage(job)


def verified(job: Job) -> Artifact[VerifyFacts] | None:
    """What `saelink verify` found of the configured connector, where it was asked."""
    if moved_link(job.cfg):
        return MovedVerdictsStage(job).find() if job.cfg.connector.name == "linear" else None
    return VerifyStage(job).find() if measurable(job.cfg) else None


MOST_PAIRS = 5792**2
"""Pairs of latents whose effects are measured without being asked for."""


def judges(job: Job) -> bool:
    """Whether the job's edges get verdicts: eval.verify, and by itself where effects can be measured and are small."""
    wanted = job.cfg.eval.verify
    if wanted is not None or not measurable(job.cfg):
        return bool(wanted)
    return job.sides.d_source * job.sides.d_target <= MOST_PAIRS


def has_verdicts(job: Job) -> bool:
    """Whether the job's edges have verdicts, or will: they get some, or were verified before."""
    return judges(job) or verified(job) is not None


def verdicts_of(job: Job) -> Artifact[VerifyFacts] | None:
    """The verdicts on the configured connector, made where they are missing; None where it gets none, see `judges`.

    What `saelink verify` found, if it was asked: it holds the same verdicts.
    """
    return verified(job) or (verdicts_stage(job).pull() if judges(job) else None)
