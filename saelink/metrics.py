"""Figures of merit, as pure sums: they do not depend on how the tokens were cut into batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from saelink.latents import Rows


class Sums:
    """Running sums per target latent, in float64."""

    def __init__(self, d_target: int):
        self.n = 0
        self.squared_error = torch.zeros(d_target, dtype=torch.float64)
        self.total = torch.zeros(d_target, dtype=torch.float64)
        self.squared_total = torch.zeros(d_target, dtype=torch.float64)
        self.active = torch.zeros(d_target, dtype=torch.int64)

    def add(self, predicted: torch.Tensor, true: torch.Tensor) -> None:
        """Count tokens: both [n, d_target]."""
        exact = true.double()
        self.n += len(true)
        self.squared_error += (exact - predicted.double()).square().sum(0)
        self.total += exact.sum(0)
        self.squared_total += exact.square().sum(0)
        self.active += (true != 0).sum(0)

    def variation(self) -> torch.Tensor:
        """[d_target] sum of squares around the mean over the tokens counted."""
        return (self.squared_total - self.total.square() / max(self.n, 1)).clamp(min=0)

    def mse(self) -> float:
        """Mean over tokens and target latents of the squared error."""
        return self.squared_error.sum().item() / (self.n * len(self.total))

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
