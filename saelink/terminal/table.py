"""Tables as lines of text: aligned, as wide as the terminal, and nothing in them cut."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import NamedTuple


class Column(NamedTuple):
    """A column and how its cells are set."""

    title: str
    right: bool = False
    """Numbers: aligned at their end."""
    wraps: bool = False
    """Text that may take several lines where it is too long for its row."""


def terminal_width() -> int | None:
    """The columns of the terminal, None where standard output is none: what reads it then gets a line a row."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table_lines(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """A header and the rows; with a width the columns that wrap take as many lines as they need to fit into it."""
    from io import StringIO

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    for i, column in enumerate(columns):
        longest = max(len(text) for text in (column.title, *(row[i] for row in rows)))
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            overflow="fold",
            no_wrap=not column.wraps,
            min_width=None if column.wraps else longest,
        )
    for row in rows:
        table.add_row(*map(Text, row))
    text = StringIO()
    Console(file=text, width=width or 100_000, color_system=None).print(table)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def blocks(sizes: Sequence[int], naming: int, width: int | None) -> list[list[int]]:
    """Which columns stand beside each other: parts that fit into `width`, each beginning with the first `naming`."""
    first = list(range(naming))
    parts = [list(first)]
    for i in range(naming, len(sizes)):
        taken = sum(sizes[column] + 2 for column in parts[-1])
        if width is not None and taken + sizes[i] > width and len(parts[-1]) > naming:
            parts.append(list(first))
        parts[-1].append(i)
    return parts
