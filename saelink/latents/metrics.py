"""Figures of merit, as pure sums: they do not depend on how the tokens were cut into batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch

from saelink.latents.rows import Rows

ENTRIES = 2**26
"""Entries of the widest matrix [tokens, latents] that is laid out densely: 256 MB."""


class ErrorSums:
    """Running sums per target latent, in float64."""

    def __init__(self, d_target: int):
        self.n = 0
        self.squared_error = torch.zeros(d_target, dtype=torch.float64)
        self.total = torch.zeros(d_target, dtype=torch.float64)
        self.squared_total = torch.zeros(d_target, dtype=torch.float64)
        self.active = torch.zeros(d_target, dtype=torch.int64)

    def add(self, predicted: torch.Tensor, true: Rows) -> None:
        """Count n tokens: `predicted` [n, d_target], which is overwritten, and the true latents."""
        self.n += len(true)
        error = predicted.view(-1).index_add_(
            0, true.row_of * true.d + true.indices, true.values.to(predicted.dtype), alpha=-1
        )
        self.squared_error += error.square_().view(len(true), true.d).sum(0, dtype=torch.float64)
        self._count(true)

    def add_sparse(self, predicted: Rows, constant: torch.Tensor | None, true: Rows) -> None:
        """Count n tokens: `predicted` [n, d_target] + `constant` [d_target] on each, and the true latents.

        Costs what is not zero in either, not n d_target.
        """
        base = torch.zeros(true.d, dtype=torch.float64) if constant is None else constant.double()
        self.n += len(true)
        pairs = torch.cat([rows.row_of * true.d + rows.indices for rows in (predicted, true)])
        values = torch.cat([predicted.values.double(), -true.values.double()])
        met, place = cast("Any", torch).unique(pairs, return_inverse=True)
        column = met % true.d
        error = torch.zeros(len(met), dtype=torch.float64).index_add_(0, place, values) + base[column]
        more = error.square() - base[column].square()  # of the tokens on which there is the constant alone
        self.squared_error += torch.bincount(column, more, minlength=true.d) + len(true) * base.square()
        self._count(true)

    def _count(self, true: Rows) -> None:
        values = true.values.double()
        self.total += torch.bincount(true.indices, values, minlength=true.d)
        self.squared_total += torch.bincount(true.indices, values.square(), minlength=true.d)
        self.active += torch.bincount(true.indices, minlength=true.d)

    def __add__(self, other: ErrorSums) -> ErrorSums:
        """The sums over both sets of tokens."""
        both = ErrorSums(len(self.total))
        both.n = self.n + other.n
        for name in ("squared_error", "total", "squared_total", "active"):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def variation(self) -> torch.Tensor:
        """[d_target] sum of squares around the mean over the tokens counted."""
        return (self.squared_total - self.total.square() / max(self.n, 1)).clamp(min=0)

    def mse(self) -> float:
        """Mean over tokens and target latents of the squared error."""
        return self.squared_error.sum().item() / (self.n * len(self.total))

    def energy(self) -> float:
        """Mean over tokens and target latents of the squared latent: the error of predicting zero."""
        return self.squared_total.sum().item() / (self.n * len(self.total))

    def fvu(self) -> float:
        """Fraction of variance unexplained: all squared errors over all variation; 1 is predicting the mean."""
        return self.squared_error.sum().item() / self.variation().sum().item()

    def fvu_by_latent(self) -> torch.Tensor:
        """[d_target] FVU of every target latent; nan where it never varies."""
        variation = self.variation()
        return torch.where(variation > 0, self.squared_error / variation, torch.nan)


def in_steps(*sides: Rows, step: int = 2048) -> Iterator[tuple[Rows, ...]]:
    """The same rows of each side in order, at most `step` at a time, fewer where the widest would take ENTRIES."""
    step = max(min(step, ENTRIES // max(rows.d for rows in sides)), 1)
    for first in range(0, len(sides[0]), step):
        chosen = torch.arange(first, min(first + step, len(sides[0])))
        yield tuple(rows.select(chosen) for rows in sides)
