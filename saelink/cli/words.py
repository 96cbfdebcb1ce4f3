"""The words behind a command's name: overrides, which are Hydra's, and flags."""

from __future__ import annotations

import re
from pathlib import Path

from saelink.errors import SaelinkError, closest

OVERRIDE = re.compile(r"^[~+]{0,2}[A-Za-z_][\w@./:-]*=|^~")

FLAGS = {
    "--help": "-h", "--help-all": "", "--hydra-help": "", "--version": "", "--resolve": "", "--run": "-r",
    "--multirun": "-m", "--shell-completion": "-sc", "--cfg": "-c", "--info": "-i", "--package": "-p",
    "--config-path": "-cp", "--config-name": "-cn", "--config-dir": "-cd", "--experimental-rerun": "",
}  # fmt: skip
"""The flags of every stage command, with their short forms."""

WITH_VALUE = ("--cfg", "--info", "--package", "--config-path", "--config-name", "--config-dir", "--experimental-rerun")
"""Those behind which a value stands."""

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


def check_words(command: str, words: list[str]) -> None:
    """Raise SaelinkError for a flag that does not exist and for a word that is no key=value."""
    takes = {*WITH_VALUE, *(FLAGS[flag] for flag in WITH_VALUE if FLAGS[flag])}
    for before, word in zip(["", *words], words, strict=False):
        flag = word.partition("=")[0]
        if is_override(word) or before in takes:
            continue
        if not word.startswith("-"):
            raise SaelinkError(f"{command}: {word}: settings are key=value, such as layer=3")
        known = any(name.startswith(flag) for name in FLAGS) or flag in FLAGS.values()
        if not known and len(flag) > 2:
            meant = closest(flag, FLAGS)
            way_out = f"saelink {command} --help lists them" if meant is None else f"did you mean {meant}?"
            raise SaelinkError(f"{command}: there is no flag {flag}; {way_out}")
