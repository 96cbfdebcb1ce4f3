"""A sweep's connectors as a table of error against sparsity."""

from __future__ import annotations

from pathlib import Path

from saelink.evidence.compared import Row, differing, series_of
from saelink.progress import Observer
from saelink.terminal.table import Column, table_lines


def print_pareto(observer: Observer, sweep_id: str, rows: list[Row], folder: Path) -> None:
    """The rows of a sweep, a part for each line of its picture; `folder` holds them as files.

    Those on the frontier are marked.
    """
    observer.say(f"\n{sweep_id}: {len(rows)} connectors, figures on validation documents")
    names = differing(rows)
    series: dict[str, list[Row]] = {}
    for row in rows:
        series.setdefault(series_of(row, names), []).append(row)
    titles = ("l1_alpha", "MSE", "FVU", "L1", "edges", "above .01")
    columns = [Column(), *(Column(title, right=True) for title in titles), Column("train")]
    cells = [_cells(row) for part in series.values() for row in part]
    header, *lines = table_lines(columns, cells)
    observer.say(f"\n{header}")
    for name, part in series.items():
        observer.say(f"   {name}")
        for line in lines[: len(part)]:
            observer.say(line)
        lines = lines[len(part) :]
    observer.say("\n  * below FVU 1; no other fit of the same latents has lower MSE and lower L1")
    observer.say(f"  {folder / 'pareto.csv'}\n  {folder / 'pareto.png'}")


def _cells(row: Row) -> tuple[str, ...]:
    return (
        "*" if row["pareto"] else "",
        f"{row['l1_alpha']:g}",
        f"{row['mse']:.3g}",
        f"{row['fvu']:.3f}",
        f"{row['l1']:.3g}",
        f"{row['n_edges']:,}",
        f"{row['n_edges_above_0.01']:,}",
        row["train"],
    )
