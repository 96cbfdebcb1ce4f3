"""An experiment's table and what stands under it."""

from __future__ import annotations

from typing import Any

from saelink.experiments.tables import TEXT_FILE, shown_rows, table_text
from saelink.progress import Observer
from saelink.store.artifact import Artifact


def print_result(observer: Observer, result: Artifact[Any]) -> None:
    """The table, the text under it and where the result is."""
    observer.say("")
    observer.say(table_text(shown_rows(result)))
    observer.say(result.file(TEXT_FILE).read_text().rstrip())
    observer.say(f"\n  {result.path}")
