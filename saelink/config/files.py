"""Where the YAML files are."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
"""The folder of the package itself, which holds the shipped SAEs."""


def conf_dir() -> Path:
    """The folder of the YAML files: inside the installed package, or at the top of a checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"
