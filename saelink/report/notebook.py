"""A report's cards in Python and in a notebook."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from saelink.errors import SaelinkError
from saelink.report.cards.cards import Card
from saelink.report.cards.wiring import EDGES_SHOWN
from saelink.report.html import box, facts_table
from saelink.report.render import DATA_FILE
from saelink.report.stage import ReportFacts
from saelink.report.stored import beside_at, edges_at, examples_at
from saelink.report.structure import Stretch
from saelink.store.artifact import Artifact
from saelink.store.store import Store


class CardView:
    """A card for a notebook: `data` holds what it shows."""

    def __init__(self, data: Card):
        self.data = data

    def _console(self, width: int) -> Any:
        from rich.console import Console

        from saelink.terminal.cards import print_card

        console = Console(
            file=io.StringIO(), record=True, width=width, highlight=False, force_terminal=True, force_jupyter=False
        )
        print_card(self.data, console)
        return console

    def __repr__(self) -> str:
        return self._console(100).export_text().rstrip()

    def _repr_html_(self) -> str:
        return self._console(120).export_html(
            inline_styles=True, code_format='<pre style="line-height:1.3">{code}</pre>'
        )


class Opened:
    """A report's cards from Python."""

    def __init__(self, artifact: Artifact[ReportFacts]):
        self.artifact = artifact
        self._archive = zipfile.ZipFile(artifact.file(DATA_FILE))
        self.head: dict[str, Any] = self._piece("head")
        """What the page shows before any card is opened."""

    def _rows(self) -> list[tuple[str, str]]:
        d = self.head["d"]
        sides = [f"{side}(0) to {side}({d[side] - 1:,})" for side in ("target", "source", "hidden") if d.get(side)]
        return [("connectors", ", ".join(self.connectors)), ("cards", ", ".join(f".{side}" for side in sides))]

    @property
    def _title(self) -> str:
        return f"report {self.artifact.key}: {self.artifact.manifest['about']}"

    def __repr__(self) -> str:
        return "\n".join([self._title, *(f"  {name:12} {text}" for name, text in self._rows())])

    def _repr_html_(self) -> str:
        return box(self._title, facts_table(self._rows()))

    def _piece(self, name: str) -> Any:
        return json.loads(gzip.decompress(self._archive.read(f"{name}.json.gz")))

    def _stretches(self, sequence: int) -> list[Stretch]:
        return self._piece(f"text/{sequence // self.head['text_piece']}")[str(sequence)]

    def _card(self, side: str, number: int) -> Card:
        size = self.head["d"][side]
        if not 0 <= number < size:
            raise SaelinkError(f"{side} {number}: there are {size:,}, from 0")
        card = self._piece(f"{side}/{number // self.head['piece']}")[str(number)]
        sequences = self.head["sequences"]
        return {**card, "examples": examples_at(card["examples"], self._stretches, self.head["context"], sequences)}

    def _edges(self, kind: str, number: int) -> list[dict[str, Any]]:
        columns = self._piece(f"{kind}0/{number // self.head['piece']}")
        return edges_at(columns, number, self.head["verdicts"]) or []

    def _named(self, edge: dict[str, Any]) -> dict[str, Any]:
        """An edge into a target with the name and the token of its input."""
        number, direct = edge.pop("number"), self.head["direct"]
        if number >= direct:
            return {**edge, "input": number, "name": f"H{number - direct}"}
        names, tokens = self._index["source_name"], self._index["source_token"]
        return {**edge, "input": number, "name": names[number], "token": tokens[number]}

    @cached_property
    def _index(self) -> dict[str, Any]:
        return self._piece("index")

    def target(self, latent: int) -> CardView:
        """The card of a target latent."""
        card = self._card("target", latent)
        circuit = self._piece(f"circuit0/{latent // self.head['piece']}").get(str(latent))
        if circuit is None:
            return CardView({**card, "explained": False})
        edges = [self._named(edge) for edge in self._edges("edges", latent)[:EDGES_SHOWN]]
        beside = {"beside": beside_at(circuit["beside"], card["examples"])} if "beside" in circuit else {}
        return CardView({**card, "explained": True, **circuit, "edges": edges, **beside})

    def source(self, latent: int) -> CardView:
        """The card of a source latent, by the connector's numbering."""
        tokens: list[str | None] = self._index["token"]
        feeds: list[dict[str, Any]] = []
        for edge in self._edges("feeds", latent):
            number = edge.pop("number")
            known = {"name": f"OF{number}", "token": tokens[number]} if number >= 0 else {"name": f"H{-1 - number}"}
            feeds.append({**edge, **known})
        return CardView({**self._card("source", latent), "feeds": feeds})

    def hidden(self, unit: int) -> CardView:
        """The card of a hidden unit."""
        return CardView(self._card("hidden", unit))

    @property
    def connectors(self) -> Sequence[str]:
        """Keys of the connectors whose circuits it holds."""
        return self.artifact.facts["connectors"]


def open_report(key: str, outputs: str = "outputs") -> Opened:
    """The newest report with this key, or about the connector with this key. Raises SaelinkError for none."""
    store = Store(outputs)
    for artifact in reversed(store.artifacts()):
        if artifact.stage == "report" and any(
            name.startswith(key) for name in (artifact.key, artifact.manifest["inputs"]["connector0"])
        ):
            return Opened(artifact)
    raise SaelinkError(
        f"{key}: no report in {outputs} has this key or is about this connector; `saelink report` makes one"
    )
