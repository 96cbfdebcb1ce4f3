"""A small part of the fault bench, row by row; `make faults` measures all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

COUNTS = {
    "kill at each call": 12, "kill anywhere": 12, "errors at each call": 24, "full disk": 16, "damage": 200,
    "races": 15, "stale hits": 40, "signals": 12, "hostile files": 52, "secrets": 50, "one of several jobs": 2,
    "seeded defects": 1,
}  # fmt: skip

AT_ONCE = ("secrets", "one of several jobs", "seeded defects")
"""Rows that run whole commands: not begun a second time."""


LONG = ("one of several jobs", "secrets", "hostile files", "seeded defects")
"""Half a minute and more each."""


@pytest.mark.parametrize("row", [pytest.param(row, marks=[pytest.mark.slow] if row in LONG else []) for row in COUNTS])
def test_a_row_of_the_fault_bench(row: str, tmp_path: Path) -> None:
    result = tmp_path / "faults.json"
    command = [sys.executable, "-m", "benchmarks.faults", "--row", row, "--result", str(result)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    half = COUNTS[row] // 2
    for count in [COUNTS[row]] if row in AT_ONCE else [half, COUNTS[row]]:  # it goes on where it was
        done = subprocess.run(
            [*command, "--count", str(count)], capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        if "skipped" in done.stdout:
            pytest.skip(done.stdout)
        assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(result.read_bytes())[row]
    assert (figures["cases"], figures["failed"]) == (COUNTS[row], 0)
    assert sum(figures["outcomes"].values()) == COUNTS[row]
