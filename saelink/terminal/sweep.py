"""A sweep's connectors as a table of error against sparsity."""

from __future__ import annotations

from pathlib import Path

from saelink.evidence.compared import Row, differing, series_of
from saelink.progress import Observer


def print_pareto(observer: Observer, sweep_id: str, rows: list[Row], folder: Path) -> None:
    """The rows of a sweep, a part for each line of its picture; `folder` holds them as files.

    Those on the frontier are marked.
    """
    observer.say(f"\n{sweep_id}: {len(rows)} connectors, figures on validation documents")
    names = differing(rows)
    series: dict[str, list[Row]] = {}
    for row in rows:
        series.setdefault(series_of(row, names), []).append(row)
    observer.say(f"\n  {'l1_alpha':>8} {'MSE':>8} {'FVU':>6} {'L1':>8} {'edges':>10} {'above .01':>10}  train")
    for name, part in series.items():
        observer.say(f"  {name}")
        for row in part:
            mark = "*" if row["pareto"] else " "
            observer.say(
                f"{mark} {row['l1_alpha']:8g} {row['mse']:8.3g} {row['fvu']:6.3f} {row['l1']:8.3g} "
                f"{row['n_edges']:10,} {row['n_edges_above_0.01']:10,}  {row['train']}"
            )
    observer.say("\n  * below FVU 1, and no other connector of the same latents has a lower MSE and a lower L1")
    observer.say(f"  {folder / 'pareto.csv'}\n  {folder / 'pareto.png'}")
