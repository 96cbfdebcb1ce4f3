"""A page of Markdown tables from the CSV files that an experiment run left in its sweep's folder.

python scripts/tables.py outputs/sweeps/sweep0123abcd "Title" > docs/results/quick.md
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

ORDER = [
    "dense", "percent_linear", "noise_threshold", "pareto", "sparse_linear", "sae_connector", "hidden_size",
    "outliers", "attention", "closure", "norms", "post",
]  # fmt: skip

LEFT_OUT = {"train", "threshold", "n_targets", "fitted on"}


def cell(text: str) -> str:
    """Three digits for a number with a fraction; anything else as it is."""
    try:
        number = float(text)
    except ValueError:
        return text.replace("|", "\\|")
    return f"{int(number):,}" if number.is_integer() and "." not in text else f"{number:.3g}"


def main() -> None:
    folder, title = Path(sys.argv[1]), sys.argv[2]
    print(f"# {title}\n")
    names = [path.stem for path in folder.glob("*.csv")]
    for name in sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)):
        with (folder / f"{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        columns = [column for column in rows[0] if column not in LEFT_OUT]
        print(f"## {name}\n")
        print("| " + " | ".join(columns) + " |")
        print("|" + "---|" * len(columns))
        for row in rows:
            print("| " + " | ".join(cell(row[column]) for column in columns) + " |")
        print()


if __name__ == "__main__":
    main()
