"""Speed on this CPU: every row with its target, what was measured, and the peers on the same work.

    python -m benchmarks [steps|frontier|stages ...]     # writes benchmarks/cpu.json

Run it with nothing else on the machine.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from benchmarks import frontier, path, stages, steps
from benchmarks.work import Row, as_json, machine

PARTS = {"steps": steps.rows, "frontier": frontier.rows, "path": path.rows, "stages": stages.rows}


def main() -> None:
    started = time.perf_counter()
    names = sys.argv[1:] or list(PARTS)
    about = machine()
    print(json.dumps(about, indent=1))
    found: list[Row] = [row.print() for name in names for row in PARTS[name]()]
    missed = sum(row.met is False for row in found)
    minutes = (time.perf_counter() - started) / 60
    print(f"{len(found)} rows, {missed} below target, {minutes:.1f} minutes")
    if not sys.argv[1:]:
        result = {"machine": about, "minutes": round(minutes, 1), "rows": as_json(found)}
        Path(__file__).with_name("cpu.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
