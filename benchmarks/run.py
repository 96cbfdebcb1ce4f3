"""What a new user waits for: every command of docs/quickstart.md in an empty folder, and how fast the terminal answers.

    python -m benchmarks.run [folder]     # about 10 minutes on 2 cores; writes benchmarks/run.json

The artifacts stay in `folder`, which has to be empty; without one they go when it ends. It fails where a wait is longer
than in BOUNDS. Run it with nothing else on the machine.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

QUICKSTART = Path(__file__).parent.parent / "docs" / "quickstart.md"

BOUNDS = {
    "saelink run": 240,
    "saelink run, again": 5,
    "the report's page": 20,
    "saelink show target 1262": 2,
    "saelink.open": 2,
    "saelink --help": 1.5,
    "saelink train --help": 1.5,
    "saelink train --cfg job": 1.5,
    "saelink train layr=3": 1.5,
}
"""Seconds on 2 cores that each may take."""

TIMES = 5
"""How often what takes moments is timed; the median counts."""

OPENED = "import saelink; saelink.open({key!r}).target(1262)"


def steps() -> list[str]:
    """The commands of the quickstart, in order."""
    return [line.strip() for line in QUICKSTART.read_text().splitlines() if line.startswith("    saelink ")]


def timed(words: list[str], folder: Path, fails: bool = False) -> tuple[float, str]:
    """Seconds and output of Python with these words."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    assert (done.returncode == 1) == fails, done.stdout + done.stderr
    return seconds, done.stdout


def saelink(command: str) -> list[str]:
    return ["-m", *shlex.split(command, comments=True)]


def stages_of(out: str) -> dict[str, int]:
    """By stage and what it is about the seconds that a command's output gives for it."""
    found = re.findall(r"^(\w+) \w+: done in (\d+) s \((.*)\)$", out, re.MULTILINE)
    return {f"{stage} {about}": int(seconds) for stage, seconds, about in found}


def answers(folder: Path, report: str) -> dict[str, float]:
    """The median wait for what should answer at once."""
    asked = {
        "saelink show target 1262": saelink("saelink show target 1262"),
        "saelink.open": ["-c", OPENED.format(key=report)],
        "saelink --help": saelink("saelink --help"),
        "saelink train --help": saelink("saelink train --help"),
        "saelink train --cfg job": saelink("saelink train --cfg job"),
        "saelink train layr=3": saelink("saelink train layr=3"),
    }
    return {
        name: statistics.median(timed(words, folder, fails="layr" in name)[0] for _ in range(TIMES))
        for name, words in asked.items()
    }


def measured(folder: Path) -> dict[str, Any]:
    """Everything, in an empty folder."""
    commands = steps()
    assert commands[0] == "saelink run"
    waits: dict[str, float] = {}
    waits[commands[0]], out = timed(saelink(commands[0]), folder)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    waits["saelink run, again"], again = timed(saelink(commands[0]), folder)
    assert "done in" not in again, "the second run computed something"
    found = [line.split()[0] for line in again.splitlines() if ": up to date" in line]
    assert len(found) == len(set(found)), "more than one line a stage"
    stages = stages_of(out)
    parts = {name: seconds for name, seconds in stages.items() if name.split()[0] in ("report", "ablations")}
    waits["the report's page"] = 2 * max(parts.values()) - sum(parts.values())  # its own seconds hold the others'
    (report,) = re.findall(r"outputs/report/(\w+)/report\.html", again)
    waits |= answers(folder, report)
    for command in commands[1:]:
        if command not in waits:
            waits[command] = timed(saelink(command), folder)[0]
    return {
        "waits, seconds": {name: round(seconds, 2) for name, seconds in waits.items()},
        "bounds, seconds": BOUNDS,
        "peak memory of saelink run, GB": round(peak, 2),
        "disk after saelink run, GB": round(size / 1e9, 2),
        "stages of saelink run, seconds (each with those it pulls; hooks of one cache pass share theirs)": stages,
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "versions": {name: version(name) for name in ("saelink", "torch", "transformers", "transformer-lens")},
    }


def late(result: dict[str, Any]) -> list[str]:
    """A line for each wait that is longer than its bound."""
    waits = result["waits, seconds"]
    return [f"{name}: {waits[name]} s, at most {most}" for name, most in BOUNDS.items() if waits[name] > most]


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary).resolve()
        assert not list(folder.iterdir()), f"{folder} is not empty"
        result = measured(folder)
    text = json.dumps(result, indent=1)
    Path(__file__).with_name("run.json").write_text(text + "\n")
    print(text)
    if late(result):
        sys.exit("\n".join(late(result)))


if __name__ == "__main__":
    main()
