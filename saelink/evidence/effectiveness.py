"""What the model's output owes to every edge of a connector: the stage `effectiveness`.

Two figures of an edge, both of what it writes into the target hook, for all edges at once (see
interventions.edge_gradients): effectiveness, the divergence of the prediction from the one without the edge, and
helpfulness, by how much the loss rises without it.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypedDict

import torch

from saelink import memory
from saelink.config.schema import Config
from saelink.connectors import CONNECTORS
from saelink.connectors.linear import LinearConnector
from saelink.errors import SaelinkError
from saelink.evidence.stability import Places
from saelink.fit.train import TrainStage, fitted_connector, shape_of
from saelink.interventions.edge_gradients import (
    Contributions,
    EdgeOutputs,
    EdgeSums,
    GraphEdges,
    TargetOutputs,
    gradients_at,
    graph_edges,
    outputs_of,
    targets_of,
)
from saelink.interventions.oracle import spliced_recipe
from saelink.interventions.splice import SplicedTokens, spliced_tokens
from saelink.job import Job, JobStage
from saelink.latents.link import moved_forms
from saelink.model.load import load_bridge
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.stage import Need

OUTPUTS_FILE, TARGET_OUTPUTS_FILE, OUTPUT_FIGURES_FILE = "outputs.safetensors", "targets.safetensors", "outputs.json"

SEQUENCES = 4
"""Sequences of one pass with its gradients."""

CARRIED = (0.5, 0.9, 0.99)
"""Shares of all effectiveness, each carried by so few of the edges."""


class EffectivenessFacts(TypedDict):
    """What `outputs.json` holds too."""

    edges: int
    tokens: int
    draws: int
    helpful: float
    """Share of the edges whose mean helpfulness is above 0,"""
    helpful_clearly: float
    """by two standard errors or more,"""
    harmful_clearly: float
    """and below 0 by as much."""
    carried_50: float
    """Share of the edges that have half of all effectiveness, the most effective first,"""
    carried_90: float
    carried_99: float
    """and these percents of it."""


def has_outputs(cfg: Config) -> bool:
    """Whether a job's edges get effectiveness and helpfulness: edges from source latents, no hidden units."""
    return _plain(cfg) and cfg.verify.output_tokens > 0


def _plain(cfg: Config) -> bool:
    return issubclass(CONNECTORS[cfg.connector.name], LinearConnector) and not any(moved_forms(cfg))


class EffectivenessStage(JobStage[EffectivenessFacts]):
    """Effectiveness and helpfulness of the edges of the configured connector, on the first test tokens.

    File `outputs.safetensors`, by edge: `target`, `source`, `weight` and the columns of EdgeOutputs, in nats a token;
    `targets.safetensors`, by explained target: `target` and the columns of TargetOutputs; `outputs.json`, the
    facts. Raises SaelinkError for a connector with hidden units.
    """

    name = "effectiveness"
    version = 2

    def __init__(self, job: Job):
        super().__init__(job.measured)
        self._train = TrainStage(self.job)

    def recipe(self) -> dict[str, Any]:
        settings = self.job.cfg.verify
        return {**spliced_recipe(self.job.cfg), "tokens": settings.output_tokens, "draws": settings.draws}

    def inputs(self) -> dict[str, str]:
        return {"connector": self._train.key, **self.latents_inputs(), "model": self.job.model.artifact.key}

    def about(self) -> str:
        return self._train.about()

    def check(self) -> None:
        check_edges(self.job)

    def need(self) -> Need:
        return Need(owed_bytes(self.job), "use a smaller data.context_size, or leave it out (verify.output_tokens=0)")

    def make(self, draft: Draft) -> EffectivenessFacts:
        job = self.job
        edges = graph_edges(fitted_connector(self._train.pull()))
        test = spliced_tokens(job, job.cfg.verify.output_tokens)
        found, by_target = edge_outputs(job, edges, test, job.cfg.verify.draws)
        columns = {name: column.float() for name, column in found._asdict().items()}
        named = {"target": edges.target.int(), "source": edges.source.int(), "weight": edges.weight}
        draft.save_tensors(OUTPUTS_FILE, named | columns)
        of_targets = {name: column.float() for name, column in by_target._asdict().items()}
        draft.save_tensors(TARGET_OUTPUTS_FILE, {"target": edges.target_ids.int()} | of_targets)
        facts = output_figures(found, test.ids.numel(), job.cfg.verify.draws)
        draft.save_json(OUTPUT_FIGURES_FILE, facts)
        return facts


