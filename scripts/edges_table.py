"""Puts the tables of benchmarks/edges.json into docs/results/edges.md, where it has `<!-- edges: layer 1 -->`.

python scripts/edges_table.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

COLUMNS = {
    "precision_1x": "top 1x: strong, right sign",
    "recall_positive_10x": "strong positive found, 10x",
    "recall_suppressive_10x": "strong suppressive found, 10x",
    "sign_1x": "sign, 1x",
    "slope_1x": "slope, 1x",
    "r2_1x": "r2, 1x",
}


def figure(row: dict[str, Any], name: str) -> str:
    """A figure and its 95% interval, as short as it can be."""
    if row.get(name) is None:
        return ""
    values = [row[name], row[f"{name}_low"], row[f"{name}_high"]]
    if not name.startswith("slope"):  # shares end at 0 and 1
        values = [min(max(value, 0.0), 1.0) for value in values]
    texts = [f"{value:.2f}".replace("0.", ".").replace("-.00", ".00") for value in values]
    return f"{texts[0]} ({texts[1]}-{texts[2]})"


def table(layer: str, found: dict[str, Any]) -> str:
    """One layer's table."""
    rows = found["rows"]
    first = next(iter(rows.values()))
    head = ["edges of", "FVU", "CE recovered", "edges", "seconds", *COLUMNS.values()]
    lines = [
        f"SmolLM2 {layer}: {first['strong']:,} strong effects, at least 10% of the target's mean active value, of one "
        "sign in both halves of the documents, from sources seen on 64 tokens; "
        f"{first['strong_suppressive'] / first['strong']:.0%} of them suppressive.",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    for name, row in rows.items():
        cells = [f"{row[key]:.3f}" if row.get(key) is not None else "" for key in ("fvu", "ce_loss_recovered")]
        cells.append(f"{row.get('n_edges', row['edges']):,}")
        cells.append(f"{row['seconds']:.0f}" if "seconds" in row else "")
        lines.append(f"| {name} | {' | '.join([*cells, *(figure(row, key) for key in COLUMNS)])} |")
    return "\n".join(lines)


def main() -> None:
    result = json.loads((ROOT / "benchmarks" / "edges.json").read_text())
    path = ROOT / "docs" / "results" / "edges.md"
    text = path.read_text()
    for layer, found in result.items():
        mark = f"<!-- edges: {layer} -->"
        assert mark in text, mark
        text = re.sub(rf"{mark}\n(?:.*\n)*?(?=\n(?:<!--|\())", f"{mark}\n{table(layer, found)}\n", text)
    path.write_text(text)


if __name__ == "__main__":
    main()
