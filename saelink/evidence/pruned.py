"""Cross-entropy of the model without the least of a graph's edges, by four orders of them: the stage `pruned`.

What the pruned edges write (weight times activation along the target's decoder direction) is taken out of the target
hook; the model's other activations stay its own, so that with all edges kept nothing changes. Orders by effectiveness
and helpfulness are estimated on the first test tokens, and the model is run on others if there are enough.
"""

from __future__ import annotations

from typing import Any, TypedDict

import torch

from saelink import memory
from saelink.evidence.effectiveness import OUTPUTS_FILE, EffectivenessStage, check_edges
from saelink.fit.train import TrainStage, fitted_connector, shape_of
from saelink.interventions.edge_gradients import Contributions, GraphEdges, graph_edges
from saelink.interventions.effects import EffectsStage, load_effects, measurable
from saelink.interventions.pairs import Effects
from saelink.interventions.predictions import CLEAN, Replaced, by_documents, compared, prediction_figures
from saelink.interventions.splice import LOGITS_TOKENS, Splice, SplicedTokens, spliced_tokens
from saelink.job import Job, JobStage
from saelink.store.draft import Draft
from saelink.store.stage import Need

PRUNED_FILE = "pruned.json"

SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0)
"""Of the edges, that are kept."""

ORDERS = ("weight", "effect", "effectiveness", "helpfulness")
"""What is kept first: the largest |weight|; |effect| of ablating the source, in units of the latents' scales, times the
share of tokens it is active on; effectiveness; helpfulness, the most harmful last."""


class PrunedFacts(TypedDict):
    edges: int
    tokens: int
    shared: int
    """Of these, tokens that the estimates are from too, where the text has too few others."""


class PrunedStage(JobStage[PrunedFacts]):
    """The prune curves of the configured connector's edges, on verify.pruned_tokens test tokens.

    File `pruned.json`: a list with, for each order and share kept, `order`, `kept` (share), `edges`, and in nats
    `cost`, the rise of the cross-entropy, and `kl`, each with `_low` and `_high` (95%, bootstrap over documents); and
    `top1`.
    """

    name = "pruned"
    version = 1

    def __init__(self, job: Job):
        super().__init__(job.measured)
        self._train, self._outputs = TrainStage(self.job), EffectivenessStage(self.job)

    def recipe(self) -> dict[str, Any]:
        return {"tokens": self.job.cfg.verify.pruned_tokens, "bootstrap": self.job.cfg.eval.bootstrap}

    def inputs(self) -> dict[str, str]:
        effects = {"effects": EffectsStage(self.job).key} if measurable(self.job.cfg) else {}
        return {"connector": self._train.key, "outputs": self._outputs.key, **effects}

    def about(self) -> str:
        return self._train.about()

    def check(self) -> None:
        check_edges(self.job)

    def need(self) -> Need:
        job, tokens, sides = self.job, self.job.cfg.verify.pruned_tokens, self.job.sides
        pairs = EffectsStage(job).pull().facts["pairs"] if measurable(job.cfg) else 0
        n_edges, context = self._train.pull().facts["n_edges"], sides.target.facts["context_size"]
        step = max(LOGITS_TOKENS, context)
        needed = memory.losses(job.size, sides.sizes[1], tokens, step, context) + sides.split_bytes("test")
        needed += memory.pruned(sides.sizes[1], n_edges, pairs, sides.d_source, tokens, len(SHARES))
        needed += 8.0 * shape_of(job).weights
        return Need(needed, "use fewer tokens (verify.pruned_tokens), or leave it out (verify.pruned_tokens=0)")

    def make(self, draft: Draft) -> PrunedFacts:
        job, settings = self.job, self.job.cfg.verify
        edges = graph_edges(fitted_connector(self._train.pull()))
        outputs = self._outputs.pull().tensors(OUTPUTS_FILE)
        score = {"weight": edges.weight.abs()}
        if measurable(job.cfg):
            score["effect"] = effect_sizes(edges, load_effects(EffectsStage(job).pull()))
        score |= {name: outputs[name] for name in ORDERS[2:]}
        context = job.tokens.facts["context_size"]
        estimated = max(settings.output_tokens // context, 1)
        whole, n = spliced_tokens(job), max(settings.pruned_tokens // context, 1)
        first = max(min(estimated, len(whole.ids) - n), 0)
        test = sequences_from(whole, first, n)
        rows = pruned_rows(job, edges, score, test, first)
        draft.save_json(PRUNED_FILE, rows)
        shared = max(min(estimated, first + len(test.ids)) - first, 0) * context
        return {"edges": len(edges.weight), "tokens": test.ids.numel(), "shared": shared}


def sequences_from(test: SplicedTokens, first: int, n: int) -> SplicedTokens:
    """n sequences from the `first` on."""
    return SplicedTokens(*(each[first : first + n] for each in test))


def effect_sizes(edges: GraphEdges, measured: Effects) -> torch.Tensor:
    """[n] |effect| of each edge's source on its target, times the share of tokens on which the source is active."""
    d, key = measured.d_target, edges.source * measured.d_target + edges.target
    order = key.argsort()
    out = torch.zeros(len(key))
    for part in measured.pairs():
        theirs = part.source_of * d + part.target.long()
        if not len(theirs):
            continue
        place = torch.searchsorted(theirs, key[order]).clamp(max=len(theirs) - 1)
        there = theirs[place] == key[order]
        out[order[there]] = part.mean[place[there]].abs()
    return out * measured.source_rate[edges.source]


def pruned_rows(
    job: Job, edges: GraphEdges, score: dict[str, torch.Tensor], test: SplicedTokens, first: int
) -> list[dict[str, Any]]:
    """The curves, as PrunedStage has them; `test` are the sequences from the `first` on."""
    given = Contributions(job, edges, test, first)
    n = len(edges.weight)
    weights, mean = by_documents(test.document, job.cfg.eval.bootstrap)
    rows: list[dict[str, Any]] = []
    with Splice(job, test, (len(SHARES) + 1) * len(score)) as splice:
        for order, value in score.items():
            ranked = value.sort(descending=True, stable=True).indices
            entries: dict[str, Replaced] = {}
            for share in SHARES:
                least = ranked[round(share * n) :]
                gone = torch.zeros(n).index_copy_(0, least, edges.weight[least])
                entries[str(share)] = Replaced(-given.written(gone), added=True)
            found = compared(splice, entries)
            figures = prediction_figures(found, test.document, job.cfg.eval.bootstrap)
            clean = found[CLEAN].loss
            for share in SHARES:
                loss = found[str(share)].loss
                cost = mean(weights, loss) - mean(weights, clean)
                low, high = cost.quantile(cost.new_tensor([0.025, 0.975])).tolist()
                rise = (loss.double().mean() - clean.double().mean()).item()
                beside = {name: figures[str(share)][name] for name in ("kl", "kl_low", "kl_high", "top1")}
                kept = {"order": order, "kept": share, "edges": round(share * n)}
                rows.append({**kept, "cost": rise, "cost_low": low, "cost_high": high, **beside})
    return rows
