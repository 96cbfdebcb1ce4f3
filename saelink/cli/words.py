"""The words behind a command's name: overrides, which are Hydra's, and flags."""

from __future__ import annotations

import re
from pathlib import Path

from saelink.errors import SaelinkError, closest

OVERRIDE = re.compile(r"^[~+]{0,2}[A-Za-z_][\w@./:-]*=|^~")

FLAGS = {
    "--help": "-h", "--help-all": "", "--hydra-help": "", "--version": "", "--resolve": "", "--run": "-r",
    "--multirun": "-m", "--cfg": "-c", "--info": "-i", "--package": "-p", "--config-path": "-cp",
    "--config-name": "-cn", "--config-dir": "-cd",
}  # fmt: skip
"""The flags of every stage command, with their short forms. Of Hydra's, --experimental-rerun loads a pickle and
--shell-completion has ours instead: they are none."""

WITH_VALUE = ("--cfg", "--info", "--package", "--config-path", "--config-name", "--config-dir")
"""Those behind which a value stands."""

CHOICES = {
    ("--cfg", "-c"): ("job", "hydra", "all"),
    ("--info", "-i"): ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}
"""Flags whose value is one of these."""

BESIDE = {("--resolve",): ("--cfg", "-c"), ("--package", "-p"): ("--cfg", "-c")}
"""Flags that mean something only beside another."""

ONE_OF = (("--run", "-r"), ("--multirun", "-m"), ("--cfg", "-c"), ("--info", "-i"))
"""Flags of which a command takes one."""

HELP_FLAGS = {"--help", "-h", "--help-all"}


def is_override(word: str) -> bool:
    return OVERRIDE.match(word) is not None


def is_change(word: str) -> bool:
    """Whether it changes a latent, well formed or not: OF12@L3=0 or IF7@L1*2."""
    return re.match(r"(OF|IF|AF)\d+(@[^\s=*]*)?(:\d+)?[=*]", word) is not None


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
        known = any(name.startswith(flag) and len(flag) > 2 for name in FLAGS) or flag in FLAGS.values()
        if not known:
            meant = closest(flag, FLAGS)
            way_out = f"saelink {command} --help lists them" if meant is None else f"did you mean {meant}?"
            raise SaelinkError(f"{command}: there is no flag {flag}; {way_out}")
    _check_values(command, words)


def _check_values(command: str, words: list[str]) -> None:
    """Raise SaelinkError for a flag without its value, with one that it does not take, or without its other flag."""
    flags = {word.partition("=")[0] for word in words}
    given = [name for names in ONE_OF for name in names if name in flags]
    many = {"--multirun", "-m"}.intersection(given)
    if len(given) > 1 and (not many or {"--run", "-r"}.intersection(given)):  # else there is a line that says more
        raise SaelinkError(f"{command}: {given[0]} and {given[1]} exclude each other")
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        for names, choices in CHOICES.items():
            value = value if equals else "".join(words[i + 1 : i + 2])
            optional = "--info" in names and (not value or value.startswith("-") or is_override(value))
            if flag in names and value not in choices and not optional:
                raise SaelinkError(f"{command}: {f'{flag} {value}'.strip()}: say which: {', '.join(choices)}")
        for names, others in BESIDE.items():
            if flag in names and flags.isdisjoint(others):
                raise SaelinkError(f"{command}: {flag} goes with --cfg job, which prints the settings and runs nothing")
        if flag in ("--config-dir", "-cd"):
            folder = value if equals else "".join(words[i + 1 : i + 2])
            if folder and not folder.startswith("-") and not is_override(folder) and not Path(folder).is_dir():
                raise SaelinkError(f"{command}: {flag} {folder}: there is no such folder; give one with YAML files")
        needs = flag in {*WITH_VALUE, *(FLAGS[name] for name in WITH_VALUE)} and flag not in ("--info", "-i")
        behind = words[i + 1] if i + 1 < len(words) else "-"
        if needs and not equals and (behind.startswith("-") or is_override(behind)):
            raise SaelinkError(f"{command}: {flag} needs a value behind it")
