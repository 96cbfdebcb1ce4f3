"""Figures of merit against their definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saelink.latents.metrics import ErrorSums, in_steps
from saelink.latents.rows import Rows

from helpers.rows import random_rows


def sums_of(predicted: torch.Tensor, true: torch.Tensor, cuts: list[int]) -> ErrorSums:
    sums = ErrorSums(true.shape[1])
    for first, last in zip([0, *cuts], [*cuts, len(true)], strict=True):
        sums.add(predicted[first:last].clone(), Rows.from_dense(true[first:last]))
    return sums


@pytest.fixture
def true() -> torch.Tensor:
    return random_rows(101, 7, seed=3).dense()


def test_a_mean_predictor_scores_one(true: torch.Tensor) -> None:
    mean = true.double().mean(0).expand_as(true)
    sums = ErrorSums(7)
    for first in range(0, 101, 10):
        sums.add(mean[first : first + 10].clone(), Rows.from_dense(true[first : first + 10]))
    assert sums.fvu() == pytest.approx(1, abs=1e-12)
    assert torch.allclose(sums.fvu_by_latent(), torch.ones(7, dtype=torch.float64), atol=1e-12)


def test_a_perfect_map_scores_zero(true: torch.Tensor) -> None:
    assert sums_of(true, true, []).fvu() == 0 and sums_of(true, true, []).mse() == 0


def test_figures_do_not_depend_on_the_batches(true: torch.Tensor) -> None:
    predicted = true + 0.1 * torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    whole = sums_of(predicted, true, [])
    for cuts in ([1], [50, 51], list(range(1, 101))):
        parts = sums_of(predicted, true, cuts)
        assert parts.fvu() == pytest.approx(whole.fvu(), rel=1e-12)
        assert parts.mse() == pytest.approx(whole.mse(), rel=1e-12)
        assert torch.allclose(parts.fvu_by_latent(), whole.fvu_by_latent(), rtol=1e-12)


def test_agreement_with_scikit_learn(true: torch.Tensor) -> None:
    from sklearn.metrics import mean_squared_error, r2_score

    predicted = true * 0.7 + 0.01
    sums = sums_of(predicted, true, [40])
    assert sums.mse() == pytest.approx(mean_squared_error(true, predicted), rel=1e-6)
    expected: Any = 1 - r2_score(true.double(), predicted.double(), multioutput="raw_values")
    assert sums.fvu_by_latent().tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    weighted = r2_score(true.double(), predicted.double(), multioutput="variance_weighted")
    assert sums.fvu() == pytest.approx(1 - weighted, rel=1e-6)


def test_a_latent_that_never_varies_has_no_fvu(true: torch.Tensor) -> None:
    true[:, 2] = 0
    sums = sums_of(true * 0.5, true, [])
    assert sums.fvu_by_latent().isnan().tolist() == [False, False, True, False, False, False, False]
    assert 0 < sums.fvu() < 1


def test_in_steps_covers_every_row_once() -> None:
    rows = random_rows(23, 5)
    assert torch.equal(torch.cat([step.dense() for (step,) in in_steps(rows, step=10)]), rows.dense())
