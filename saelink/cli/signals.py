"""Signals that end a command: one line, the usual exit code, and nothing left that no later try goes on from."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

ENDED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
"""What the line says of each."""


class StoppedError(SystemExit):
    """A signal that ends the command; no library takes it for a failure of what it was doing."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = number
        self.line = f"{ENDED[signal.Signals(number)]}; the same command resumes from what is finished"


def _stop(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends it at once, whatever it clears up
    raise StoppedError(number)


@contextmanager
def _again() -> Generator[None, None, None]:
    """Inside, a signal that came while Python deletes an object, where nothing can be raised, comes once more."""
    before = sys.unraisablehook

    def hook(lost: sys.UnraisableHookArgs) -> None:
        if not isinstance(lost.exc_value, StoppedError):
            before(lost)
            return
        number = lost.exc_value.number
        signal.signal(number, _stop)
        timer = threading.Timer(0.01, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def stopping() -> Generator[None, None, None]:
    """Inside, these signals raise StoppedError, unless whoever started the command had them ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found = {number: signal.getsignal(number) for number in ENDED}
    before = {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, _stop)
    try:
        with _again():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
