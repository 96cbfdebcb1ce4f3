"""The table of speeds in docs/results/speed.md, from benchmarks/cpu.json.

python -m benchmarks.table
"""

from __future__ import annotations

import json
from pathlib import Path


def main() -> None:
    parts = json.loads(Path(__file__).with_name("cpu.json").read_text()).values()
    about = next(iter(parts))["machine"]
    rates = ", ".join(f"{name} {value}" for name, value in about.items() if "GFLOP/s" in name or "GB/s" in name)
    print(f"{about['processor']}, {about['threads']} threads; {rates}.\n")
    print("| work | target | measured | |")
    print("|---|---|---|---|")
    for row in (row for part in parts for row in part["rows"]):
        mark = {True: "met", False: "missed", None: ""}[row["met"]]
        print(f"| {row['work']} | {row['target']} | {row['measured']} | {mark} |")


if __name__ == "__main__":
    main()
