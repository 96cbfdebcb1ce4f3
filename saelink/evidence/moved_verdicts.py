"""What edges from moved latents claim against what taking the latents out does: the stage `moved_verdicts`.

A claim is about a source latent, whatever heads move it: the mean, over the queries it is moved to, of what the
prediction loses without all of its columns. Judged by the free reading, norms and pattern recomputed; the frozen one is
beside it, in which the weights that can be computed are exact by construction.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from saelink import memory
from saelink.connectors.base import Connector
from saelink.errors import SaelinkError
from saelink.evidence.claims import Claims, weights_of
from saelink.evidence.verdicts import FIGURES_FILE, NULLS_FILE, VERDICTS_FILE, VerifyFacts, judged, shuffled
from saelink.fit.train import TrainStage, fitted_connector, shape_of
from saelink.interventions.moved_effects import (
    NULLS,
    Means,
    MovedEffectsStage,
    load_means,
    load_moved_effects,
)
from saelink.job import Job, JobStage
from saelink.store.draft import Draft
from saelink.store.stage import Need

FROZEN_FILE = "frozen.json"


class MovedVerdictsStage(JobStage[VerifyFacts]):
    """The verdicts on the edges of the configured linear connector from moved latents, by effects on test documents.

    Files: `figures.json` and `edges.safetensors` as of VerdictsStage, an edge's `source` being the connector's column
    and its claim, effect and verdict those of the column's latent; `frozen.json`, the figures against effects with
    pattern and norms held; with `nulls` also `nulls.json`, those against effects that edges should not agree with.
    Raises SaelinkError for another link or connector.
    """

    name = "moved_verdicts"
    version = 3

    def __init__(self, job: Job, nulls: bool = True):
        super().__init__(job)
        if job.cfg.connector.name != "linear":
            raise SaelinkError(
                f"connector={job.cfg.connector.name}: of connectors from moved latents only linear ones are judged"
            )
        self._nulls = nulls
        self._train = TrainStage(job)
        self._effects = MovedEffectsStage(job)

    def recipe(self) -> dict[str, Any]:
        return {"strong": self.job.cfg.verify.strong}

    def inputs(self) -> dict[str, str]:
        inputs = {"connector": self._train.key, "effects": self._effects.key}
        return inputs | ({null: MovedEffectsStage(self.job, null=null).key for null in NULLS} if self._nulls else {})

    def about(self) -> str:
        return self._train.about()

    def need(self) -> Need:
        job, sources = self.job, self.job.encoded.d_source
        pairs, n_edges = sources * job.sides.d_target, self._train.pull().facts["n_edges"]
        needed = memory.verdicts(shape_of(job), n_edges, pairs, memory.PART_SOURCES, 0)  # all pairs, one part
        return Need(needed, "use SAEs with fewer latents")

    def make(self, draft: Draft) -> VerifyFacts:
        job, strong = self.job, self.job.cfg.verify.strong
        effects = self._effects.pull()
        free, frozen = (load_moved_effects(effects, reading) for reading in ("free", "frozen"))
        connector = fitted_connector(self._train.pull())
        claimed, ids = moved_claims(connector, load_means(effects)), connector.target_ids
        figures, tensors = judged(claimed, free, ids, strong)
        draft.save_json(FIGURES_FILE, figures)
        draft.save_json(FROZEN_FILE, judged(claimed, frozen, ids, strong)[0])
        if self._nulls:
            nulls = {null: load_moved_effects(MovedEffectsStage(job, null=null).pull()) for null in NULLS}
            against = {name: (claimed, null) for name, null in nulls.items()}
            against["shuffled pairs"] = shuffled(claimed, free.d_source), free
            figures_of = {name: judged(*pair, ids, strong)[0] for name, pair in against.items()}
            for name, (_, effects_of) in against.items():
                figures_of[name]["sources_ablated"] = int((effects_of.tokens.sum(0) > 0).sum())
            draft.save_json(NULLS_FILE, figures_of)
        draft.save_tensors(VERDICTS_FILE, by_column(tensors, connector, free.d_source))
        return cast("VerifyFacts", figures)


def moved_claims(connector: Connector, means: Means) -> Claims:
    """What the connector's predictions lose on average without all of a latent's columns."""
    assert len(connector.penalised()) == 1 and not connector.relu_output, "a linear connector"
    weights, d_target = weights_of(connector), connector.d_target
    unique: Any = torch.unique
    key, place = unique(weights.source % len(means.same) * d_target + weights.column, return_inverse=True)
    value = torch.zeros(len(key)).index_add_(0, place, weights.value * means.kept[weights.source])
    some = value != 0
    return Claims(key[some] // d_target, key[some] % d_target, value[some])


def by_column(tensors: dict[str, torch.Tensor], connector: Connector, d_source: int) -> dict[str, torch.Tensor]:
    """Verdicts on pairs of latents as verdicts on the connector's edges, whose sources are columns.

    A missed effect stands at the latent's first column.
    """
    weights, most = weights_of(connector), int(connector.target_ids.max()) + 1
    mine = weights.source % d_source * most + connector.target_ids[weights.column]
    judged_key = tensors["source"].long() * most + tensors["target"].long()
    ascending = judged_key.sort()
    at = torch.searchsorted(ascending.values, mine).clamp(max=max(len(judged_key) - 1, 0))
    there = (ascending.values[at] == mine) if len(judged_key) else torch.zeros(len(mine), dtype=torch.bool)
    pair, source = ascending.indices[at[there]], weights.source[there]
    order = pair.argsort(stable=True)  # as the pairs are, then by head
    found = {name: tensors[name][pair[order]] for name in ("target", "claim", "effect", "verdict")}
    return tensors | found | {"source": source[order].int()}
