"""kill -9 at many moments of the whole chain: afterwards the same bytes as an undisturbed run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from helpers.world import World


def contents(outputs: Path) -> dict[str, bytes]:
    """Every tensor and table by its path; a manifest holds seconds, so it differs."""
    files = [path for path in outputs.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(outputs)): path.read_bytes() for path in files}


def places(folder: Path) -> set[str]:
    """Every file and folder; os.walk bears that a folder is renamed meanwhile, Path.rglob does not."""
    return {f"{root}/{name}" for root, folders, files in os.walk(folder) for name in [*folders, *files]}


def test_kill_9_at_any_moment(world: World, tmp_path: Path) -> None:
    def command(outputs: str) -> list[str]:
        return [sys.executable, "-m", "saelink", "run", *world.overrides(outputs), "runtime.threads=1"]

    assert subprocess.run(command("undisturbed"), cwd=tmp_path, capture_output=True).returncode == 0

    # The moments are counted in files, not in seconds, which another process on the machine would stretch: the first
    # start dies at its first new file, the next at its tenth, its nineteenth ..., 0 to 40 ms after it.
    killed = tmp_path / "killed"
    kills = 0
    for moment in range(1, 60, 9):
        before = places(killed)
        process = subprocess.Popen(
            command("killed"), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and len(places(killed) - before) < moment:
            time.sleep(0.002)
        time.sleep(0.02 * (moment // 9 % 3))
        if process.poll() is not None:
            assert process.returncode == 0
            break
        process.kill()
        process.wait()
        kills += 1
    assert kills >= 3, "it finished before anything was killed"
    gc = [sys.executable, "-m", "saelink", "gc", "--outputs", str(killed)]
    assert subprocess.run(gc, cwd=tmp_path, capture_output=True).returncode == 0
    expected, found = contents(tmp_path / "undisturbed"), contents(killed)
    assert sorted(found) == sorted(expected)
    different = [name for name in expected if expected[name] != found[name]]
    assert not different
