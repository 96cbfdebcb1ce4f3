"""The data of the page in pieces, which the browser unpacks when they are asked for."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from saelink.config.schema import Config
from saelink.engine.work import Work
from saelink.evidence.verdicts import VERDICTS
from saelink.experiments.tables import PICTURE_FILE, TEXT_FILE, shown_rows
from saelink.interventions.oracle import OracleStage
from saelink.job import Job
from saelink.report.cards.cards import Card, Cards
from saelink.report.cards.listed import Listed
from saelink.report.cards.meaning import meanings
from saelink.report.cards.wiring import EDGES_SHOWN
from saelink.report.heads import HeadPages
from saelink.report.highlights import Highlights
from saelink.report.overview import PIECE, text_piece
from saelink.report.render import packed
from saelink.report.stored import FEW, beside_stored, edge_columns, examples_stored, number_of, stretches
from saelink.report.structure import EdgeColumns, Meaning, Stretch
from saelink.store.artifact import Artifact
from saelink.store.draft import Part, Parts
from saelink.store.store import Store


class Piece(NamedTuple):
    """Consecutive latents of one kind of data."""

    kind: str
    """target, source, hidden, moved, text, or circuit, edges and feeds with the connector's number"""
    first: int
    last: int
    size: int
    """Of each piece of its kind: latents, of text sequences."""

    @property
    def number(self) -> int:
        return self.first // self.size

    @property
    def name(self) -> str:
        """What the page calls it."""
        return f"{self.kind}/{self.number}"

    @property
    def file(self) -> str:
        """Where a worker leaves it."""
        return f"piece-{self.kind}-{self.number}.json.gz"


