"""Sizes in bytes: how they are read from a setting, and how they are written for a person."""

from __future__ import annotations

import math
import re
from typing import Any

from saelink.errors import SaelinkError

UNITS = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
"""What may stand behind a number, in capitals; decimal units as everywhere else here."""


def bytes_of(field: str, value: Any) -> int | None:
    """The bytes of `8GB`, `500 MB`, `1.5GiB` or a plain number; None for null.

    Raises SaelinkError, which names `field`, for anything else and for a size that is not above 0.
    """
    if value is None:
        return None
    size = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        size = float(value)
    elif isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
        size = float(found[1]) * UNITS.get(found[2].upper(), math.nan) if found is not None else math.nan
    if not 1 <= size < 2**63:
        raise SaelinkError(
            f"{field}={value}: give a size such as 8GB or 500MB, a number of bytes, or null for no limit"
        )
    return int(size)


def gigabytes(size: float) -> str:
    """A size for a person: 12 kB, 3.4 MB, 2.1 GB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} bytes"
