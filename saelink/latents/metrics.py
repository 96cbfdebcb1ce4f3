"""Figures of merit, as pure sums: they do not depend on how the tokens were cut into batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from saelink.latents.rows import Rows


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


def in_steps(rows: Rows, step: int = 2048) -> Iterator[Rows]:
    """The rows in order, at most `step` at a time."""
    for first in range(0, len(rows), step):
        yield rows.select(torch.arange(first, min(first + step, len(rows))))
