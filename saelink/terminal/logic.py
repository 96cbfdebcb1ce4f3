"""The logic of targets, tested by interventions, in 80 columns."""

from __future__ import annotations

from typing import Any

from saelink.evidence.logic import wilson
from saelink.evidence.logic_trials import OUTCOMES, LogicTrialsFacts
from saelink.progress import Observer
from saelink.store.artifact import Artifact
from saelink.terminal.table import Column, table_lines


def print_trials(observer: Observer, artifact: Artifact[LogicTrialsFacts]) -> None:
    """By word how many of the circuits that have it do what it claims once sources are taken out."""
    rows = []
    for word, counts in artifact.facts["outcomes"].items():
        n = sum(counts.values())
        if n:
            low, high = wilson(counts["holds"], n)
            share = f"{counts['holds'] / n:.0%} ({low:.0%} to {high:.0%})"
            rows.append((word, f"{n:,}", *(f"{counts[outcome]:,}" for outcome in OUTCOMES), share))
    observer.say("\n  Logic, tested: the sources that a word names taken out where it matters")
    if not rows:
        observer.say("  no target's counts give it a word that is a claim about interventions")
        return
    numbers = (Column(title, right=True) for title in ("circuits", *OUTCOMES, "holds (95%)"))
    for line in table_lines([Column(), *numbers], rows, indent=2):
        observer.say(line)


def trial_text(trial: dict[str, Any]) -> str:
    """One trial of a card in words: where IF1 and IF2 are on, without IF2: fires on 0 of 42, before 0."""
    where = " and ".join(trial["on"]) + "".join(f", not {name}" for name in trial["off"])
    where = f"where {where} on" if trial["on"] else "where several are on"
    gone = "any one of them" if trial["any_one"] else " and ".join(trial["gone"])
    fires = ", it fires" if trial["fires"] else ""
    claimed = "should fire" if trial["fires_after"] else "should not"
    return f"{where}{fires}; without {gone}: fires on {trial['after']:,} of {trial['tokens']:,} ({claimed})"
