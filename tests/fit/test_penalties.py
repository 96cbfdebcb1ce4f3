"""Where a path of penalties goes on."""

from __future__ import annotations

from typing import Any, cast

import pytest

from saelink.fit.penalties import worth_starting_at
from saelink.fit.train import TrainFacts


@pytest.mark.parametrize("rounding", [-1e-7, 0.0, 1e-7])
def test_no_weights_are_worth_starting_at_however_their_error_was_rounded(rounding: float) -> None:
    facts: dict[str, Any] = {"validation_mse": 2.0 * (1 + rounding), "c": 2.0, "l1": 0.0, "zero_objective": 1.0}
    assert worth_starting_at(cast("TrainFacts", facts), 100.0)


def test_weights_worse_than_none_are_not() -> None:
    facts: dict[str, Any] = {"validation_mse": 0.5, "c": 1.0, "l1": 1.0, "zero_objective": 1.0}
    assert worth_starting_at(cast("TrainFacts", facts), 0.5)
    assert not worth_starting_at(cast("TrainFacts", facts), 0.51)
