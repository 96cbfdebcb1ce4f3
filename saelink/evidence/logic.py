"""What a target latent computes from its sources, read from which of them are active when it fires.

The signs of a linear map's weights do not say it: two positive weights are an OR where either source alone makes the
target fire, and an AND where only both do. So the word comes from counts of tokens, with intervals, and is "unclear"
where these do not say.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

HIGH = 0.5
"""A condition makes the target fire when it does on more than this share of the tokens that meet it."""

FEWER = 3.0
"""... and prevents it, or does not suffice, when this many times fewer fire."""

MIN_TOKENS = 20
"""Tokens that a condition must be met on before its rate is believed."""

EXPLAINED = 0.5
"""Share of the target's firings that the conditions of a word must cover."""

ADDS = 0.05
"""A further alternative of an OR, or an exception, must be met on this share of the tokens in question."""

LEADS = 0.25
"""What an AND NOT or an AND is said of must add this share of what all sources with positive weights add."""

READ = 6
"""Sources looked at, those that add most to the prediction where the target fires."""

DENSE = 12.0
"""Effective number of sources (1 / sum of squared shares of what they add) above which a target is called dense."""

Z = 1.96
"""Of the intervals (E. B. Wilson, "Probable inference", 1927): 95%."""


class Source(NamedTuple):
    """One source of a target."""

    weight: float
    added: float
    """Sum of |weight x| over the tokens where the target fires."""
    taken: float
    """Sum of -weight x over all tokens if the weight is negative, else 0."""
    active: Callable[[], int]
    """The tokens it is active on, see `bits`; only asked of sources that may be named."""
    refuted: bool = False
    """Whether ablating it in the model showed that there is no such edge: then it is not named."""


class Condition(NamedTuple):
    """How often the target fires on the tokens that meet a condition."""

    on: tuple[int, ...]
    """The sources that are active,"""
    off: tuple[int, ...]
    """and of those that are not."""
    tokens: int
    fired: int

    @property
    def rate(self) -> float:
        return self.fired / max(self.tokens, 1)

    @property
    def low(self) -> float:
        """Lower end of the rate's interval."""
        return wilson(self.fired, self.tokens)[0]

    @property
    def high(self) -> float:
        return wilson(self.fired, self.tokens)[1]

    @property
    def believed(self) -> bool:
        """Whether the target surely fires on more than HIGH of its tokens."""
        return self.tokens >= MIN_TOKENS and self.low > HIGH


class Logic(NamedTuple):
    """The word for what a target computes, and why."""

    word: str
    """copy, or, and, and not, dense, unclear."""
    sources: list[int]
    """The sources it is about; of an `and not` the last is the one that prevents it."""
    evidence: list[Condition]
    covered: float
    """Share of the target's firings on which the word's condition holds."""


def bits(mask: torch.Tensor) -> int:
    """A set of tokens as the bits of one number, from a mask [n] bool: sets of them are met and counted in no time."""
    return int.from_bytes(np.packbits(mask.numpy(), bitorder="little").tobytes(), "little")


def read_logic(fired: int, sources: Sequence[Source]) -> Logic:
    """The logic of a target that fires on the tokens `fired` (see `bits`); numbers are places in `sources`.

    Only sources that are active somewhere where the target fires, and are not refuted, can be named.
    """
    total = fired.bit_count()
    everything = sum(source.added for source in sources)
    if not total or not everything:
        return Logic("unclear", [], [], 0.0)
    if everything**2 / sum(source.added**2 for source in sources) > DENSE:
        return Logic("dense", [], [], 0.0)
    # What adds most where it fires; and what takes away most, which shows where it does not.
    order = sorted(range(len(sources)), key=lambda i: -sources[i].added)
    able = [i for i in order[: 4 * READ] if not sources[i].refuted]
    named = [i for i in able if sources[i].weight > 0 and sources[i].added > 0][:READ]
    added = sum(source.added for source in sources if source.weight > 0)
    leading = [i for i in named if sources[i].added >= LEADS * added] or named[:1]
    takers = [i for i in range(len(sources)) if sources[i].taken > 0 and not sources[i].refuted]
    takers.sort(key=lambda i: -sources[i].taken)
    prevents = takers[: READ // 2]
    active = {i: sources[i].active() for i in {*named, *prevents}}

    condition = partial(_counted, active, fired)
    singles = {i: condition((i,)) for i in named}
    for i in leading:
        for j in prevents:
            both, alone = condition((i, j)), condition((i,), (j,))
            if (
                alone.believed
                and both.tokens >= max(MIN_TOKENS, ADDS * singles[i].tokens)
                and FEWER * both.high < alone.rate
                and alone.fired >= EXPLAINED * total
            ):
                return Logic("and not", [i, j], [alone, both], alone.fired / total)
    # Sources each of which makes it fire without the others.
    enough: list[int] = []
    covered = 0
    evidence: list[Condition] = []
    for i in named:
        alone = condition((i,), tuple(enough)) if enough else singles[i]
        adds = (active[i] & fired & ~covered).bit_count()
        if alone.believed and adds >= max(MIN_TOKENS / 2, ADDS * total):
            enough.append(i)
            evidence.append(alone)
            covered |= active[i]
    share = (covered & fired).bit_count() / total
    if enough and share >= EXPLAINED:
        return Logic("or" if len(enough) > 1 else "copy", enough, evidence, share)
    for i, j in ((i, j) for i, j in itertools.combinations(named, 2) if i in leading or j in leading):
        both = condition((i, j))
        parts = [condition((i,), (j,)), condition((j,), (i,))]
        if (
            both.believed
            and both.fired >= EXPLAINED * total
            and all(part.tokens >= MIN_TOKENS and FEWER * part.high < both.rate for part in parts)
        ):
            return Logic("and", [i, j], [both, *parts], both.fired / total)
    return Logic("unclear", [], [singles[i] for i in named[:3]], share)


def _counted(active: dict[int, int], fired: int, on: tuple[int, ...], off: tuple[int, ...] = ()) -> Condition:
    """On how many tokens a condition holds, and on how many of these the target fires."""
    met = active[on[0]]
    for i in on[1:]:
        met &= active[i]
    for i in off:
        met &= ~active[i]
    return Condition(on, off, met.bit_count(), (met & fired).bit_count())


def wilson(fired: float, tokens: float) -> tuple[float, float]:
    """The 95% interval of a rate."""
    if not tokens:
        return 0.0, 1.0
    rate, spread = fired / tokens, Z**2 / tokens
    middle = (rate + spread / 2) / (1 + spread)
    half = Z * (rate * (1 - rate) / tokens + spread / (4 * tokens)) ** 0.5 / (1 + spread)
    return max(middle - half, 0.0), min(middle + half, 1.0)
