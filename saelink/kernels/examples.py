"""What a pass over the text keeps of every latent: the strongest examples, some at random, some of every size."""

from __future__ import annotations

from typing import Any

import numpy as np

from saelink.kernels.compiled import compiled


@compiled()
def lottery(place: Any, latent: Any) -> Any:  # pragma: no cover
    """A number for this activation that looks random (SplitMix64's mixing) and depends on nothing else."""
    x = np.uint64(place) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(latent + 1) * np.uint64(0xD1B54A32D192ED03)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64((x ^ (x >> np.uint64(31))) >> np.uint64(1))


@compiled()
def _draw(ticket: int, place: int, value: float, tickets: Any, places: Any, values: Any) -> None:  # pragma: no cover
    """Keep the activations with the smallest tickets, sorted by them: a uniform sample whatever the order."""
    n = len(tickets)
    if ticket >= tickets[n - 1]:
        return
    at = n - 1
    while at > 0 and tickets[at - 1] > ticket:
        tickets[at], places[at], values[at] = tickets[at - 1], places[at - 1], values[at - 1]
        at -= 1
    tickets[at], places[at], values[at] = ticket, place, value


@compiled()
def _rank(place: int, value: float, context: int, places: Any, values: Any) -> None:  # pragma: no cover
    """Keep the largest activations, sorted, one for each sequence; ties go to the earlier place."""
    n = len(places)
    # Most fall short of the last: then so do they of an earlier one from their own sequence.
    if places[n - 1] >= 0 and (value < values[n - 1] or (value == values[n - 1] and place > places[n - 1])):
        return
    at = n
    begin = place // context * context
    for i in range(n):
        if begin <= places[i] < begin + context:
            if value < values[i] or (value == values[i] and place > places[i]):
                return
            at = i + 1
            break
    at -= 1
    while at > 0 and (
        places[at - 1] < 0 or values[at - 1] < value or (values[at - 1] == value and places[at - 1] > place)
    ):
        places[at], values[at] = places[at - 1], values[at - 1]
        at -= 1
    places[at], values[at] = place, value


@compiled()
def collect(
    first: int, last: int, begins: Any, row_of: Any, value_of: Any, start: int,
    context: int, unit: float, octaves: int, histogram: Any, top_place: Any, top_value: Any, size_ticket: Any,
    size_place: Any, size_value: Any, any_ticket: Any, any_place: Any, any_value: Any,
) -> None:  # pragma: no cover  # fmt: skip
    """Count the activations of latents `first` to `last` in one shard.

    Latent j's are those from begins[j] to begins[j + 1], their rows in the order of the text; `start` is the place of
    the shard's row 0. The histogram has bins of a quarter octave, its middle at `unit`; sizes are octaves.
    """
    bins = histogram.shape[1]
    for j in range(first, last):
        for at in range(begins[j], begins[j + 1]):
            row, value = row_of[at], value_of[at]
            place = start + row
            bin = int(np.floor(4 * np.log2(value / unit))) + bins // 2
            bin = min(max(bin, 0), bins - 1)
            histogram[j, bin] += 1
            size = bin * octaves // bins
            ticket = lottery(place, j)
            _draw(ticket, place, value, size_ticket[j, size], size_place[j, size], size_value[j, size])
            _draw(ticket, place, value, any_ticket[j], any_place[j], any_value[j])
            _rank(place, value, context, top_place[j], top_value[j])
