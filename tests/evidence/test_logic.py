"""Planted circuits get their name, and what is none gets "unclear"."""

from __future__ import annotations

from collections.abc import Collection

import pytest
import torch

from saelink.evidence import logic
from saelink.evidence.logic import Condition, Logic, Source, bits


def read_logic(
    fired: torch.Tensor, inputs: torch.Tensor, weights: torch.Tensor, refuted: Collection[int] = ()
) -> Logic:  # fmt: skip
    """From what the target fires on [n] bool, the sources' activations [n, k] and their weights."""
    terms = inputs * weights
    sources = [
        Source(
            weights[i].item(),
            terms[fired, i].abs().sum().item(),
            -terms[:, i].sum().item() if weights[i] < 0 else 0.0,
            lambda i=i: bits(inputs[:, i] > 0),
            i in refuted,
        )
        for i in range(inputs.shape[1])
    ]
    return logic.read_logic(bits(fired), sources)


def inputs(n: int = 6000, k: int = 8, density: float = 0.15, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(n, k, generator=generator) < density
    return active * (0.5 + torch.rand(n, k, generator=generator))


PLANTED = {
    "copy": (lambda a: a[:, 0], [0.9, 0, 0, 0, 0, 0, 0, 0], [0]),
    "or": (lambda a: a[:, 0] | a[:, 1], [0.8, 0.7, 0, 0, 0, 0, 0, 0], [0, 1]),
    "and": (lambda a: a[:, 0] & a[:, 1], [0.5, 0.5, 0, 0, 0, 0, 0, 0], [0, 1]),
    "and not": (lambda a: a[:, 0] & ~a[:, 1], [0.9, -0.8, 0, 0, 0, 0, 0, 0], [0, 1]),
}


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("word", PLANTED)
def test_planted_circuits_get_their_name(word: str, seed: int, noise: float) -> None:
    x = inputs(seed=seed)
    rule, weights, sources = PLANTED[word]
    fired = rule(x > 0)
    fired = fired ^ (
        torch.rand(len(x), generator=torch.Generator().manual_seed(seed + 50)) < noise * fired.float().mean()
    )
    small = 0.02 * torch.randn(8, generator=torch.Generator().manual_seed(seed + 99))
    found = read_logic(fired, x, torch.tensor(weights) + small)
    assert found.word == word, found
    assert sorted(found.sources) == sources and found.covered > 0.9
    assert found.evidence and all(condition.fired <= condition.tokens for condition in found.evidence)


@pytest.mark.parametrize("seed", range(20))
def test_random_weights_are_unclear(seed: int) -> None:
    """A target that fires with no regard to the sources, whatever the weights say."""
    generator = torch.Generator().manual_seed(seed)
    x = inputs(seed=seed + 500)
    for rate in (0.02, 0.1, 0.3):
        fired = torch.rand(len(x), generator=generator) < rate
        assert read_logic(fired, x, torch.randn(8, generator=generator)).word == "unclear"


def test_few_tokens_say_nothing() -> None:
    x = inputs(n=60)
    assert read_logic(x[:, 0] > 0, x, torch.eye(8)[0]).word == "unclear"
    assert read_logic(torch.zeros(60, dtype=torch.bool), x, torch.ones(8)).word == "unclear"
    assert read_logic(x[:, 0] > 0, x[:, :0], torch.ones(0)).word == "unclear"


def test_a_sum_of_many_is_dense() -> None:
    x = inputs(k=60, density=0.5)
    fired = x.sum(1) > x.sum(1).mean()
    assert read_logic(fired, x, torch.ones(60)).word == "dense"


def test_an_interval_holds_the_rate() -> None:
    for fired, tokens in ((0, 30), (30, 30), (7, 30), (0, 0)):
        condition = Condition((0,), (), tokens, fired)
        assert 0 <= condition.low <= condition.rate <= condition.high <= 1 or tokens == 0
    assert Condition((0,), (), 10_000, 5000).high - Condition((0,), (), 10_000, 5000).low < 0.03


@pytest.mark.parametrize("word", PLANTED)
def test_no_word_names_what_ablations_refuted(word: str) -> None:
    """Of a planted circuit whose second edge (of a copy: the only one) the model does not have."""
    x = inputs()
    rule, weights, sources = PLANTED[word]
    fired = rule(x > 0)
    gone = sources[-1]
    found = read_logic(fired, x, torch.tensor(weights), refuted={gone})
    assert gone not in found.sources and all(gone not in e.on + e.off for e in found.evidence)
    assert found.word != word
