"""Puts the tables of benchmarks/attention.json into docs/results/attention.md, at `<!-- attention: layer 1 -->`.

python scripts/attention_table.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from edges_table import figure

ROOT = Path(__file__).parent.parent

COLUMNS = {
    "precision_1x": "top 1x: strong, right sign",
    "precision_10x": "10x",
    "recall_positive_10x": "strong positive found, 10x",
    "recall_suppressive_10x": "strong suppressive found, 10x",
    "sign_1x": "sign, 1x",
    "slope_1x": "slope, 1x",
    "r2_1x": "r2, 1x",
}


def table(layer: str, found: dict[str, Any]) -> str:
    """One layer's table."""
    rows = found["rows"]
    first = next(iter(rows.values()))
    head = ["edges of", "FVU, validation", "edges", *COLUMNS.values(), "top 1x, pattern and norms held"]
    lines = [
        f"SmolLM2 {layer}: {first['strong']:,} strong effects, at least 10% of the target's mean active value, of one "
        "sign in both halves of the documents, from sources seen at 64 queries; "
        f"{first['strong_suppressive'] / first['strong']:.0%} of them suppressive.",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    for name, row in rows.items():
        cells = [f"{row['fvu']:.3f}" if "fvu" in row else "", f"{row.get('n_edges', row['edges']):,}"]
        cells += [figure(row, key) for key in COLUMNS]
        lines.append(f"| {name} | {' | '.join([*cells, figure(row['frozen'], 'precision_1x')])} |")
    return "\n".join(lines)


def tables(layer: str, found: dict[str, Any]) -> str:
    """All of a layer's."""
    parts = [table(layer, found)]
    if "against" in found:
        parts.append(against(found))
    if "heads" in found:
        parts.append(heads(found))
    return "\n\n".join(parts)


def against(found: dict[str, Any]) -> str:
    """The strongest claims against other effects than those of the table."""
    nulls = found["against"]
    lines = [
        "Of the strongest claims, how many are strong effects of the right sign: in the model, as above; where the "
        "first token's latents go too; and in what no edges should find.",
        "",
        f"| edges of | the model | {' | '.join(nulls)} |",
        "|---" * (len(nulls) + 2) + "|",
    ]
    for name, row in found["rows"].items():
        cells = [figure(null[name], "precision_1x") if name in null else "" for null in nulls.values()]
        lines.append(f"| {name} | {figure(row, 'precision_1x')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def heads(found: dict[str, Any]) -> str:
    """What each head moves."""
    lines = ["| head | of the edges' size | itself | one before | tokens before, most of it | most alike (cosine) |"]
    lines.append("|---" * 6 + "|")
    for head, row in enumerate(found["heads"]):
        share, cosine = f"{row['share']:.0%}", f"{row['cosine']:.2f}".replace("0.", ".")
        here = f"{row['itself']:.0%} | {row['one_before']:.0%} | {row['near']}-{row['far']}"
        lines.append(f"| {head} | {share} | {here} | {row['most_alike']} ({cosine}) |")
    return "\n".join(lines)


def main() -> None:
    result = json.loads((ROOT / "benchmarks" / "attention.json").read_text())
    path = ROOT / "docs" / "results" / "attention.md"
    text = path.read_text()
    for layer, found in result.items():
        mark = f"<!-- attention: {layer} -->"
        assert mark in text, mark
        text = re.sub(rf"{mark}\n(?:.*\n)*?(?=\n(?:<!--|\())", f"{mark}\n{tables(layer, found)}\n", text)
    path.write_text(text)


if __name__ == "__main__":
    main()
