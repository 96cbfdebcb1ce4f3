"""What a connector claims of the model's latents against what ablating them does: the stage `verify`.

A connector claims that target i loses  claim_ij  on average when source j goes: what its own prediction loses on the
tokens where j is active. For a linear map that is w_ij times j's mean activation there.
"""

from __future__ import annotations

from typing import Any, TypedDict, cast

from saelink.evidence.verdicts import FIGURES_FILE, NULLS_FILE, VERDICTS_FILE, claims, judged, shuffled
from saelink.fit.train import TrainStage, fitted_connector
from saelink.interventions.effects import EffectsStage, check_measurable, load_effects, measurable, nulls_of
from saelink.job import Job, JobStage
from saelink.latents.link import load_split
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft


class VerifyFacts(TypedDict):
    """What `figures.json` holds too; every figure of verdicts.judged, with _low and _high where it has an interval."""

    edges: int
    strong: int
    strong_suppressive: int
    missed: int
    missed_suppressive: int
    edges_confirmed: int
    precision_1x: float | None
    recall_10x: float | None
    slope_1x: float | None


class VerifyStage(JobStage[VerifyFacts]):
    """The verdicts on the edges of the configured connector.

    Files: `figures.json`; `nulls.json`, the same figures against effects that the edges should not agree with, those
    of effects.NULLS and "shuffled pairs", every source with the effects of another; `edges.safetensors` with, by
    claimed edge, `target`, `source`, `claim`, `effect` and `verdict` (a place in VERDICTS), and `missed_target`,
    `missed_source`, `missed_effect` for strong effects it lacks.
    Claims and effects are in units of the target's mean active value. Raises SaelinkError for a link whose effects
    can't be measured.
    """

    name = "verify"
    version = 4

    def __init__(self, job: Job):
        super().__init__(job)
        check_measurable(job.cfg)
        self._train = TrainStage(job)

    def recipe(self) -> dict[str, Any]:
        return {"strong": self.job.cfg.verify.strong}

    def inputs(self) -> dict[str, str]:
        nulls = {null: EffectsStage(self.job, null=null).key for null in nulls_of(self.job.cfg)}
        return {"connector": self._train.key, "effects": EffectsStage(self.job).key, **nulls}

    def about(self) -> str:
        return self._train.about()

    def make(self, draft: Draft) -> VerifyFacts:
        job, settings = self.job, self.job.cfg.verify
        measured = load_effects(EffectsStage(job).pull())
        connector = fitted_connector(self._train.pull())
        nulls = {null: EffectsStage(job, null=null).pull() for null in nulls_of(job.cfg)}
        ids = connector.target_ids  # on the CPU; `claims` moves the connector
        test = load_split(job.cfg, job.sides, "test", ids)
        claimed = claims(connector, measured, test, settings.tokens_per_source, job.device, job.observer)
        figures, tensors = judged(claimed, measured, ids, settings.strong)
        draft.save_json(FIGURES_FILE, figures)
        against = {name: load_effects(null) for name, null in nulls.items()} | {"shuffled pairs": shuffled(measured)}
        draft.save_json(
            NULLS_FILE, {name: judged(claimed, null, ids, settings.strong)[0] for name, null in against.items()}
        )
        draft.save_tensors(VERDICTS_FILE, tensors)
        return cast("VerifyFacts", figures)


def verified(job: Job) -> Artifact[VerifyFacts] | None:
    """The verdicts on the configured connector where they have been made."""
    return VerifyStage(job).find() if measurable(job.cfg) else None
