"""Whoever is told how the work goes: the terminal, a notebook, or nobody.

A store holds one `Observer`; whatever takes long asks it for a `Progress` and gives it lines to show. The ones here
keep quiet; terminal/progress.py has those that print.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import TracebackType

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that move the cursor, change colours, answer as a keyboard would, or turn the order of what is read."""


def harmless(line: str) -> str:
    """A line in which names, whoever gave them, only stand: what steers a terminal is shown as an escape."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), line)


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