def owed_bytes(job: Job) -> float:
    """Memory that the gradients' estimates of a fitted connector's edges take."""
    context, n_edges = job.sides.target.facts["context_size"], TrainStage(job).pull().facts["n_edges"]
    passed = memory.gradients(job.size, job.model.n_layers, SEQUENCES * context, context)
    connector = 8.0 * shape_of(job).weights + job.sides.split_bytes("test")
    return passed + connector + memory.owed(job.sides.sizes[1], n_edges, context)


def check_edges(job: Job) -> None:
    """Raise SaelinkError for a connector without edges between source and target latents alone."""
    if not _plain(job.cfg):
        raise SaelinkError(
            f"connector={job.cfg.connector.name} link={job.cfg.link.name}: effectiveness is of edges from latents at "
            "the target's own token without hidden units; use connector=linear, or verify.output_tokens=0"
        )


def noise_of(number: int, draws: int, context: int) -> torch.Tensor:
    """[draws, context - 1] what draws the tokens of sequence `number`: the same however sequences are batched."""
    generator = torch.Generator().manual_seed(number)
    return torch.rand(draws, context - 1, generator=generator, dtype=torch.float64)


def edge_outputs(job: Job, edges: GraphEdges, test: SplicedTokens, draws: int) -> tuple[EdgeOutputs, TargetOutputs]:
    """Effectiveness and helpfulness of edges, and by target, on the first sequences of the test split."""
    bridge, device = load_bridge(job.cfg, job.model, job.device), job.device
    given, sums = Contributions(job, edges, test), EdgeSums(edges)
    n, context = test.ids.shape
    with job.observer.progress("effectiveness", n, "sequences") as bar:
        for first in range(0, n, SEQUENCES):
            numbers = range(first, min(first + SEQUENCES, n))
            noise = torch.stack([noise_of(number, draws, context) for number in numbers], 1)
            found = gradients_at(bridge, job.link.target, test.ids[numbers.start : numbers.stop].to(device), noise)
            for at, number in enumerate(numbers):
                sums.add(given, number, found, at)
            bar.advance(len(numbers))
    outputs = outputs_of(sums, edges.weight, n * (context - 1), len(given.row))
    return outputs, targets_of(sums, edges, outputs, n * (context - 1))


def output_figures(found: EdgeOutputs, tokens: int, draws: int) -> EffectivenessFacts:
    """What the edges come to together."""
    helped, error = found.helpfulness, found.helpfulness_error
    n = max(len(helped), 1)
    return {
        "edges": len(helped),
        "tokens": tokens,
        "draws": draws,
        "helpful": int((helped > 0).sum()) / n,
        "helpful_clearly": int(((helped > 2 * error) & (helped > 0)).sum()) / n,
        "harmful_clearly": int(((helped < -2 * error) & (helped < 0)).sum()) / n,
        "carried_50": carried_by(found.effectiveness, CARRIED[0]),
        "carried_90": carried_by(found.effectiveness, CARRIED[1]),
        "carried_99": carried_by(found.effectiveness, CARRIED[2]),
    }


def carried_by(value: torch.Tensor, share: float) -> float:
    """The share of entries, the largest first, that have this share of the sum of values [n] >= 0."""
    if not len(value) or value.sum() <= 0:
        return 0.0
    reached = value.sort(descending=True).values.cumsum(0) / value.sum()
    return (int((reached < share).sum()) + 1) / len(value)


class Outputs:
    """The effectiveness and helpfulness of single edges, from their artifact."""

    class Of(NamedTuple):
        """Of one edge, in nats a token."""

        effectiveness: float
        helpfulness: float
        helpfulness_error: float

    def __init__(self, artifact: Artifact[EffectivenessFacts]):
        self._artifact, tensors = artifact, artifact.tensors(OUTPUTS_FILE)
        self._columns = [tensors[name] for name in self.Of._fields]
        self._places = Places(tensors["source"], tensors["target"])

    def of(self, source: int, target: int) -> Outputs.Of | None:
        """None for what is no edge."""
        place = self._places.of(source, target)
        return None if place is None else self.Of(*(column[place].item() for column in self._columns))

    def of_targets(self) -> dict[str, torch.Tensor]:
        """[n] `target`, the explained ones, and the columns of TargetOutputs."""
        return self._artifact.tensors(TARGET_OUTPUTS_FILE)


def outputs_found(job: Job) -> Outputs | None:
    """What was measured of the configured connector's edges; None where it was not asked."""
    artifact = EffectivenessStage(job).find() if has_outputs(job.cfg) else None
    return None if artifact is None else Outputs(artifact)
