"""What edges write into a model's targets, summed over a sequence along gradients, and added up by target."""

from __future__ import annotations

from typing import Any

from saelink.kernels.compiled import compiled


@compiled(error_model="numpy")
def edge_sums(
    cuts: Any, tokens: Any, values: Any, offsets: Any, columns: Any, along: Any, square: Any, fourth: Any, single: Any
) -> None:  # pragma: no cover
    """Add what one sequence gives to every edge, without the edge's weight.

    Source j is active on tokens[cuts[j] : cuts[j + 1]] of the sequence with `values`; its edges are those from
    offsets[j] to offsets[j + 1], into `columns`; along [targets, tokens] is what the gradient says of a unit of each
    target. With s the sum over the source's tokens of value times gradient, `square` gets s^2, `fourth` s^4, and
    `single` the sum of the squares of the products.
    """
    for j in range(len(cuts) - 1):
        low, high = cuts[j], cuts[j + 1]
        if low == high:
            continue
        for e in range(offsets[j], offsets[j + 1]):
            row = along[columns[e]]
            total, alone = 0.0, 0.0
            for k in range(low, high):
                product = values[k] * row[tokens[k]]
                total += product
                alone += product * product
            square[e] += total * total
            fourth[e] += total * total * total * total
            single[e] += alone


@compiled(error_model="numpy")
def edge_totals(
    cuts: Any, tokens: Any, values: Any, offsets: Any, columns: Any, along: Any, first: Any, second: Any
) -> None:  # pragma: no cover
    """The same with s itself: `first` gets s, `second` s^2."""
    for j in range(len(cuts) - 1):
        low, high = cuts[j], cuts[j + 1]
        if low == high:
            continue
        for e in range(offsets[j], offsets[j + 1]):
            row = along[columns[e]]
            total = 0.0
            for k in range(low, high):
                total += values[k] * row[tokens[k]]
            first[e] += total
            second[e] += total * total


@compiled(error_model="numpy")
def edges_added(
    first: int, last: int, cuts: Any, sources: Any, values: Any, offsets: Any, columns: Any, weights: Any, out: Any
) -> None:  # pragma: no cover
    """Add to out [tokens, targets] what edges of these weights make of the tokens `first` to `last`.

    On token t the sources[cuts[t] : cuts[t + 1]] are active with `values`.
    """
    for t in range(first, last):
        for k in range(cuts[t], cuts[t + 1]):
            for e in range(offsets[sources[k]], offsets[sources[k] + 1]):
                out[t, columns[e]] += values[k] * weights[e]
