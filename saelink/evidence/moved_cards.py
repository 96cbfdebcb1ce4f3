"""What heads move to the targets of a link, and each head's card, for pages and files: the stage `moved_cards`.

The same as moved_edges and moved_heads give for one target or one head, looked at in one walk through the test text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

import torch

from saelink import memory
from saelink.attention.ov import OVEdges, OVStage
from saelink.evidence.moved_edges import STRONGEST, Example, MovedEdge, Scene, edges_into, effects_found
from saelink.evidence.moved_heads import HeadCard, HeadEdge, counted_parts, head_cards
from saelink.evidence.names import names_inputs
from saelink.evidence.verify import MOST_PAIRS
from saelink.job import Job, JobStage
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.stage import Need

TARGETS_FILE, HEADS_FILE = "targets.jsonl", "heads.json"

MOST = 8 * MOST_PAIRS
"""Triples of head, source and target up to which edges are computed without being asked for."""


class MovedCardsFacts(TypedDict):
    targets: int
    """That were looked at,"""
    alone: list[int]
    """and those of them for which effects through single heads were measured."""
    heads: int


class MovedCards(NamedTuple):
    """What the stage found."""

    edges: dict[int, list[MovedEdge]]
    """By target, the strongest first, as moved_edges gives them."""
    heads: list[HeadCard]


class MovedCardsStage(JobStage[MovedCardsFacts]):
    """The edges through heads into report.cards targets, those with the strongest edges, and the cards of all heads.

    After `saelink verify` also what was measured of these edges, and for the report.ablated strongest targets the
    effects through single heads. Files: `targets.jsonl`, a line for each target with its number and its MovedEdges;
    `heads.json`, a list of HeadCards. Numbers have four digits; shares by distance end with the last that is not 0.
    Raises SaelinkError for a link that is not from `ov` alone.
    """

    name = "moved_cards"
    version = 1

    def __init__(self, job: Job):
        super().__init__(job)
        self._ov = OVStage(job.cfg, job.store)
        self._effects = effects_found(job)

    def recipe(self) -> dict[str, Any]:
        shown = self.job.cfg.report
        return {"targets": shown.cards, "alone": shown.ablated if self._effects is not None else 0}

    def inputs(self) -> dict[str, str]:
        measured = {} if self._effects is None else {"effects": self._effects.key}
        return {"ov": self._ov.key, **self.latents_inputs(), **measured, **names_inputs(self.job)}

    def about(self) -> str:
        return self.job.about

    def need(self) -> Need:
        job, cfg = self.job, self.job.cfg
        (source,), target = job.encoded.sizes
        step, context = cfg.runtime.forward_tokens, cfg.data.context_size
        looked = min(cfg.report.cards, target.d_sae) * STRONGEST
        opened = memory.moved(job.size, source, target, cfg.link.kept, step, context)
        test = job.encoded.split_bytes("test")
        needed = opened + test + memory.moved_cards(job.size, source, target, looked, context)
        return Need(needed, "look at fewer targets (report.cards), or use SAEs with fewer latents")

    def make(self, draft: Draft) -> MovedCardsFacts:
        scene = Scene(self.job)
        targets = strongest_targets(scene.edges, self.job.cfg.report.cards)
        alone = targets[: self.recipe()["alone"]]
        edges = edges_into(scene, sorted(targets), set(alone))
        lines = [json.dumps({"target": target, "edges": _plain(found)}) for target, found in edges.items()]
        draft.save_bytes(TARGETS_FILE, "\n".join(lines).encode())
        cards = head_cards(scene)
        draft.save_json(HEADS_FILE, _plain(cards))
        return {"targets": len(targets), "alone": sorted(alone), "heads": len(cards)}


def moved_cards_of(job: Job) -> Artifact[MovedCardsFacts] | None:
    """What heads move, of a link from `ov` alone.

    Looked at by itself where edges are computed already or are few enough (MOST), else None.
    """
    if job.cfg.link.sources != ["ov"]:
        return None
    sides = job.encoded
    few = sides.d_source * sides.d_target * job.sides.heads_of(0) <= MOST
    return MovedCardsStage(job).pull() if few or OVStage(job.cfg, job.store).find() is not None else None


def strongest_targets(edges: OVEdges, most: int) -> list[int]:
    """At most so many targets that have a computed edge, those with the largest claim of a source moved often first."""
    counted = counted_parts(edges).sum(2).abs().amax(1)
    any_edge = (edges.by_head.sum(2) != 0).any(1)
    ranked = torch.where(any_edge, counted, -1.0).sort(descending=True, stable=True).indices
    return ranked[: min(most, int(any_edge.sum()))].tolist()


def load_moved_cards(artifact: Artifact[MovedCardsFacts]) -> MovedCards:
    """What the files hold, as moved_edges and head_card give it."""
    lines = [json.loads(line) for line in artifact.file(TARGETS_FILE).read_bytes().splitlines()]
    edges: dict[int, list[MovedEdge]] = {line["target"]: [_edge(edge) for edge in line["edges"]] for line in lines}
    return MovedCards(edges, [_card(card) for card in artifact.json(HEADS_FILE)])


def _plain(value: Any) -> Any:
    """Named tuples as mappings, numbers with four digits, shares by distance without the zeros at the end."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        found: dict[str, Any] = value._asdict()  # pyright: ignore[reportAttributeAccessIssue]
        if "distances" in found:
            found["distances"] = _trimmed(found["distances"])
        return {name: _plain(each) for name, each in found.items()}
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def _trimmed(shares: list[float]) -> list[float]:
    last = max((place for place, share in enumerate(shares) if share), default=-1)
    return shares[: last + 1]


def _edge(stored: dict[str, Any]) -> MovedEdge:
    by_head: dict[str, Any] = {
        name: None if stored[name] is None else {int(head): value for head, value in stored[name].items()}
        for name in ("heads", "alone")
    }
    tokens = [(token, share) for token, share in stored["tokens"]]
    return MovedEdge(**stored | by_head | {"tokens": tokens, "examples": _examples(stored)})


def _card(stored: dict[str, Any]) -> HeadCard:
    edges = [HeadEdge(**edge | {"examples": _examples(edge)}) for edge in stored["edges"]]
    sources = [(name, token, share) for name, token, share in stored["sources"]]
    return HeadCard(**stored | {"edges": edges, "sources": sources})


def _examples(stored: dict[str, Any]) -> list[Example]:
    return [Example(**example) for example in stored["examples"]]
