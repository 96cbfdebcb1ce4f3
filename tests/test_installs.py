"""The locks hold what pyproject.toml asks for, as constraints that any machine can use."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLASSIFIER = "Programming Language :: Python :: "
PYTHONS = [line.removeprefix(CLASSIFIER) for line in PROJECT["classifiers"] if line.startswith(CLASSIFIER + "3.")]


def lines(python: str) -> list[str]:
    text = (ROOT / "locks" / f"py{python.replace('.', '')}.txt").read_text()
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_every_supported_python_has_a_lock() -> None:
    supported = SpecifierSet(PROJECT["requires-python"])
    assert [f"3.{minor}" for minor in range(30) if f"3.{minor}" in supported] == PYTHONS
    assert {path.stem for path in (ROOT / "locks").glob("*.txt")} == {f"py{each.replace('.', '')}" for each in PYTHONS}


@pytest.mark.parametrize("python", PYTHONS)
def test_a_lock_is_pins_alone(python: str) -> None:
    """No index, no address, no path, no extra: pip refuses some of them in constraints, others hold on one machine."""
    for line in lines(python):
        assert re.fullmatch(r"[a-z0-9-]+==[a-z0-9.!+]+( ; [^:/@]+)?", line), line


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_lock_has_what_is_asked_for(python: str, platform: str) -> None:
    there = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": platform, "extra": ""}
    pins: dict[str, str] = {}
    for pin in map(Requirement, lines(python)):
        if pin.marker is None or pin.marker.evaluate(there):
            assert pin.name not in pins, f"two versions of {pin.name}"
            pins[pin.name] = next(iter(pin.specifier)).version
    extras = PROJECT["optional-dependencies"].values()
    for asked in map(Requirement, [*PROJECT["dependencies"], *(each for extra in extras for each in extra)]):
        if asked.name == "saelink" or (asked.marker and not asked.marker.evaluate(there)):
            continue
        version = pins.get(canonicalize_name(asked.name))
        assert version is not None, f"{asked.name} is not in the lock: make lock"
        assert asked.specifier.contains(version, prereleases=True), f"{asked} but {version} in the lock: make lock"
