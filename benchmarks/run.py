"""What a user waits for: `saelink run` on an empty disk and again, and `saelink --help`.

    python -m benchmarks.run [folder]     # about 4 minutes on 2 cores; writes benchmarks/run.json

The artifacts stay in `folder`, which has to be empty; without one they go when it ends.

Run it with nothing else on the machine.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def timed(arguments: list[str], folder: str) -> tuple[float, str]:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "saelink", *arguments], cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    return seconds, done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = sys.argv[1] if len(sys.argv) > 1 else temporary
        assert not list(Path(folder).iterdir()), f"{folder} is not empty"
        first, out = timed(["run", "wandb.mode=offline"], folder)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        again, out_again = timed(["run", "wandb.mode=offline"], folder)
        assert "done in" not in out_again, "the second run computed something"
        helps = [timed(["--help"], folder)[0] for _ in range(9)]
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    stages = {}
    for line in out.splitlines():
        if ": done in " in line:
            stage, seconds, what = line.split()[0], line.split("done in ")[1].split()[0], line.split("(")[1]
            stages[f"{stage} {what.rstrip(')')}"] = int(seconds)
    result: dict[str, Any] = {
        "saelink run, empty disk, seconds": round(first, 1),
        "saelink run, again, seconds": round(again, 1),
        "saelink --help, median of 9, seconds": round(statistics.median(helps), 3),
        "peak memory, GB": round(peak, 2),
        "disk, GB": round(size / 1e9, 2),
        "stages, seconds (hooks of one cache pass share theirs)": stages,
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "versions": {name: version(name) for name in ("saelink", "torch", "transformers", "transformer-lens")},
    }
    text = json.dumps(result, indent=1)
    Path(__file__).with_name("run.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
