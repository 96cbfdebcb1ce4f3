"""A report's cards in Python and in a notebook."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Sequence
from typing import Any

from saelink.errors import SaelinkError
from saelink.report.cards.cards import Card
from saelink.report.html import box, facts_table
from saelink.report.render import DATA_FILE
from saelink.report.stage import ReportFacts
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

    def _of(self, side: str, number: int, other: str) -> Card:
        size = self.head["d"][side]
        if not 0 <= number < size:
            raise SaelinkError(f"{side} {number}: there are {size:,}, from 0")
        piece = number // self.head["piece"]
        card = self._piece(f"{side}/{piece}")[str(number)]
        wired = self._piece(f"{other}0/{piece}").get(str(number)) if other else None
        if side == "source":
            return {**card, "feeds": wired}
        return card if not other else {**card, "explained": wired is not None, **(wired or {})}

    def target(self, latent: int) -> CardView:
        """The card of a target latent."""
        return CardView(self._of("target", latent, "circuit"))

    def source(self, latent: int) -> CardView:
        """The card of a source latent, by the connector's numbering."""
        return CardView(self._of("source", latent, "feeds"))

    def hidden(self, unit: int) -> CardView:
        """The card of a hidden unit."""
        return CardView(self._of("hidden", unit, ""))

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
