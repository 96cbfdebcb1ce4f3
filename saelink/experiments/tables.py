"""An experiment's table and picture as files and as text."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from saelink.store.artifact import Artifact
from saelink.store.files import csv_bytes

TABLE_FILE = "table.csv"

ROWS_FILE = "table.json"

PICTURE_FILE = "picture.png"

TEXT_FILE = "text.txt"

Row = dict[str, Any]


def rows_of(result: Artifact) -> list[Row]:
    """The table of an experiment's result."""
    table = result.json(ROWS_FILE)
    return [dict(zip(table["columns"], cells, strict=True)) for cells in table["rows"]]


def shown_rows(result: Artifact) -> list[Row]:
    """The table as the terminal shows it."""
    shown = result.json(ROWS_FILE)["shown"]
    return [{name: row[name] for name in shown} for row in rows_of(result)]


def table_csv(rows: Sequence[Row]) -> bytes:
    """The rows as CSV."""
    return csv_bytes(list(rows[0]), rows)


def paragraph(text: str) -> str:
    """The text in lines of 80 columns, as what stands under a table."""
    return textwrap.fill(text, 80, initial_indent="  ", subsequent_indent="  ")


def finite(value: Any) -> Any:
    """None for what JSON has no number for."""
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def picture(draw: Callable[[Any], None]) -> bytes:
    """A PNG of what `draw` puts into a figure."""
    from matplotlib.figure import Figure  # not pyplot: a notebook keeps its own backend

    figure = Figure(figsize=(8, 4.6), layout="constrained")
    draw(figure)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130, metadata={"Software": None})
    return data.getvalue()
