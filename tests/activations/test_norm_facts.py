"""Norms of activations, some of which are nothing."""

from __future__ import annotations

import torch

from saelink.activations.cache import norm_facts


def test_the_median_is_of_what_is_not_nothing() -> None:
    norms = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 4.0], [0.0, 0.0, 3.0]])
    assert norm_facts(norms) == {"mean_norm": [0.0, 0.0, 3.0], "median_norm": 3.0}
    assert norm_facts(norms + 1)["median_norm"] == 1.0
    assert norm_facts(torch.zeros(2, 2))["median_norm"] == 0.0
