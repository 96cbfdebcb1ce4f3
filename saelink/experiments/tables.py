"""An experiment's table and picture as files and as text."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from saelink.store.artifact import Artifact

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
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def table_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as aligned text: numbers with three digits, columns that hold one value throughout left out."""
    columns = [name for name in rows[0] if len(rows) == 1 or len({str(row[name]) for row in rows}) > 1]
    cells = [[_cell(row[name]) for name in columns] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(columns)]
    numeric = [all(isinstance(row[name], int | float | None) for row in rows) for name in columns]
    lines = [columns, *cells]
    return "\n".join(
        "  "
        + "  ".join(
            text.rjust(size) if right else text.ljust(size)
            for text, size, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def paragraph(text: str) -> str:
    """The text in lines of 80 columns, as what stands under a table."""
    return textwrap.fill(text, 80, initial_indent="  ", subsequent_indent="  ")


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def finite(value: Any) -> Any:
    """None for what JSON has no number for."""
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def picture(draw: Callable[[Any], None]) -> bytes:
    """A PNG of what `draw` puts into a figure."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(8, 4.6), layout="constrained")
    draw(figure)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130, metadata={"Software": None})
    plt.close(figure)
    return data.getvalue()
