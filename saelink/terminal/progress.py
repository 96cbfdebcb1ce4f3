"""The observer that prints: lines, bars with rate and time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any, TextIO

from saelink.progress import Observer, Progress, printable

SECONDS_BETWEEN_LINES = 15.0


class TerminalProgress(Progress):
    """A bar where standard error is a terminal, otherwise a line every quarter of a minute."""

    def __init__(self, what: str, total: int, unit: str, done: int, out: TextIO | None):
        self._what, self._total, self._unit, self._out = what, total, unit, out
        self._done = self._first = done
        self._started = self._printed = time.monotonic()
        self._bar: Any = None
        self._lock = threading.Lock()
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=what, unit=f" {unit}", unit_scale=True, leave=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, units: int, note: str = "") -> None:
        with self._lock:
            self._advance(units, note)

    def _advance(self, units: int, note: str) -> None:
        self._done += units
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(units)
            return
        now = time.monotonic()
        if now - self._printed >= SECONDS_BETWEEN_LINES and self._done < self._total:
            self._printed = now
            rate = (self._done - self._first) / (now - self._started)
            left = (self._total - self._done) / max(rate, 1e-9)
            line = f"  {self._what}: {self._done:,} of {self._total:,} {self._unit}, {rate:,.0f}/s, {left:.0f} s left"
            print(line + (f", {note}" if note else ""), file=self._out, flush=True)


class TerminalObserver(Observer):
    """Prints to standard output, or to `out`; what is only found, not made, where `verbose`."""

    def __init__(self, out: TextIO | None = None, verbose: bool = True):
        self._out, self._verbose = out, verbose

    def say(self, line: str) -> None:
        print(printable(line), file=self._out, flush=True)

    def found(self, line: str) -> None:
        if self._verbose:
            self.say(line)

    def progress(self, what: str, total: int, unit: str = "tokens", done: int = 0) -> Progress:
        return TerminalProgress(what, total, unit, done, self._out)
