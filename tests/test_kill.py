"""kill -9 at many moments of the whole chain: afterwards the same bytes as an undisturbed run."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from conftest import World


def contents(outputs: Path) -> dict[str, bytes]:
    """Every tensor and table by its path; a manifest holds seconds, so it differs."""
    files = [path for path in outputs.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(outputs)): path.read_bytes() for path in files}


def test_kill_9_at_any_moment(world: World, tmp_path: Path) -> None:
    def command(outputs: str) -> list[str]:
        return [sys.executable, "-m", "saelink", "run", *world.overrides(outputs), "runtime.threads=1"]

    started = time.monotonic()
    assert subprocess.run(command("undisturbed"), cwd=tmp_path, capture_output=True).returncode == 0
    whole = time.monotonic() - started

    kills = 0
    for moment in range(1, 30):
        process = subprocess.Popen(command("killed"), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            # Later and later, so that every stage is hit; the process gets further each time anyway.
            process.communicate(timeout=whole * (0.45 + 0.06 * moment))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0
        break
    assert kills >= 2, "it finished before anything was killed"
    expected, found = contents(tmp_path / "undisturbed"), contents(tmp_path / "killed")
    assert sorted(found) == sorted(expected)
    different = [name for name in expected if expected[name] != found[name]]
    assert not different
