"""The data of the page in pieces, which the browser unpacks when they are asked for."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from saelink.config.schema import Config
from saelink.engine.work import Work
from saelink.experiments.tables import PICTURE_FILE, TEXT_FILE, shown_rows
from saelink.job import Job
from saelink.report.cards.cards import Card, Cards
from saelink.report.highlights import Highlights
from saelink.report.overview import PIECE
from saelink.report.render import packed
from saelink.store.artifact import Artifact
from saelink.store.draft import Part, Parts
from saelink.store.store import Store


class Piece(NamedTuple):
    """Consecutive latents of one kind of data."""

    kind: str
    """target, source, hidden, or circuit and feeds with the connector's number"""
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


def cards_of(jobs: list[Job]) -> tuple[list[Cards], Highlights]:
    """The cards of each connector on the page, and what the first screen names of the first."""
    first = Cards(jobs[0])
    fits = [first, *(Cards(job, first.firing) for job in jobs[1:])]  # what the latents fire on is the same
    return fits, Highlights(jobs[0], first)


@dataclass(frozen=True)
class PiecesWork(Work["Pieces", Piece, Part]):
    """A piece of the page, as a file of the draft; `cfgs` are of the connectors on it."""

    cfgs: tuple[Config, ...]
    draft: Parts

    def open(self) -> Pieces:
        job = Job(self.cfgs[0], Store(self.cfgs[0].runtime.outputs))
        return Pieces(*cards_of([job.at(cfg) for cfg in self.cfgs]))

    def run(self, state: Pieces, task: Piece) -> Part:
        return self.draft.save_bytes(task.file, packed(state.make(task)))


class Pieces:
    """Cards, circuits, experiments and ablations, each under a name."""

    def __init__(self, fits: list[Cards], highlights: Highlights):
        self.fits, self.highlights = fits, highlights
        self.cards, self.wiring, self.sides = fits[0], fits[0].wiring, fits[0].sides
        self.kept_targets, self.kept_sources = highlights.kept()

    def of_latents(self) -> list[Piece]:
        """All pieces that are cut by latents."""
        sides = self.sides
        kinds = [("target", sides.d_target), ("source", sides.d_source)]
        for number in range(len(self.fits)):
            kinds += [(f"circuit{number}", sides.d_target), (f"feeds{number}", sides.d_source)]
        if self.wiring.has_hidden:
            kinds.append(("hidden", self.wiring.connector.n_hidden))
        return [Piece(kind, first, min(first + PIECE, d)) for kind, d in kinds for first in range(0, d, PIECE)]

    def make(self, piece: Piece) -> dict[str, Any]:
        """By latent what the piece holds of it."""
        ids = range(piece.first, piece.last)
        if piece.kind.startswith("circuit"):
            return self._circuits(int(piece.kind.removeprefix("circuit")), ids)
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

    def _target_card(self, latent: int) -> Card:
        return self.cards.target_firing(latent, latent in self.kept_targets)

    def _source_card(self, latent: int) -> Card:
        return self.cards.source_firing(latent, latent in self.kept_sources)

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
