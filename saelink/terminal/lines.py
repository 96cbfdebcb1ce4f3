"""An observer that keeps what it is told, for text that is shown elsewhere than on the terminal."""

from __future__ import annotations

from saelink.progress import Observer


class Lines(Observer):
    """Keeps the lines in `said`."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)
