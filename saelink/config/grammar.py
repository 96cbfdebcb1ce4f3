"""Overrides as they are typed: which need quotes, and what is wrong with one that can't be read, in our own words."""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelink.errors import SaelinkError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

DEEPEST = 20
"""Brackets in brackets; beyond some hundreds the parser's own stack ends."""

SHOWN = 120
"""Characters of an override that a message repeats."""

IN_HOME = re.compile(r"~[\w.-]*(/|$)")
"""How a path in somebody's home folder begins."""


def with_quotes(overrides: Sequence[str], texts: Collection[str]) -> list[str]:
    """The overrides, those of `texts` in quotes whose value is the name of something on disk or begins with ~/.

    Without quotes the grammar takes commas, brackets and signs in such a name for its own.
    """
    return [_with_quotes(each, texts) for each in overrides]


def _with_quotes(override: str, texts: Collection[str]) -> str:
    key, equals, value = override.partition("=")
    if not equals or not is_text(key, texts) or not value or value[0] in "'\"":
        return override
    place = os.path.expanduser(value) if IN_HOME.match(value) else value  # noqa: PTH111 (may be a pattern)
    if place == value and not (_exists(value) and (_would_change(value) or not readable(override))):
        return override
    return f"{key}={quoted(place)}"


def is_text(key: str, texts: Collection[str]) -> bool:
    """Whether a setting is a text, or an entry of one whose entries are."""
    key = key.lstrip("+")
    return key in texts or any(key.startswith(text) for text in texts if text.endswith("."))


def _exists(value: str) -> bool:
    try:
        return Path(value).exists() or (glob.has_magic(value) and bool(glob.glob(value, recursive=True)))  # noqa: PTH207
    except (OSError, ValueError):  # no name of a file: too long, a zero byte
        return False


def _would_change(value: str) -> bool:
    """Whether the grammar can read it, but as something else than this text."""
    number_or_flag = re.fullmatch(r"[+-]?[\d._eE+-]+|(?i:true|false)", value)
    return number_or_flag is not None or any(sign in value for sign in ",()[]{}\\$")


def quoted(text: str) -> str:
    """A text as the grammar takes it whatever is in it."""
    return '"' + re.sub(r'(\\*)("|\Z)', lambda found: found[1] * 2 + ("\\" if found[2] else "") + found[2], text) + '"'


def readable(override: str) -> bool:
    """Whether the grammar takes it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(override)
    except (HydraException, RecursionError):
        return False
    return True


def sweeps(override: str) -> bool:
    """Whether one that can be read has several values, for the jobs of a multirun."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(override).is_sweep_override()


def parsed(overrides: Sequence[str], loader: Any, texts: Collection[str]) -> list[Override]:
    """The overrides, read. Raises SaelinkError for one that can't be, with the way to write it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for override in overrides:
        if _depth(override) > DEEPEST or not readable(override):
            raise SaelinkError(_unreadable(override, texts))
    return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))


def _depth(override: str) -> int:
    deepest = depth = 0
    for sign in override:
        depth += (sign in "[{(") - (sign in "]})")
        deepest = max(deepest, depth)
    return deepest


def _unreadable(override: str, texts: Collection[str]) -> str:
    key, _, value = override.partition("=")
    short = shortened(override)
    if _depth(override) > DEEPEST:
        return f"{short}: brackets stand in brackets more than {DEEPEST} deep"
    if not readable(f"{key}=1"):
        return f"{short}: {shortened(key)} is no name of a setting; settings are key=value, such as layer=3"
    if is_text(key, texts):
        return f"{short}: there are signs in it that need quotes: {shlex.quote(f'{key}={quoted(value)}')}"
    return (
        f"{short}: the value can't be read; a list is [1,2], a table {{a: 1}}, and a text with other signs than "
        f"letters, digits and /-+.$%*@?|_ stands in quotes: {shlex.quote(key + '=' + quoted('a, b'))}"
    )


def shortened(text: str) -> str:
    """An override for a message: its beginning, where it is long."""
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
