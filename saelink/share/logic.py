"""The logic of targets as a table: the word that counts give, and what interventions say of it."""

from __future__ import annotations

from typing import Any

from saelink.evidence.logic_trials import logic_trials, named_logic
from saelink.evidence.names import Names
from saelink.job import Job

LOGIC_COLUMNS = ["target", "target_token", "word", "sources", "source_tokens", "covered", "edges_confirmed", "tested"]


def logic_rows(job: Job, names: Names) -> list[dict[str, Any]]:
    """A row for each target whose counts give a word: its sources with blanks between, in the connector's numbering.

    `covered` is the share of its firings that the word covers, `tested` holds, fails or undecided, empty where
    `saelink verify` was not asked.
    """
    trials = logic_trials(job) or {}
    rows = []
    for target, logic in named_logic(job):
        tried = trials.get(str(target))
        tokens = [names.unit("source", number).token or "" for number in logic["inputs"]]
        values = (
            target, names.unit("target", target).token, logic["word"], " ".join(map(str, logic["inputs"])),
            " ".join(token.strip() for token in tokens), logic["covered"], logic["confirmed"],
            None if tried is None else tried["outcome"],
        )  # fmt: skip
        rows.append(dict(zip(LOGIC_COLUMNS, values, strict=True)))
    return rows
