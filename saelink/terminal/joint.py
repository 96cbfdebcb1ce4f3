"""Joint effects of sources, in 80 columns."""

from __future__ import annotations

from collections.abc import Mapping

from saelink.evidence.joint_effects import JOINT_FILE, JointFacts
from saelink.progress import Observer
from saelink.store.artifact import Artifact
from saelink.terminal.table import Column, table_lines


def print_joint(observer: Observer, artifact: Artifact[JointFacts]) -> None:
    """How far sources taken out together do something else than their sum, and what predicts it."""
    figures = artifact.json(JOINT_FILE)
    observer.say(f"\n  Sources taken out together, of {artifact.facts['targets']:,} targets (rank correlation, 95%)")
    if not figures:
        observer.say("  no target has two strong effects of sources that are active together")
        return
    rows = [
        (
            kind,
            f"{row['sets']:,}",
            f"{row['notable']:.0%}",
            f"{row['less']:.0%}",
            _rank(row["claim"]),
            _rank(row["sum"]),
        )
        for kind, row in figures.items()
    ]
    titles = ("sets", "interact", "less", "claims", "sum of single effects")
    for line in table_lines([Column(), *(Column(title, right=True) for title in titles)], rows, indent=2):
        observer.say(line)


def _rank(figures: Mapping[str, float]) -> str:
    if not figures:
        return "-"
    values = (figures["rank_r"], figures["rank_r_low"], figures["rank_r_high"])
    return "{:.2f} ({:.2f} to {:.2f})".format(*values).replace("0.", ".")
