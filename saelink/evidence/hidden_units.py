"""The hidden units of a connector, looked at like latents and classed: the stage `hidden`.

They are looked at on the validation and test documents: unlike latents they are dense, and hundreds may fire on one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from saelink import memory
from saelink.activations.cache import Shard, shards_of
from saelink.connectors.base import Connector
from saelink.evidence.edges import HIDDEN_FILE, EdgesStage, hidden_of
from saelink.fit.train import TrainStage, fitted_connector, shape_of
from saelink.job import Job, JobStage
from saelink.latents.encode import TYPICAL_NORM_RATIO
from saelink.latents.examples import (
    EXAMPLES_FILE,
    OCTAVES,
    Examples,
    ExamplesFacts,
    collect_examples,
    examples_recipe,
    load_examples,
)
from saelink.latents.link import Sides
from saelink.latents.outliers import carried, outlier_places
from saelink.latents.rows import Rows, unpack
from saelink.latents.split import latent_shards
from saelink.latents.stream import Stream, text_of
from saelink.latents.top_tokens import TOP_TOKENS_FILE, TopTokens, count_tokens, load_top_tokens
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.stage import Need

HELD_OUT = ("validation", "test")

CLASSED = 30
"""Hidden units that are classed, those with the largest activations."""

NEARLY_DEAD = 1e-4
"""A unit that fires on fewer of the tokens is nearly dead."""

PURE = 0.5
"""Share that one token has to carry of a unit's activation, and of its strongest examples."""

CLUSTERED = 0.75
"""Share of the tokens that one cluster of inputs has to hold, where no token stands out."""

CLASSES = ("nearly dead", "outlier", "monosemantic", "polysemantic")


@dataclass
class HiddenUnit:
    """A classed hidden unit and the evidence."""

    unit: int
    kind: str
    """One of CLASSES."""
    largest: float
    """Its largest activation."""
    rate: float
    """Share of held-out tokens it fires on."""
    purity: float
    """Share of its activation on its heaviest token."""
    purity_top: float
    """Share of its strongest examples, one a sequence, on that token."""
    clusters: int | None
    """Clusters of its inputs on test tokens; None for too few inputs or tokens to tell."""
    largest_cluster: float | None
    """Share of those tokens in the largest cluster."""
    outlier: dict[str, float]
    """Share of its activation on each kind of outlier place."""


class HiddenUnitsStage(JobStage[ExamplesFacts]):
    """What the hidden units of the configured connector fire on.

    Files: `examples.safetensors` and `top_tokens.safetensors` as of the stages `examples` and `top_tokens`, by unit;
    `units.json`, the classed ones as `HiddenUnit`.
    """

    name = "hidden"
    version = 2

    def __init__(self, job: Job):
        super().__init__(job)
        self._edges = EdgesStage(job)

    @property
    def device(self) -> str:
        return "cpu"

    def recipe(self) -> dict[str, Any]:
        shares = dict(sorted(self.job.cfg.outliers.shares.items()))
        return {**examples_recipe(self.job.cfg), "outlier_shares": shares}

    def inputs(self) -> dict[str, str]:
        return {"edges": self._edges.key}

    def about(self) -> str:
        return self._edges.about()

    def need(self) -> Need:
        job, facts, kept = self.job, self.job.sides.target.facts, self.job.cfg.report
        n_tokens = sum(facts["sequences"][split] for split in HELD_OUT) * facts["context_size"]
        places, shape = kept.top + OCTAVES * kept.per_size + kept.random, shape_of(job)
        needed = memory.hidden(shape.hidden, places, n_tokens, shape.weights)
        return Need(needed, "use fewer hidden units (connector.d_hidden), or less text (data.max_tokens)")

    def make(self, draft: Draft) -> ExamplesFacts:
        job = self.job
        targets = [json.loads(line) for line in self._edges.pull().file(HIDDEN_FILE).read_bytes().splitlines()]
        connector = fitted_connector(TrainStage(job).pull())
        stream = hidden_stream(connector, job.sides, 1.0)
        drop, text = job.cfg.data.drop_positions, text_of(job.tokens)
        stream = stream._replace(unit=_mean_active(stream, drop))
        facts = collect_examples(job.cfg, job.observer, stream, text, draft, "hidden units")
        tops = count_tokens(job.observer, stream, text, drop)
        draft.save_tensors(TOP_TOKENS_FILE, tops._asdict())
        found = Examples(**draft.tensors(EXAMPLES_FILE))
        units = _classed(job, stream, found, tops, facts["n_tokens"], targets)
        draft.save_json("units.json", [asdict(unit) for unit in units])
        return facts


