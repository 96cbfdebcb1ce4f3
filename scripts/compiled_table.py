"""Puts the table of benchmarks/compiled.json into docs/results/evidence.md, where it has `<!-- compiled -->`.

python scripts/compiled_table.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

MARK = "<!-- compiled -->"

SHARES = {"auroc": "AUROC", "precision": "precision", "recall": "recall"}


def table(found: dict[str, Any]) -> str:
    """The ways to draw edges, and the verdicts on those of one."""
    lines = [f"| edges of | {' | '.join(SHARES.values())} |", "|---" * (len(SHARES) + 1) + "|"]
    for name, row in found["summary"].items():
        cells = [f"{row[key]:.2f} ({row[f'{key}_low']:.2f} to {row[f'{key}_high']:.2f})" for key in SHARES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    cases = [case for program in found["programs"].values() for case in program.values()]
    sizes = {key: sum(case[key] for case in cases) for key in ("edges", "edges that move their target")}
    pairs = sum(case["sources"] * case["targets"] for case in cases)
    lines += [
        "",
        f"{len(found['programs'])} programs, {len(cases)} MLPs, {pairs:,} pairs, {sizes['edges']} edges, of which "
        f"{sizes['edges that move their target']} move their target on some input. Verdicts on the edges of the exact "
        "linear connector at 8e-4:",
        "",
    ]
    words = list(cases[0]["verdicts"]["in the circuit"])
    lines += [f"| edges | {' | '.join(words)} |", "|---" * (len(words) + 1) + "|"]
    for kind in cases[0]["verdicts"]:
        counts = [str(sum(case["verdicts"][kind][word] for case in cases)) for word in words]
        lines.append(f"| {kind} | {' | '.join(counts)} |")
    return "\n".join(lines)


def main() -> None:
    found = json.loads((ROOT / "benchmarks" / "compiled.json").read_text())
    path = ROOT / "docs" / "results" / "evidence.md"
    made = f"{MARK}\n{table(found)}\n<!-- end -->"
    path.write_text(re.sub(rf"{MARK}\n(?:.*\n)*?<!-- end -->", lambda _: made, path.read_text()))


if __name__ == "__main__":
    main()
