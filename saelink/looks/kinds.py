"""What kind of head a head is, by stated rules on where it looks."""

from __future__ import annotations

from typing import TypedDict

import torch

from saelink.looks.text import Text

RULES = {
    "sink": "at least .5 of its attention is on sinks",
    "current token": "at least .4 of its attention outside sinks is on the token itself",
    "previous token": "at least .4 of its attention outside sinks is on the token before",
    "induction": "in random tokens said twice at least .2 of its attention is on the token behind the same one",
    "duplicate token": "in random tokens said twice at least .2 of its attention is on the same token before",
}
"""A head may be of several kinds, or of none."""

REPEATED = 8
"""Sequences of random tokens, each said twice, that induction is looked for in."""


class Looks(TypedDict):
    """Shares of a head's attention, means over queries."""

    sinks: float
    current: float
    """Outside sinks,"""
    previous: float
    """alike."""
    induction: float
    """In random tokens said twice, over queries of the second time."""
    duplicate: float


def repeated_ids(vocabulary: int, context: int) -> torch.Tensor:
    """[REPEATED, context] random tokens, the second half the same as the first."""
    half = torch.randint(vocabulary, (REPEATED, context // 2), generator=torch.Generator().manual_seed(0))
    return torch.cat([half, half], 1)


def looks(text: Text, repeated: Text, head: int) -> Looks:
    """Where a head looks in text, and in `repeated`, of repeated_ids."""
    sums, n = torch.zeros(3, dtype=torch.float64), 0
    outside = 0
    for number in range(len(text)):
        every, kept = text.patterns(number, text.whole(number, head))
        counted = text.counted[number]
        sums[0] += (every * text.sinks[number][None]).sum().item()
        sums[1] += kept.diagonal().sum().item()
        sums[2] += kept.diagonal(-1).sum().item()
        n += int(counted.sum())
        outside += int((kept.sum(-1) > 0).sum())
    period = repeated.n // 2
    again = torch.zeros(2, dtype=torch.float64)
    for number in range(len(repeated)):
        pattern = repeated.patterns(number, repeated.whole(number, head))[0]
        rows = torch.arange(period, 2 * period, device=pattern.device)
        again[0] += pattern[rows, rows - period + 1].mean().item()
        again[1] += pattern[rows, rows - period].mean().item()
    of_text, of_repeated = (
        (sums / torch.tensor([max(n, 1), max(outside, 1), max(outside, 1)])).tolist(),
        (again / len(repeated)).tolist(),
    )
    return {
        "sinks": of_text[0],
        "current": of_text[1],
        "previous": of_text[2],
        "induction": of_repeated[0],
        "duplicate": of_repeated[1],
    }


def kinds(found: Looks) -> list[str]:
    """The kinds of a head, see RULES."""
    holds = {
        "sink": found["sinks"] >= 0.5,
        "current token": found["current"] >= 0.4,
        "previous token": found["previous"] >= 0.4,
        "induction": found["induction"] >= 0.2,
        "duplicate token": found["duplicate"] >= 0.2,
    }
    return [kind for kind, true in holds.items() if true]
