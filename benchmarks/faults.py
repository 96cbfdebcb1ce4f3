"""The fault bench of the store: what is lost, wrong or left over when something goes wrong, row by row.

    python -m benchmarks.faults                          # what is missing of benchmarks/faults.json, about an hour
    python -m benchmarks.faults --row races --count 100  # some of one row
    python -m benchmarks.faults --anew                   # all of it again

Each case of a row has a number, and is the same each time. The result file is written every few seconds: a bench that
was killed goes on where it was. A row that can't be measured here (no strace, no right to mount) says so.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.fault_rows import ROWS, Row
from benchmarks.faulty import prepare

RESULT = Path(__file__).with_name("faults.json")

SHOWN = 10
"""Failures that are kept of a row."""


def measured(row: Row, known: dict[str, Any], count: int, save: Any) -> dict[str, Any]:
    """The row's figures up to case `count`, from where `known` ends."""
    figures = {"wanted": row.wanted, "cases": 0, "failed": 0, "seconds": 0.0, "outcomes": {}, "failures": []} | known
    outcomes = Counter(figures["outcomes"])
    started, before = time.monotonic(), figures["seconds"]
    saved = started
    with tempfile.TemporaryDirectory(prefix="saelink-faults-") as folder:
        for case in range(figures["cases"], count):
            place = Path(folder, str(case))
            place.mkdir()
            try:
                outcomes[row.run(case, place)] += 1
            except Exception as error:  # whatever goes wrong is what is looked for
                figures["failed"] += 1
                if len(figures["failures"]) < SHOWN:
                    figures["failures"].append(f"case {case}: {type(error).__name__}: {str(error)[:500]}")
            shutil.rmtree(place, ignore_errors=True)
            figures |= {"cases": case + 1, "outcomes": dict(sorted(outcomes.items()))}
            figures["seconds"] = round(before + time.monotonic() - started, 1)
            if time.monotonic() - saved > 5:
                saved = time.monotonic()
                save(figures)
    return figures


def table(result: dict[str, Any]) -> str:
    """The results as the documentation shows them."""
    lines = ["| fault | wanted | cases | failed | how they came out |", "|---|---|---|---|---|"]
    for row in ROWS:
        figures = result.get(row.name)
        if figures is not None:
            counted = Counter[str]()
            for name, number in figures["outcomes"].items():  # of kinds with outcomes of their own those together
                counted[name.split(": ")[-1] if row.name == "hostile files" else name] += number
            outcomes = ", ".join(f"{number:,} {name}" for name, number in sorted(counted.items()))
            outcomes = "all found" if row.name == "damage" and not figures["failed"] else outcomes
            lines.append(f"| {row.name} | {row.wanted} | {figures['cases']:,} | {figures['failed']} | {outcomes} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="the fault bench of the store")
    parser.add_argument("--row", action="append", choices=[row.name for row in ROWS], help="only this row")
    parser.add_argument("--count", type=int, help="at most so many cases of a row")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--table", action="store_true", help="only print what was measured, for the documentation")
    parser.add_argument("--anew", action="store_true", help="forget what was measured before")
    asked = parser.parse_args(arguments)
    result: dict[str, Any] = {}
    if asked.result.exists() and not asked.anew:
        result = json.loads(asked.result.read_bytes())
    if asked.table:
        print(table(result))
        return 0
    prepare()
    failed = 0
    for row in ROWS:
        if asked.row and row.name not in asked.row:
            continue
        why = row.missing()
        if why is not None:
            print(f"{row.name}: skipped, {why}", flush=True)
            continue

        def save(figures: dict[str, Any], name: str = row.name) -> None:
            result[name] = figures
            asked.result.write_text(json.dumps(result, indent=1) + "\n")

        count = row.count()
        figures = measured(
            row, result.get(row.name, {}), count if asked.count is None else min(count, asked.count), save
        )
        save(figures)
        failed += figures["failed"]
        said = ", ".join(f"{number:,} {name}" for name, number in figures["outcomes"].items())
        print(
            f"{row.name}: {figures['cases']:,} cases, {figures['failed']} failed ({said}), {figures['seconds']:.0f} s"
        )
        for line in figures["failures"]:
            print(f"  {line}")
        sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
