"""What this process's command came to. Hydra makes the callback around a multirun by itself, so they meet here."""

from __future__ import annotations


class Outcome:
    """Counted by the jobs and by the callback at a multirun's end, read when Hydra is done."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Before a command."""
        self.failed_here: list[int | None] = []
        """Numbers of the jobs of this process that ended with a user's error; their line is already printed."""
        self.failed_elsewhere = 0
        """Jobs of the multirun that did, in whichever process."""
        self.error: Exception | None = None
        """What kept the multirun from beginning or from ending whole: Hydra swallows what a callback raises."""
        self.layers = 1
        """Layers that the multirun goes over."""


OUTCOME = Outcome()
