"""Recipes and keys: what names an artifact before anything is computed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, cast

KEY_LENGTH = 12


def recipe_of(value: Any) -> Any:
    """Plain JSON data for a recipe: dataclasses become dicts, enums their names, tuples lists.

    Raises AssertionError for anything else, so that nothing enters a key by its repr.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: recipe_of(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in cast("Mapping[Any, Any]", value)):
        return {name: recipe_of(item) for name, item in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [recipe_of(item) for item in cast("Sequence[Any]", value)]
    assert value is None or isinstance(value, bool | int | float | str), f"{value!r} can't be part of a recipe"
    return value


def is_key(text: str) -> bool:
    """Whether this is a whole key, all its digits: what recipes refer to an artifact by."""
    return re.fullmatch(rf"[0-9a-f]{{{KEY_LENGTH}}}", text) is not None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What an artifact will be, before anything is computed: enough to name it and to find it."""

    stage: str
    version: int
    """The stage's VERSION: raised when its code changes the numbers it writes."""
    recipe: dict[str, Any]
    """Everything that changes the numbers; nothing that does not (device, paths, W&B)."""
    inputs: dict[str, str]
    """Role -> key of the artifacts this one is computed from."""
    about: str
    """What it is in a few words, for `saelink ls`; not part of the key."""

    @property
    def key(self) -> str:
        """First 12 hex digits of the sha256 over stage, version, recipe and input keys."""
        identity = {"stage": self.stage, "version": self.version, "recipe": self.recipe, "inputs": self.inputs}
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]
