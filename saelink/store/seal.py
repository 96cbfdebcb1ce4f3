"""A checksum of itself in a JSON object: how a note that says no more than a file's name is known to be as written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, cast

from saelink.store.files import json_bytes

SEAL = "sha256"
"""The entry that holds it."""


class SealError(ValueError):
    """Why an object isn't what was written, as the end of a sentence that begins with its path."""


def checksum(entries: Mapping[str, Any]) -> str:
    """The sha256 over all entries but the seal, however the JSON is laid out. Raises ValueError for what is no JSON."""
    others = {name: value for name, value in entries.items() if name != SEAL}
    text = json.dumps(others, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries with their checksum."""
    # As they come back from JSON: there a tuple is a list, and numbers that are names of entries are text.
    return {**entries, SEAL: checksum(json.loads(json_bytes(dict(entries))))}


def unsealed(data: bytes) -> dict[str, Any]:
    """The object in these bytes, its seal included. Raises SealError unless it is as `sealed` made it."""
    try:
        found: object = json.loads(data)
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
        entries = cast("dict[str, Any]", found)
        actual = checksum(entries)
    except (ValueError, RecursionError):
        raise SealError("can't be read") from None
    if SEAL not in entries:
        raise SealError("has no sha256 of itself, like those of earlier versions")
    if entries[SEAL] != actual:
        raise SealError("does not have the sha256 that it names")
    return entries