def load_hidden(artifact: Artifact[ExamplesFacts]) -> tuple[Examples, TopTokens, list[HiddenUnit]]:
    units = [HiddenUnit(**unit) for unit in artifact.json("units.json")]
    return load_examples(artifact), load_top_tokens(artifact), units


def hidden_stream(connector: Connector, sides: Sides, unit: float, splits: tuple[str, ...] = HELD_OUT) -> Stream:
    """The hidden activations on all positions of these splits."""
    facts = sides.target.facts
    context = facts["context_size"]

    def shards() -> Iterator[tuple[Shard, Rows]]:
        for shard in shards_of(facts["sequences"], context, splits):
            parts = [
                unpack(side.tensors(shard.name), side.facts["d_sae"]).scaled(1 / scale)
                for side, scale in zip(sides.sources, sides.scales, strict=False)
            ]
            yield shard, hidden_of(connector, Rows.beside(parts))

    return Stream(connector.n_hidden, unit, context, facts["sequences"], shards, splits)


def _mean_active(stream: Stream, drop: int) -> float:
    total, n = 0.0, 0
    for _, rows in stream.shards():
        kept = rows.row_of % stream.context >= drop
        total, n = total + rows.values[kept].double().sum().item(), n + int(kept.sum())
    return total / n if n else 1.0


def _classed(
    job: Job, stream: Stream, found: Examples, tops: TopTokens, n_tokens: int, targets: list[dict[str, Any]]
) -> list[HiddenUnit]:
    """The units with the largest activations; `targets` is what the stage `edges` finds of each unit."""
    sides, tokens = job.sides, job.tokens
    test = Rows.stack([rows for shard, rows in stream.shards() if shard.split == "test"])
    norms = torch.stack(
        [
            torch.cat([norm for _, _, norm in latent_shards(side, ["test"])]) / side.facts["median_norm"]
            for side in [*sides.sources, sides.target]
        ]
    )
    ids = tokens.tensors("test.safetensors")["ids"].long()
    massive = norms.amax(0) > TYPICAL_NORM_RATIO
    shares = carried(test, outlier_places(ids, massive, job.vocabulary))
    limits = job.cfg.outliers.shares
    largest, text = found.top_value[:, 0], text_of(tokens)
    units = []
    for unit in largest.argsort(descending=True, stable=True)[:CLASSED].tolist():
        rate = int(found.histogram[unit].sum()) / n_tokens
        pure, pure_top = _purity(found, tops, unit, text)
        clusters = targets[unit].get("clusters")
        biggest = None
        if clusters is not None:
            biggest = max([cluster["tokens"] for cluster in clusters["clusters"]], default=0) / clusters["tokens"]
        evidence = {name: share[unit].item() for name, share in shares.items()}
        if rate < NEARLY_DEAD:
            kind = "nearly dead"
        elif any(evidence[name] >= limits[name] for name in evidence):
            kind = "outlier"
        elif min(pure, pure_top) >= PURE or (biggest is not None and biggest >= CLUSTERED):
            kind = "monosemantic"
        else:
            kind = "polysemantic"
        count = None if clusters is None else len(clusters["clusters"])
        units.append(
            HiddenUnit(unit, kind, largest[unit].item(), rate, pure, pure_top, count, biggest, evidence)
        )  # fmt: skip
    return units


def _purity(found: Examples, tops: TopTokens, unit: int, text: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Share of the heaviest token: of all activation, and of the strongest examples."""
    places = found.top_place[unit]
    strongest = text[places[places >= 0].numpy()]
    top = float((strongest == int(tops.token[unit, 0])).mean()) if len(strongest) else 0.0
    return (tops.weight[unit, 0] / tops.total[unit].clamp(min=1e-30)).item(), top
