"""The model run without single edges, beside what gradients estimate of them: the stage `edge_removals`.

An edge is taken out as effectiveness means it: everywhere in a sequence what it writes, weight times activation along
the target's decoder direction, is missing at the target hook. The estimates are made on the same sequences, with more
draws.
"""

from __future__ import annotations

from typing import Any, TypedDict

import torch

from saelink import memory
from saelink.evidence.effectiveness import OUTPUTS_FILE, EffectivenessStage, check_edges, edge_outputs, owed_bytes
from saelink.fit.train import TrainStage, fitted_connector
from saelink.interventions.edge_gradients import Contributions, GraphEdges, graph_edges
from saelink.interventions.predictions import divergence
from saelink.interventions.splice import spliced_tokens
from saelink.job import Job, JobStage
from saelink.latents.rows import offsets_of
from saelink.model.load import load_bridge
from saelink.store.draft import Draft
from saelink.store.stage import Need

REMOVALS_FILE, REMOVAL_FIGURES_FILE = "removals.safetensors", "removals.json"

DRAWS = 8
"""Draws of next tokens in each sequence behind the estimates."""

ROWS = 16
"""Sequences of one pass, each with an edge missing."""

RESAMPLES = 500


class EdgeRemovalsFacts(TypedDict):
    """What `removals.json` holds too; each correlation with `_low` and `_high`, by bootstrap over edges."""

    edges: int
    tokens: int
    spearman_effectiveness: float
    spearman_helpfulness: float
    ratio_effectiveness: float
    """Sum of the estimates over the sum of what running without the edges gives,"""
    slope_helpfulness: float
    """and of the exact helpfulness on the estimate, least squares through 0."""


class EdgeRemovalsStage(JobStage[EdgeRemovalsFacts]):
    """verify.edges_checked edges taken out of the running model, evenly spread over the order of effectiveness.

    File `removals.safetensors`, by edge: `target`, `source`, in nats a prediction `kl` and `loss`, what running without
    it gives, and `effectiveness`, `helpfulness`, the estimates on the same sequences.
    """

    name = "edge_removals"
    version = 1

    def __init__(self, job: Job):
        super().__init__(job.measured)
        self._train, self._outputs = TrainStage(self.job), EffectivenessStage(self.job)

    def recipe(self) -> dict[str, Any]:
        settings = self.job.cfg.verify
        return {"edges": settings.edges_checked, "tokens": settings.check_tokens, "draws": DRAWS}

    def inputs(self) -> dict[str, str]:
        return {"connector": self._train.key, "outputs": self._outputs.key}

    def about(self) -> str:
        return self._train.about()

    def check(self) -> None:
        check_edges(self.job)

    def need(self) -> Need:
        job, context = self.job, self.job.sides.target.facts["context_size"]
        needed = max(owed_bytes(job), memory.without_edges(job.size, job.sides.sizes[1], ROWS, context))
        return Need(needed, "use a smaller data.context_size, or leave it out (verify.edges_checked=0)")

    def make(self, draft: Draft) -> EdgeRemovalsFacts:
        job, settings = self.job, self.job.cfg.verify
        outputs = self._outputs.pull().tensors(OUTPUTS_FILE)
        edges = graph_edges(fitted_connector(self._train.pull()))
        test = spliced_tokens(job, settings.check_tokens)
        seen = torch.bincount(Contributions(job, edges, test).active.indices, minlength=len(edges.offsets) - 1) > 0
        chosen = spread(outputs["effectiveness"] * seen[edges.source], settings.edges_checked)
        edges = only(edges, chosen)
        estimate, _ = edge_outputs(job, edges, test, DRAWS)
        kl, loss = removed(job, edges, Contributions(job, edges, test))
        columns = {"kl": kl, "loss": loss, "effectiveness": estimate.effectiveness, "helpfulness": estimate.helpfulness}
        named = {"target": edges.target.int(), "source": edges.source.int()}
        draft.save_tensors(REMOVALS_FILE, named | {name: column.float() for name, column in columns.items()})
        facts: dict[str, Any] = {"edges": len(kl), "tokens": test.ids.numel()}
        for name, (x, y) in (
            ("effectiveness", (estimate.effectiveness, kl)),
            ("helpfulness", (estimate.helpfulness, loss)),
        ):
            value, low, high = spearman_interval(x, y)
            facts |= {f"spearman_{name}": value, f"spearman_{name}_low": low, f"spearman_{name}_high": high}
        facts["ratio_effectiveness"] = (estimate.effectiveness.sum() / kl.sum()).item()
        x, y = estimate.helpfulness, loss
        facts["slope_helpfulness"] = ((x * y).sum() / x.square().sum()).item()
        draft.save_json(REMOVAL_FIGURES_FILE, facts)
        return facts  # type: ignore[return-value]


