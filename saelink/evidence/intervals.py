"""Intervals of shares that are counted on tokens of some documents, which are no independent draws."""

from __future__ import annotations

from typing import NamedTuple

import torch

from saelink.evidence.logic import wilson


class Share(NamedTuple):
    """How many of some tokens, with the 95% interval of the share."""

    hits: int
    tokens: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.hits / max(self.tokens, 1)


def share_of(hit: torch.Tensor, document: torch.Tensor) -> Share:
    """The share of tokens [n] bool that are hits.

    Wilson's interval with n divided by the design effect of the documents [n] that the tokens come from (J. N. K. Rao
    and A. J. Scott, "A simple method for the analysis of clustered binary data", 1992), at least 1. Where all tokens
    say the same there is no such effect to be seen, and n is the number of tokens.
    """
    n, hits = len(hit), int(hit.sum())
    rate = hits / max(n, 1)
    effective = float(n)
    if 0 < hits < n:
        of = document.unique(return_inverse=True)[1]
        size = torch.bincount(of).double()
        rest = torch.bincount(of, weights=hit.double()) - rate * size
        m = len(size)
        if m > 1:
            spread = m / (m - 1) * rest.square().sum().item() / n**2
            effective = n / max(spread / (rate * (1 - rate) / n), 1.0)
    low, high = wilson(rate * effective, effective)
    return Share(hits, n, low, high)
