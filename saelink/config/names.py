"""The names of settings: which there are in a settings class, which take entries of their own, which are texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

Settings = dict[str, str]
"""By name what a setting takes: nothing but a value, or entries of its own as well."""

VALUE, LIST, TABLE = "", "list", "table"

CHOSEN = ("connector", "solver")
"""Groups whose settings depend on the choice."""


def settings_of(kind: type[Any], prefix: str = "") -> Settings:
    """The settings of a dataclass and of those in it; those of a chosen group only by its name."""
    found: Settings = {}
    for name, entry, nested in _fields(kind, prefix):
        written = str(entry.type)
        tables = written.startswith(("dict", "Any")) and not nested
        found[name] = TABLE if tables else LIST if written.startswith("list") and not nested else VALUE
    return found


def _fields(kind: type[Any], prefix: str) -> Iterator[tuple[str, dataclasses.Field[Any], bool]]:
    """Each setting's name, its field, and whether it is a group of others, which follow."""
    for entry in dataclasses.fields(kind):
        name, inner = f"{prefix}{entry.name}", entry.default_factory
        nested = isinstance(inner, type) and dataclasses.is_dataclass(inner)
        yield name, entry, nested
        if nested and entry.name not in CHOSEN:
            yield from _fields(inner, f"{name}.")  # pyright: ignore[reportArgumentType]  # a class, as was seen above


def has(settings: Mapping[str, str], key: str) -> bool:
    """Whether a key is a setting, an entry of a table, or a place in a list."""
    if key in settings:
        return True
    for i, sign in enumerate(key):
        takes = settings.get(key[:i], VALUE) if sign == "." else VALUE
        if takes == TABLE or (takes == LIST and key[i + 1 :].isdigit()):
            return True
    return False


def texts_of(kind: type[Any], prefix: str = "") -> set[str]:
    """The settings that are texts; a dot behind one says that its entries are."""
    ends = {"str": "", "str | None": "", "dict[str, str]": "."}
    return {f"{name}{ends[str(entry.type)]}" for name, entry, _ in _fields(kind, prefix) if str(entry.type) in ends}