def spread(value: torch.Tensor, n: int) -> torch.Tensor:
    """At most n places of the values [m] above 0, evenly spread over their order, ascending."""
    order = value.sort(descending=True, stable=True).indices[: int((value > 0).sum())]
    if len(order) <= n:
        return order.sort().values
    return order[torch.linspace(0, len(order) - 1, n).round().long()].sort().values


def only(edges: GraphEdges, chosen: torch.Tensor) -> GraphEdges:
    """The chosen edges [m], ascending."""
    d_source = len(edges.offsets) - 1
    offsets = offsets_of(torch.bincount(edges.source[chosen], minlength=d_source))
    return GraphEdges(offsets, edges.column[chosen], edges.weight[chosen], edges.target_ids)


def removed(job: Job, edges: GraphEdges, given: Contributions) -> tuple[torch.Tensor, torch.Tensor]:
    """[n] of each edge divergence and rise of the loss without it, sums over predictions over how many there are."""
    bridge, device, ids = load_bridge(job.cfg, job.model, job.device), job.device, given.test.ids
    kl, loss = torch.zeros(2, len(edges.weight), dtype=torch.float64)
    source, target = edges.source, edges.column
    with job.observer.progress("edge removals", len(ids), "sequences") as bar, torch.inference_mode():
        for number in range(len(ids)):
            position, active, size = given.of_sequence(number)
            by_source = active.transposed()
            there = (by_source.offsets.diff()[source] > 0).nonzero().squeeze(1)
            text = ids[number][None].to(device)
            clean = bridge(text)[0, :-1].float()
            clean_loss = torch.nn.functional.cross_entropy(clean, text[0, 1:])
            for part in there.split(ROWS):
                taken = torch.zeros(len(part), given.context, given.directions.shape[1])
                for row, edge in enumerate(part.tolist()):
                    low, high = by_source.offsets[source[edge] : source[edge] + 2].tolist()
                    token, value = by_source.indices[low:high], by_source.values[low:high]
                    amount = edges.weight[edge] * value * size[token]
                    taken[row, position[token]] = amount[:, None] * given.directions[target[edge]]

                def remove(acts: torch.Tensor, taken: torch.Tensor = taken.to(device), **_: object) -> torch.Tensor:
                    return (acts.flatten(2) - taken.to(acts.dtype)).view(acts.shape)

                out = bridge.run_with_hooks(text.expand(len(part), -1), fwd_hooks=[(job.link.target, remove)])
                for edge, logits in zip(part.tolist(), out[:, :-1].float(), strict=True):
                    kl[edge] += divergence(clean, logits).double().sum().item()
                    rise = torch.nn.functional.cross_entropy(logits, text[0, 1:]) - clean_loss
                    loss[edge] += rise.double().item() * (given.context - 1)
            bar.advance(1)
    predictions = len(ids) * (given.context - 1)
    return kl / predictions, loss / predictions


def spearman_interval(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float, float]:
    """Spearman of x and y [n] with its 95% interval, by bootstrap over the entries."""

    def of(rows: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([_ranks(x[rows]), _ranks(y[rows])]))[0, 1])

    drawn = torch.randint(len(x), (RESAMPLES, len(x)), generator=torch.Generator().manual_seed(0))
    again = torch.tensor([of(rows) for rows in drawn], dtype=torch.float64)
    low, high = again[~again.isnan()].quantile(again.new_tensor([0.025, 0.975])).tolist()
    return of(torch.arange(len(x))), low, high


def _ranks(values: torch.Tensor) -> torch.Tensor:
    """[n] float64: the rank of each, of equal ones the mean of theirs."""
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count - 1) / 2).double()[place]
