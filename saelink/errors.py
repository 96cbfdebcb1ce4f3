"""The one kind of error a user sees."""

from __future__ import annotations


class SaelinkError(ValueError):
    """A user's mistake or a broken file: one line that names the field, the value and the way out."""
