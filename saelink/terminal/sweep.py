"""A sweep's connectors as a table of error against sparsity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saelink.progress import Observer


def print_pareto(observer: Observer, sweep_id: str, rows: list[dict[str, Any]], folder: Path) -> None:
    """The rows of tracking.sweep.points by link, those on the frontier marked; `folder` holds them as files."""
    observer.say(f"\n{sweep_id}: {len(rows)} connectors, figures on validation documents")
    for link in dict.fromkeys(row["link"] for row in rows):
        observer.say(f"\n  {link}")
        observer.say(
            f"  {'connector, solver':22} {'l1_alpha':>7} {'MSE':>7} {'FVU':>6} {'L1':>7} {'edges>.01':>9}  train"
        )
        for row in rows:
            if row["link"] == link:
                mark = "*" if row["pareto"] else " "
                observer.say(
                    f"{mark} {row['connector'] + ' ' + row['solver']:22} {row['l1_alpha']:7g} {row['mse']:7.3g} "
                    f"{row['fvu']:6.3f} {row['l1']:7.3g} {row['n_edges_above_0.01']:9,}  {row['train']}"
                )
    observer.say("\n  * no other connector for the same targets has both a lower MSE and a lower L1")
    observer.say(f"  {folder / 'pareto.csv'}\n  {folder / 'pareto.png'}")
