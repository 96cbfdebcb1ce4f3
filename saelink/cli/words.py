"""The words behind a command's name: overrides, which are Hydra's, and flags."""

from __future__ import annotations

import re
from pathlib import Path

OVERRIDE = re.compile(r"^[~+]{0,2}[A-Za-z_][\w@./:-]*=|^~")

HELP_FLAGS = {"--help", "-h", "--help-all"}


def is_override(word: str) -> bool:
    return OVERRIDE.match(word) is not None


def hydra_arguments(words: list[str]) -> list[str]:
    """Overrides first, then flags: argparse takes no positionals on both sides of a flag."""
    return [word for word in words if is_override(word)] + [word for word in words if not is_override(word)]


def asks_for_help(words: list[str]) -> bool:
    """Whether a command's help is wanted, not its work."""
    return not HELP_FLAGS.isdisjoint(words)


def overrides_of(words: list[str]) -> list[str]:
    """The overrides among the words; what --config-dir names becomes one, first in the search path as Hydra has it."""
    overrides = [word for word in words if is_override(word)]
    for i, word in enumerate(words):
        flag, _, folder = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            folder = folder or "".join(words[i + 1 : i + 2])
            place = Path(folder).absolute().as_uri()
            given = [each.partition("=")[2] for each in overrides if each.startswith("hydra.searchpath=")]
            others = "".join(f",{each.strip('[]')}" for each in given if each.strip("[]"))
            overrides = [each for each in overrides if not each.startswith("hydra.searchpath=")]
            return [f"hydra.searchpath=[{place}{others}]", *overrides]
    return overrides
