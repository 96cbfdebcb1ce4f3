"""The data of the page in pieces, which the browser unpacks when they are asked for."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

from saelink.experiments.tables import PICTURE_FILE, TEXT_FILE, shown_rows
from saelink.job import Job
from saelink.progress import Progress
from saelink.report.cards.cards import Card, Cards
from saelink.report.cards.listed import Listed
from saelink.report.cards.meaning import meanings
from saelink.report.cards.wiring import EDGES_SHOWN
from saelink.report.highlights import Highlights
from saelink.report.overview import PIECE
from saelink.report.structure import Meaning
from saelink.store.artifact import Artifact


class Pieces:
    """Cards, circuits, experiments and ablations, each under a name."""

    def __init__(
        self, job: Job, fits: list[Cards], listed: list[Listed], highlights: Highlights,
        experiments: list[Artifact[Any]],
    ):  # fmt: skip
        self.job, self.fits, self.listed, self.experiments, self.highlights = job, fits, listed, experiments, highlights
        self.cards, self.wiring, self.sides = fits[0], fits[0].wiring, job.sides
        self.kept_targets, self.kept_sources = highlights.kept()

    @property
    def total(self) -> int:
        """Cards in all, for the progress."""
        return self.sides.d_target * (1 + len(self.fits)) + self.sides.d_source

    def all(self, bar: Progress) -> Iterator[tuple[str, Any]]:
        """Every piece by its name."""
        sides = self.sides
        yield from self._of_side("target", sides.d_target, self._target_card, bar)
        yield from self._of_side("source", sides.d_source, self._source_card, bar)
        for number, fit in enumerate(self.fits):
            yield from self._circuits(number, fit, bar)
        if self.wiring.has_hidden:
            yield from self._of_side("hidden", self.wiring.connector.n_hidden, self.cards.hidden_unit, bar)
        for result in self.experiments:
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

    def _of_side(self, side: str, d: int, card: Callable[[int], Card], bar: Progress) -> Iterator[tuple[str, Any]]:
        for first in range(0, d, PIECE):
            ids = range(first, min(first + PIECE, d))
            yield f"{side}/{first // PIECE}", {str(latent): card(latent) for latent in ids}
            bar.advance(len(ids))

    @cached_property
    def _meanings(self) -> tuple[dict[int, Meaning], dict[int, Meaning]]:
        """What the latents mean that have examples, by target and by source."""
        return meanings(self.job, self.cards.firing, self.kept_targets, self.kept_sources)

    def _target_card(self, latent: int) -> Card:
        return {**self.cards.target_firing(latent, latent in self.kept_targets), **self._meanings[0].get(latent, {})}

    def _source_card(self, latent: int) -> Card:
        return {**self.cards.source_firing(latent, latent in self.kept_sources), **self._meanings[1].get(latent, {})}

    def _circuits(self, number: int, fit: Cards, bar: Progress) -> Iterator[tuple[str, Any]]:
        """By target its circuit; by source what it feeds. Inputs together and beside the examples: the first's only."""
        explained = set(fit.wiring.connector.target_ids.tolist())
        beside = fit.beside.under(sorted(explained & self.kept_targets)) if number == 0 else {}
        d = fit.sides.d_target
        for first in range(0, d, PIECE):
            ids = range(first, min(first + PIECE, d))
            piece: dict[str, Any] = {}
            for latent in explained.intersection(ids):
                circuit = fit.wiring.circuit(latent)
                if latent in beside:
                    circuit["beside"] = beside[latent]
                if number > 0:  # most of the bytes
                    circuit.pop("scatter", None)
                    circuit.pop("clusters", None)
                piece[str(latent)] = circuit
            yield f"circuit{number}/{first // PIECE}", piece
            more = [i for i in explained.intersection(ids) if piece[str(i)]["n_edges"] > EDGES_SHOWN]
            yield f"edges{number}/{first // PIECE}", {str(i): self.listed[number].edges(i) for i in sorted(more)}
            bar.advance(len(ids))
        for first in range(0, fit.sides.d_source, PIECE):
            ids = range(first, min(first + PIECE, fit.sides.d_source))
            yield f"feeds{number}/{first // PIECE}", {str(i): fit.wiring.source_feeds(i) for i in ids}
