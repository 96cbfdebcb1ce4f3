"""What a target SAE gives when its inputs were changed, summed over the changes of one source."""

from __future__ import annotations

from typing import Any

from saelink.kernels.compiled import compiled


@compiled()
def add_differences(
    first: int, last: int, cuts: Any, slots: Any, tokens: Any, offsets: Any, indices: Any, values: Any, pre: Any,
    floor: Any, column_floor: Any, out: Any,
) -> None:  # pragma: no cover  # fmt: skip
    """For groups `first` to `last` of rows of pre, cut at `cuts`: out[slots[g]] += sum of before minus after.

    Row r was changed at token t = tokens[r]; before are the sparse values offsets[t] to offsets[t + 1], after is
    pre [rows, d] where that is at least floor[r] and above column_floor [d], else 0.
    """
    d = pre.shape[1]
    for group in range(first, last):
        slot = slots[group]
        for r in range(cuts[group], cuts[group + 1]):
            token = tokens[r]
            for pair in range(offsets[token], offsets[token + 1]):
                out[slot, indices[pair]] += values[pair]
            least = floor[r]
            for i in range(d):
                value = pre[r, i]
                if value >= least and value > column_floor[i]:
                    out[slot, i] -= value
