"""An experiment's table and what stands under it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from saelink.experiments.tables import TEXT_FILE, shown_rows
from saelink.progress import Observer
from saelink.store.artifact import Artifact
from saelink.terminal.table import Column, blocks, table_lines, terminal_width


def print_result(observer: Observer, result: Artifact[Any]) -> None:
    """The table, the text under it and where the result is."""
    observer.say("")
    for line in rows_lines(shown_rows(result), terminal_width()):
        observer.say(line)
    observer.say(result.file(TEXT_FILE).read_text().rstrip())
    observer.say(f"\n  {result.path}")


def rows_lines(rows: Sequence[Mapping[str, Any]], width: int | None = None) -> list[str]:
    """The rows as aligned text: numbers with three digits, columns that hold one value throughout left out.

    A table that is wider than `width` comes in parts below one another, each with the columns that name the rows.
    """
    names = [name for name in rows[0] if len(rows) == 1 or len({str(row[name]) for row in rows}) > 1]
    numeric = [all(isinstance(row[name], int | float | None) for row in rows) for name in names]
    columns = [Column(name, right) for name, right in zip(names, numeric, strict=True)]
    cells = [[_cell(row[name]) for name in names] for row in rows]
    sizes = [max(len(column.title), *(len(line[i]) for line in cells)) for i, column in enumerate(columns)]
    naming = numeric.index(True) if True in numeric else 0
    lines: list[str] = []
    for part in blocks(sizes, naming, None if width is None else width - 2):
        table = table_lines([columns[i] for i in part], [[line[i] for i in part] for line in cells])
        lines += [*([""] if lines else []), *(f"  {line}" for line in table)]
    return lines


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
