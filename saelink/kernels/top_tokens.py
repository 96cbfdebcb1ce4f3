"""The tokens that carry most of every latent's activation, in two passes over the text."""

from __future__ import annotations

from typing import Any

import numpy as np

from saelink.kernels.compiled import compiled


@compiled()
def find_heaviest(
    first: int, last: int, begins: Any, row_of: Any, value_of: Any, token_of: Any, token: Any, weight: Any
) -> None:  # pragma: no cover  # fmt: skip
    """Follow the heaviest tokens of latents `first` to `last` through one shard; weights are lower bounds.

    By J. Misra and D. Gries's way of counting ("Finding repeated elements", 1982): every token with more than
    1/(slots + 1) of a latent's activation holds a slot at the end, whatever the order.
    """
    slots = token.shape[1]
    for j in range(first, last):
        for at in range(begins[j], begins[j + 1]):
            own, left = token_of[row_of[at]], np.float64(value_of[at])
            found = -1
            for slot in range(slots):
                if token[j, slot] == own:
                    found = slot
                    break
            if found >= 0:
                weight[j, found] += left
                if found > 0:  # one place forward: what comes often is found soon
                    before = found - 1
                    token[j, found], token[j, before] = token[j, before], token[j, found]
                    weight[j, found], weight[j, before] = weight[j, before], weight[j, found]
            else:
                lightest = 0
                for slot in range(1, slots):
                    if weight[j, slot] < weight[j, lightest]:
                        lightest = slot
                least = weight[j, lightest]
                if left > least:
                    for slot in range(slots):
                        weight[j, slot] -= least
                    token[j, lightest], weight[j, lightest] = own, left - least
                else:
                    for slot in range(slots):
                        weight[j, slot] -= left


@compiled()
def weigh(
    first: int, last: int, begins: Any, row_of: Any, value_of: Any, token_of: Any, token: Any,
    weight: Any, count: Any,
) -> None:  # pragma: no cover  # fmt: skip
    """Sum and number of the activations of latents `first` to `last` on each of their heaviest tokens."""
    slots = token.shape[1]
    for j in range(first, last):
        for at in range(begins[j], begins[j + 1]):
            own = token_of[row_of[at]]
            for slot in range(slots):
                if token[j, slot] == own:
                    weight[j, slot] += value_of[at]
                    count[j, slot] += 1
                    break
