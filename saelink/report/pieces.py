"""The data of the page in pieces, which the browser unpacks when they are asked for."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch

from saelink.config.schema import Config
from saelink.engine.work import Work
from saelink.experiments.tables import PICTURE_FILE, TEXT_FILE, shown_rows
from saelink.interventions.oracle import OracleStage
from saelink.job import Job
from saelink.report.cards.cards import Card, Cards
from saelink.report.cards.listed import Listed
from saelink.report.cards.meaning import meanings
from saelink.report.cards.wiring import EDGES_SHOWN
from saelink.report.highlights import Highlights
from saelink.report.overview import PIECE
from saelink.report.render import packed
from saelink.report.structure import Meaning
from saelink.store.artifact import Artifact
from saelink.store.draft import Part, Parts
from saelink.store.store import Store


class Piece(NamedTuple):
    """Consecutive latents of one kind of data."""

    kind: str
    """target, source, hidden, or circuit, edges and feeds with the connector's number"""
    first: int
    last: int

    @property
    def name(self) -> str:
        """What the page calls it."""
        return f"{self.kind}/{self.first // PIECE}"

    @property
    def file(self) -> str:
        """Where a worker leaves it."""
        return f"piece-{self.kind}-{self.first // PIECE}.json.gz"


def pieces_of(jobs: list[Job]) -> Pieces:
    """What the page shows of these connectors' latents; its first screen is about the first."""
    first = Cards(jobs[0])
    fits = [first, *(Cards(job, first.firing) for job in jobs[1:])]  # what the latents fire on is the same
    oracle = OracleStage(jobs[0]).pull().tensors("errors.safetensors")["mse"]
    variance = first.wiring.evaluation.tensors("latents.safetensors")["variance"]
    reached = torch.where(variance > 0, oracle / variance, torch.nan)
    listed = [Listed(fit.wiring, reached) for fit in fits]
    return Pieces(jobs[0], fits, listed, Highlights(jobs[0], first))


@dataclass(frozen=True)
class PiecesWork(Work["Pieces", Piece, Part]):
    """A piece of the page, as a file of the draft; `cfgs` are of the connectors on it."""

    cfgs: tuple[Config, ...]
    draft: Parts

    def open(self) -> Pieces:
        job = Job(self.cfgs[0], Store(self.cfgs[0].runtime.outputs))
        return pieces_of([job.at(cfg) for cfg in self.cfgs])

    def run(self, state: Pieces, task: Piece) -> Part:
        return self.draft.save_bytes(task.file, packed(state.make(task)))


class Pieces:
    """Cards, circuits, experiments and ablations, each under a name."""

    def __init__(self, job: Job, fits: list[Cards], listed: list[Listed], highlights: Highlights):
        self.job, self.fits, self.listed, self.highlights = job, fits, listed, highlights
        self.cards, self.wiring, self.sides = fits[0], fits[0].wiring, fits[0].sides
        self.kept_targets, self.kept_sources = highlights.kept()

    def of_latents(self) -> list[Piece]:
        """All pieces that are cut by latents."""
        sides = self.sides
        kinds = [("target", sides.d_target), ("source", sides.d_source)]
        for number in range(len(self.fits)):
            kinds += [(f"circuit{number}", sides.d_target), (f"edges{number}", sides.d_target)]
            kinds.append((f"feeds{number}", sides.d_source))
        if self.wiring.has_hidden:
            kinds.append(("hidden", self.wiring.connector.n_hidden))
        return [Piece(kind, first, min(first + PIECE, d)) for kind, d in kinds for first in range(0, d, PIECE)]

    def make(self, piece: Piece) -> dict[str, Any]:
        """By latent what the piece holds of it."""
        ids = range(piece.first, piece.last)
        if piece.kind.startswith("circuit"):
            return self._circuits(int(piece.kind.removeprefix("circuit")), ids)
        if piece.kind.startswith("edges"):
            return self._edges(int(piece.kind.removeprefix("edges")), ids)
        if piece.kind.startswith("feeds"):
            wiring = self.fits[int(piece.kind.removeprefix("feeds"))].wiring
            return {str(latent): wiring.source_feeds(latent) for latent in ids}
        card = self._kinds[piece.kind]
        return {str(latent): card(latent) for latent in ids}

    @property
    def _kinds(self) -> dict[str, Callable[[int], Card]]:
        return {"target": self._target_card, "source": self._source_card, "hidden": self.cards.hidden_unit}

    def others(self, experiments: list[Artifact[Any]]) -> Iterator[tuple[str, Any]]:
        """Experiments and ablations, by name."""
        for result in experiments:
            picture = None
            if PICTURE_FILE in result.files:
                picture = base64.b64encode(result.file(PICTURE_FILE).read_bytes()).decode()
            yield (
                f"experiment/{result.facts['name']}",
                {
                    "rows": shown_rows(result),
                    "text": result.file(TEXT_FILE).read_text(),
                    "picture": picture,
                },
            )
        for side, latents in self.highlights.ablated().items():
            yield f"ablations/{side}", latents

    @cached_property
    def _meanings(self) -> tuple[dict[int, Meaning], dict[int, Meaning]]:
        """What the latents mean that have examples, by target and by source."""
        return meanings(self.job, self.cards.firing, self.kept_targets, self.kept_sources)

    def _target_card(self, latent: int) -> Card:
        return {**self.cards.target_firing(latent, latent in self.kept_targets), **self._meanings[0].get(latent, {})}

    def _source_card(self, latent: int) -> Card:
        return {**self.cards.source_firing(latent, latent in self.kept_sources), **self._meanings[1].get(latent, {})}

    @cached_property
    def _explained(self) -> list[set[int]]:
        return [set(fit.wiring.connector.target_ids.tolist()) for fit in self.fits]

    @cached_property
    def _beside(self) -> dict[int, Any]:
        return self.fits[0].beside.under(sorted(self._explained[0] & self.kept_targets))

    def _circuits(self, number: int, ids: range) -> dict[str, Any]:
        """By target its circuit. Inputs together and beside the examples: the first connector's only."""
        found: dict[str, Any] = {}
        beside = self._beside if number == 0 else {}
        for latent in self._explained[number].intersection(ids):
            circuit = self.fits[number].wiring.circuit(latent)
            if latent in beside:
                circuit["beside"] = beside[latent]
            if number > 0:  # most of the bytes
                circuit.pop("scatter", None)
                circuit.pop("clusters", None)
            found[str(latent)] = circuit
        return found

    def _edges(self, number: int, ids: range) -> dict[str, Any]:
        """By target all its edges, where a card shows only some."""
        listed = self.listed[number]
        many = [latent for latent in self._explained[number].intersection(ids) if listed.n_edges(latent) > EDGES_SHOWN]
        return {str(latent): listed.edges(latent) for latent in sorted(many)}
