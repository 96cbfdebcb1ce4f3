"""Speed on this CPU: every row with its target, what was measured, and the peers on the same work.

    python -m benchmarks            # all but memory, 15 minutes; writes benchmarks/cpu.json
    python -m benchmarks memory     # 6 minutes (promises: 23, busy); a named part takes its place in cpu.json

Run it with nothing else on the machine.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from benchmarks import frontier, growth, path, promises, scaling, stages, steps
from benchmarks.work import as_json, machine

PARTS = {
    "steps": steps.rows,
    "frontier": frontier.rows,
    "path": path.rows,
    "stages": stages.rows,
    "growth": growth.rows,
    "memory": growth.memory,
    "promises": promises.rows,
    "scaling": scaling.rows,
}
ON_REQUEST = ("memory", "promises", "scaling")
"""Parts that are only measured when they are named: they take long and do not depend on the machine's speed."""

RESULT = Path(__file__).with_name("cpu.json")


def main() -> None:
    names = sys.argv[1:] or [name for name in PARTS if name not in ON_REQUEST]
    if unknown := set(names) - set(PARTS):
        sys.exit(f"benchmarks: no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    about = machine()
    print(json.dumps(about, indent=1))
    for name in names:
        started = time.perf_counter()
        rows = [row.print() for row in PARTS[name]()]
        result[name] = {"machine": about, "seconds": round(time.perf_counter() - started), "rows": as_json(rows)}
        RESULT.write_text(json.dumps({part: result[part] for part in PARTS if part in result}, indent=1) + "\n")
    for name in PARTS:
        for row in result.get(name, {"rows": []})["rows"]:
            print(f"{'MISSED' if row['met'] is False else '      '} {row['work']}: {row['measured']}")


if __name__ == "__main__":
    main()
