"""A stage's progress: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Counts `total` units of work. A context manager; `advance(n)` after n units are done."""

    def __init__(self, what: str, total: int, unit: str = "tokens", done: int = 0):
        self.what, self.total, self.unit = what, total, unit
        self._done = self._first = done
        self._started = self._printed = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=what, unit=f" {unit}", unit_scale=True, leave=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, units: int, note: str = "") -> None:
        """Count `units` more; `note` (a loss, say) is shown beside the rate."""
        self._done += units
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(units)
            return
        now = time.monotonic()
        if now - self._printed >= SECONDS_BETWEEN_LINES and self._done < self.total:
            self._printed = now
            rate = (self._done - self._first) / (now - self._started)
            left = (self.total - self._done) / max(rate, 1e-9)
            line = f"  {self.what}: {self._done:,} of {self.total:,} {self.unit}, {rate:,.0f}/s, {left:.0f} s left"
            print(line + (f", {note}" if note else ""), flush=True)
