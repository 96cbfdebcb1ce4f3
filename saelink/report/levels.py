"""Numbers of edges as small whole numbers, and back: what the page stores of them.

Kept is what the page shows: weights in three digits, rises of FVU and shares in as many as their columns have.
page/levels.js reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

LOWEST = -50
"""The power of ten of level 1: below what float32 holds."""

ONE = 1 - LOWEST * 900
"""The level of 1 in three digits, from which the first of several weights is counted."""

FINE_RISE = 1e-3
"""A rise of FVU below this is kept to four decimals, any other in two digits."""

FINE_SHARE = 0.1
"""A share below this is kept to a tenth of a percent, any other to a percent."""


def level_of(size: float, figures: int) -> int:
    """The place of a size among all numbers of so many digits, in order; 0 for 0."""
    if not size:
        return 0
    mantissa, power = f"{size:.{figures - 1}e}".split("e")
    steps = 9 * 10 ** (figures - 1)
    return (int(power) - LOWEST) * steps + int(mantissa.replace(".", "")) - 10 ** (figures - 1) + 1


def size_at(level: int, figures: int) -> float:
    """The size at a level."""
    if not level:
        return 0.0
    power, mantissa = divmod(level - 1, 9 * 10 ** (figures - 1))
    return float(f"{mantissa + 10 ** (figures - 1)}e{power + LOWEST - figures + 1}")


def weight_codes(weights: Iterable[float]) -> list[int]:
    """Weights in three digits: by how many levels each is smaller than the one before, doubled, and 1 more below 0."""
    codes, last = [], ONE
    for weight in weights:
        level = level_of(abs(weight), 3)
        codes.append(2 * (last - level) + (weight < 0))
        last = level
    return codes


def weights_at(codes: Sequence[int]) -> list[float]:
    """The weights of codes."""
    weights, last = [], ONE
    for code in codes:
        last -= code >> 1
        weights.append(-size_at(last, 3) if code & 1 else size_at(last, 3))
    return weights


def rise_code(rise: float | None) -> int | None:
    """A rise of FVU: steps of 1e-4 up to ten of them, then levels of two digits; None stays None."""
    if rise is None:
        return None
    size = abs(rise)
    steps = round(size * 1e4) if size < FINE_RISE else 10 + level_of(size, 2) - level_of(FINE_RISE, 2)
    return -steps if rise < 0 else steps


def rise_at(code: int | None) -> float | None:
    """The rise of a code."""
    if code is None:
        return None
    steps = abs(code)
    size = steps / 1e4 if steps <= 10 else size_at(steps - 10 + level_of(FINE_RISE, 2), 2)
    return -size if code < 0 else size


def share_code(share: float | None) -> int | None:
    """A share: tenths of a percent up to ten percent, then percents; None stays None."""
    if share is None:
        return None
    size = abs(share)
    steps = round(size * 1000) if size < FINE_SHARE else 100 + round(size * 100) - 10
    return -steps if share < 0 else steps


def share_at(code: int | None) -> float | None:
    """The share of a code."""
    if code is None:
        return None
    steps = abs(code)
    size = steps / 1000 if steps <= 100 else (steps - 90) / 100
    return -size if code < 0 else size


def gaps(values: Iterable[float]) -> list[int]:
    """Values of two decimals that are mostly 0: of each other one how far it is from the last, and its hundredths."""
    found, last = [], -1
    for place, value in enumerate(values):
        hundredths = round(value * 100)
        if hundredths:
            found += [place - last, hundredths]
            last = place
    return found


def spread(stored: Sequence[int], length: int) -> list[float]:
    """The values of `gaps`."""
    values, place = [0.0] * length, -1
    for step, hundredths in zip(stored[::2], stored[1::2], strict=True):
        place += step
        values[place] = hundredths / 100
    return values
