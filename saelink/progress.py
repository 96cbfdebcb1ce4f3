"""Whoever is told how the work goes: the terminal, a notebook, or nobody.

A store holds one `Observer`; whatever takes long asks it for a `Progress` and gives it lines to show. The ones here
keep quiet; terminal/progress.py has those that print.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType


class Progress:
    """Counts `total` units of work. A context manager; `advance(n)` after n units are done. This one shows nothing."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def advance(self, units: int, note: str = "") -> None:
        """Count `units` more; `note` (a loss, say) is shown beside the rate. May be called by several threads."""

    def point(self, figures: Mapping[str, float]) -> None:
        """Take note of what was measured at this place of the work: a point of a fit's curve."""


class Observer:
    """Is told what begins and what ends, in lines, and how far long work has come. This one shows nothing."""

    def say(self, line: str) -> None:
        """Show one line."""

    def found(self, line: str) -> None:
        """Show one line about what was made before and is used again."""
        self.say(line)

    def progress(self, what: str, total: int, unit: str = "tokens", done: int = 0) -> Progress:
        """A count of `total` units of `what`, of which `done` were done before."""
        return Progress()