def pieces_of(jobs: list[Job]) -> Pieces:
    """What the page shows of these connectors' latents; its first screen is about the first."""
    first = Cards(jobs[0])
    fits = [first, *(Cards(job, first.firing) for job in jobs[1:])]  # what the latents fire on is the same
    oracle = OracleStage(jobs[0]).pull().tensors("errors.safetensors")["mse"]
    variance = first.wiring.evaluation.tensors("latents.safetensors")["variance"]
    reached = torch.where(variance > 0, oracle / variance, torch.nan)
    listed = [Listed(fit.wiring, reached) for fit in fits]
    return Pieces(jobs[0], fits, listed, Highlights(jobs[0], first), HeadPages(jobs[0]))


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

    def __init__(
        self, job: Job, fits: list[Cards], listed: list[Listed], highlights: Highlights, heads: HeadPages
    ):  # fmt: skip
        self.job, self.fits, self.listed, self.highlights, self.heads = job, fits, listed, highlights, heads
        self.cards, self.wiring, self.sides = fits[0], fits[0].wiring, fits[0].sides
        self.kept_targets, self.kept_sources = highlights.kept()

    def of_latents(self) -> list[Piece]:
        """All pieces that are cut by latents, and of the text."""
        sides = self.sides
        kinds = [("target", sides.d_target), ("source", sides.d_source)]
        for number in range(len(self.fits)):
            kinds += [(f"circuit{number}", sides.d_target), (f"edges{number}", sides.d_target)]
            kinds.append((f"feeds{number}", sides.d_source))
        if self.wiring.has_hidden:
            kinds.append(("hidden", self.wiring.connector.n_hidden))
        if self.heads.artifact is not None:
            kinds.append(("moved", sides.d_target))
        facts = sides.target.facts
        sizes = [(kind, d, PIECE) for kind, d in kinds]
        sizes.append(("text", sum(facts["sequences"].values()), text_piece(facts["context_size"])))
        return [
            Piece(kind, first, min(first + size, d), size) for kind, d, size in sizes for first in range(0, d, size)
        ]

    def make(self, piece: Piece) -> Mapping[str, Any]:
        """What the piece holds: cards and circuits by latent, text by sequence, edges in columns."""
        ids = range(piece.first, piece.last)
        if piece.kind.startswith("circuit"):
            return self._circuits(int(piece.kind.removeprefix("circuit")), ids)
        if piece.kind.startswith("edges"):
            return self._edges(int(piece.kind.removeprefix("edges")), ids)
        if piece.kind.startswith("feeds"):
            return self._feeds(int(piece.kind.removeprefix("feeds")), ids)
        if piece.kind == "moved":
            through = {str(target): self.heads.into(target) for target in ids}
            return {target: edges for target, edges in through.items() if edges is not None}
        if piece.kind == "text":
            return self._text(ids)
        card = self._kinds[piece.kind]
        return {str(latent): _stored(card(latent)) for latent in ids}

    @property
    def _kinds(self) -> dict[str, Callable[[int], Card]]:
        return {"target": self._target_card, "source": self._source_card, "hidden": self.cards.hidden_unit}

    def others(self, experiments: list[Artifact[Any]]) -> Iterator[tuple[str, Any]]:
        """Experiments, ablations and heads, by name."""
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
        for card in self.heads.cards():
            yield f"head/{card['head']}", card

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
            circuit: dict[str, Any] = {**self.fits[number].wiring.circuit(latent)}
            circuit.pop("edges")  # those of all targets are in pieces of their own
            if latent in beside:
                circuit["beside"] = beside_stored(beside[latent])
            if number > 0:  # most of the bytes
                circuit.pop("scatter", None)
                circuit.pop("clusters", None)
            found[str(latent)] = circuit
        return found

    def _edges(self, number: int, ids: range) -> EdgeColumns:
        """All edges into each target; of the strongest all that a card tells of them."""
        wiring, listed = self.fits[number].wiring, self.listed[number]
        rows: dict[int, list[dict[str, Any]]] = {}
        for latent in sorted(self._explained[number].intersection(ids)):
            rows[latent] = listed.edges(latent)
            for row, term in zip(rows[latent], wiring.terms(latent)["edges"], strict=False):
                known = () if row["number"] < wiring.direct else ("token",)
                row |= {name: term[name] for name in (*FEW, *known, "edges") if name in term}
        return edge_columns(rows, VERDICTS, EDGES_SHOWN)

    def _feeds(self, number: int, ids: range) -> EdgeColumns:
        """What each source feeds most."""
        rows: dict[int, list[dict[str, Any]]] = {}
        for latent in ids:
            rows[latent] = []
            for fed in self.fits[number].wiring.source_feeds(latent):
                row: dict[str, Any] = {**fed, "number": number_of(fed["name"])}
                if row["number"] >= 0:
                    row.pop("token")  # the index has it
                rows[latent].append(row)
        return edge_columns(rows, VERDICTS, 2 * EDGES_SHOWN)

    @cached_property
    def _places(self) -> np.ndarray[Any, Any]:
        """The rows of the text that examples are about, in order."""
        firing, sides = self.cards.firing, self.sides
        asked = [(firing.looked(sides.target), latent) for latent in self.kept_targets]
        for source in self.kept_sources:
            place, number = sides.side_of(source)
            asked.append((firing.looked(sides.sources[place]), number))
        if self.wiring.has_hidden:
            asked += [(firing.hidden(self.job), unit) for unit in range(self.wiring.connector.n_hidden)]
        found = [looked.places[latent, looked.shown(latent)] for looked, latent in asked]
        return np.unique(np.concatenate([np.zeros(0, np.int64), *found]))

    def _text(self, sequences: range) -> dict[str, list[Stretch]]:
        """By sequence what examples show of it."""
        context = self.sides.target.facts["context_size"]
        within = np.searchsorted(self._places, [sequences.start * context, sequences.stop * context])
        found: dict[str, list[Stretch]] = {}
        for sequence, first, last in stretches(self._places[slice(*within)], context):
            begin = sequence * context
            text = self.cards.firing.stretch(begin + first, begin + last + 1, context)
            found.setdefault(str(sequence), []).append(text)
        return found


def _stored(card: Card) -> dict[str, Any]:
    return {**card, "examples": examples_stored(card["examples"])}
