"""Faithfulness of parts of a graph: how much of the model's prediction some of the edges alone give back.

    f(C) = (m(C) - m(none)) / (m(model) - m(none))

with m minus the cross-entropy, none the zero-ablated hook, C some edges (MIB, Mueller et al. 2025). CPR is the area
under f over the share of edges kept, CMD the area between f and 1, both by trapezoids and divided by the range of
shares, so that a perfect graph has CPR 1 and CMD 0; over the share itself, and over its logarithm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from saelink.interventions.predictions import by_documents

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Of the edges, at which a graph is measured."""


def area(shares: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """[...] the mean height of values [..., n] over shares [n] ascending, by trapezoids; the value if there is one."""
    if len(shares) == 1:
        return values[..., 0]
    return torch.trapezoid(values, shares) / (shares[-1] - shares[0])


def faithfulness(
    losses: dict[str, torch.Tensor], names: Sequence[str], document: torch.Tensor, resamples: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """f [n] of the losses called `names`, and f again under resamples of the documents [resamples, n].

    `losses` [sequences, context_size - 1] has `clean` and `zero` too; `document` [sequences, context_size].
    """
    weights, mean = by_documents(document, resamples)

    def share(weights: torch.Tensor) -> torch.Tensor:
        clean, zero = mean(weights, losses["clean"]), mean(weights, losses["zero"])
        return torch.stack([(zero - mean(weights, losses[name])) / (zero - clean) for name in names], -1)

    return share(torch.ones(1, weights.shape[1], dtype=torch.float64))[0], share(weights)


def areas(shares: Sequence[float], f: torch.Tensor, again: torch.Tensor) -> dict[str, float]:
    """CPR and CMD of f [n] at these shares, linear and `_log`, each with `_low` and `_high` by f `again` [m, n]."""
    found: dict[str, float] = {}
    at = torch.tensor(shares, dtype=torch.float64)
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    for end, scale in (("", at), ("_log", at.log())):
        for name, of in (("cpr", lambda value: value), ("cmd", lambda value: (1 - value).abs())):
            low, high = area(scale, of(again)).quantile(ends).tolist()
            key = f"{name}{end}"
            found |= {key: area(scale, of(f)).item(), f"{key}_low": low, f"{key}_high": high}
    return found
