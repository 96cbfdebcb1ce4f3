"""An observer that keeps the lines it is told."""

from __future__ import annotations

from saelink.progress import Observer


class Lines(Observer):
    """What was said, in order."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)
