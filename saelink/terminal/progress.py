"""The observer that prints: lines, bars with rate and time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any, TextIO

from saelink.progress import Observer, Progress, harmless

SECONDS_BETWEEN_LINES = 15.0


class Bars:
    """The bars on standard error while any work is going on; they leave nothing behind."""

    def __init__(self) -> None:
        self._shown: Any = None
        self._running = 0
        self._lock = threading.Lock()

    def begin(self, what: str, total: int, unit: str, done: int) -> int:
        """A new bar's number."""
        with self._lock:
            if self._shown is None:
                self._shown = _rich_progress()
            if not self._running:
                self._shown.start()
            self._running += 1
            return self._shown.add_task(what, total=total or None, completed=done, unit=unit, note="")

    def advance(self, bar: int, units: int, note: str) -> None:
        self._shown.update(bar, advance=units, **({"note": note} if note else {}))

    def end(self, bar: int) -> None:
        with self._lock:
            self._shown.remove_task(bar)
            self._running -= 1
            if not self._running:
                self._shown.stop()


def _rich_progress() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Done(ProgressColumn):
        """155,648/400,000 tokens."""

        def render(self, task: Task) -> Text:
            total = "" if task.total is None else f"/{task.total:,.0f}"
            return Text(f"{task.completed:,.0f}{total} {task.fields['unit']}")

    class Rate(ProgressColumn):
        """10,289/s."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s")

    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        Done(),
        Rate(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", markup=False),
    ]
    # Lines that are printed meanwhile stand above the bars; where standard output is a file they belong there alone.
    return RichProgress(
        *columns,
        console=Console(file=sys.stderr, highlight=False),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        refresh_per_second=4,
    )


class BarProgress(Progress):
    """Work shown as a bar."""

    def __init__(self, bars: Bars, what: str, total: int, unit: str, done: int):
        self._bars, self._begins = bars, (what, total, unit, done)
        self._bar: int | None = None

    def __enter__(self) -> Progress:
        self._bar = self._bars.begin(*self._begins)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bars.end(self._bar)

    def advance(self, units: int, note: str = "") -> None:
        if self._bar is not None:
            self._bars.advance(self._bar, units, note)


class LineProgress(Progress):
    """Work told in a line every quarter of a minute."""

    def __init__(self, what: str, total: int, unit: str, done: int, out: TextIO | None):
        self._what, self._total, self._unit, self._out = what, total, unit, out
        self._done = self._first = done
        self._started = self._printed = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, units: int, note: str = "") -> None:
        with self._lock:
            self._advance(units, note)

    def _advance(self, units: int, note: str) -> None:
        self._done += units
        now = time.monotonic()
        if now - self._printed >= SECONDS_BETWEEN_LINES and self._done < self._total:
            self._printed = now
            rate = (self._done - self._first) / (now - self._started)
            left = (self._total - self._done) / max(rate, 1e-9)
            line = f"  {self._what}: {self._done:,} of {self._total:,} {self._unit}, {rate:,.0f}/s, {left:.0f} s left"
            print(line + (f", {note}" if note else ""), file=self._out, flush=True)


class TerminalObserver(Observer):
    """Prints to standard output, or to `out`; what is found, not made, in one line a stage, and where `verbose`."""

    def __init__(self, out: TextIO | None = None, verbose: bool = True):
        self._out, self._verbose = out, verbose
        self._bars, self._found = Bars(), set[str]()

    def say(self, line: str) -> None:
        print(harmless(line), file=self._out, flush=True)

    def found(self, line: str) -> None:
        stage = line.split(" ", 1)[0]
        if self._verbose and stage not in self._found:
            self._found.add(stage)
            self.say(line)

    def progress(self, what: str, total: int, unit: str = "tokens", done: int = 0) -> Progress:
        if sys.stderr.isatty():
            return BarProgress(self._bars, what, total, unit, done)
        return LineProgress(what, total, unit, done, self._out)
