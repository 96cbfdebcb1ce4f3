"""SAEs that learned nothing, and what counts as found again."""

from __future__ import annotations

import pytest
import torch

from benchmarks import sae_nulls
from saelink.saes.sae import SAE


def sae_of(tensors: dict[str, torch.Tensor]) -> SAE:
    return SAE(tensors["W_enc"], tensors["b_enc"], tensors["W_dec"], tensors["b_dec"], k=4)


def test_a_random_saes_decoder_is_fitted_by_least_squares() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4000, 12, generator=generator) @ torch.randn(12, 12, generator=generator) + 3
    errors = {}
    for fitted in (True, False):
        tensors = sae_nulls.random_tensors(x, fitted, d_sae=30, k=4)
        sae = sae_of(tensors)
        latents = sae.encode(x)
        assert ((latents > 0).sum(1) <= 4).all()
        errors[fitted] = (sae.decode(latents) - x).double().square().sum().item()
        assert torch.allclose(sae.decode(latents).mean(0), x.mean(0), atol=1e-3)
        if fitted:
            beside = torch.cat([latents, torch.ones(len(x), 1)], 1).double()
            best = torch.linalg.lstsq(beside, x.double(), driver="gelsd").solution
            assert errors[fitted] == pytest.approx((beside @ best - x.double()).square().sum().item(), rel=1e-3)
        else:
            ratio = tensors["W_dec"] / tensors["W_enc"].T
            assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-4)
            for scale in (0.9, 1.1):  # no other number is better
                other = sae_of(tensors | {"W_dec": tensors["W_dec"] * scale}).decode(latents)
                other = other - other.mean(0) + x.mean(0)
                assert (other - x).double().square().sum() > errors[False]
    assert errors[True] < errors[False]


def test_what_is_the_same_latent() -> None:
    one = torch.eye(3)
    other = torch.nn.functional.normalize(torch.tensor([[0.0, 1.0, 0.3], [1.0, 0.0, 0.0], [0.0, 0.9, 0.5]]), dim=1)
    assert sae_nulls.matched(one, other).tolist() == [1, 0, -1]
    assert sae_nulls.matched(one, one.roll(1, 0)).tolist() == [1, 2, 0]


def test_the_share_of_what_recurs() -> None:
    hit = torch.tensor([True, True, False, False, True, True])
    value, low, high = sae_nulls.share(hit, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert value == pytest.approx(4 / 6) and low == 0.0 and high == 1.0
    edges = {"source": torch.tensor([1, 2]), "target": torch.tensor([3, 4]), "verdict": torch.tensor([0, 2])}
    found = sae_nulls.table(edges, sae_nulls.is_confirmed(edges))
    assert found.nonzero().tolist() == [[1, 3]]
