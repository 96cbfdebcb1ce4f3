"""Tables as lines of text: aligned, as wide as the terminal, and nothing in them cut."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from typing import NamedTuple


class Column(NamedTuple):
    """A column and how its cells are set."""

    title: str = ""
    right: bool = False
    """Numbers: aligned at their end."""
    wraps: bool = False
    """Text that may take several lines where it is too long for its row."""


def terminal_width() -> int | None:
    """The columns of the terminal, None where standard output is none: what reads it then gets a line a row."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table_lines(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None = None, indent: int = 0
) -> list[str]:
    """A header, unless no column has a title, and the rows, `indent` blanks in front.

    With a width the columns that wrap take as many lines as they need to fit into it.
    """
    from io import StringIO

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="", show_header=any(column.title for column in columns))
    for i, column in enumerate(columns):
        longest = max((len(text) for text in (column.title, *(row[i] for row in rows))), default=0)
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
    room = max((width or 100_000) - indent, 20)
    # In a notebook too the text is wanted, not a display of its own.
    Console(file=text, width=room, color_system=None, force_jupyter=False).print(table)
    return [" " * indent + line.rstrip() for line in text.getvalue().splitlines()]


def pair_lines(rows: Sequence[tuple[str, str]], width: int | None = None, indent: int = 2) -> list[str]:
    """Names and what is to be said of each, side by side; the texts wrap."""
    return table_lines([Column(), Column(wraps=True)], rows, width, indent)


def formula_lines(text: str, width: int | None = None, indent: int = 2) -> list[str]:
    """A formula on as many lines as it needs, broken in front of a term; later lines stand further in."""
    from rich.cells import cell_len

    lines = [" " * indent]
    for term in re.split(r"(?= [+-] [\d.])", text):
        fits = width is None or cell_len(lines[-1]) + cell_len(term) <= width
        if fits or not lines[-1].strip():
            lines[-1] += term
        else:
            lines.append(" " * (indent + 3) + term)
    return lines


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
