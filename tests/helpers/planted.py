"""A block whose MLP computes what it is told from source latents, between SAEs that read it without error."""

from __future__ import annotations

from collections.abc import Callable

import torch

from saelink.interventions.block import FOLDS, Block
from saelink.model.block import Chain, Steps
from saelink.saes.sae import SAE

Rule = Callable[[torch.Tensor], torch.Tensor]
"""From the sources' activations [n, d] to one target's [n]."""

RULES: dict[str, Rule] = {
    "copy": lambda a: a[:, 0],
    "or": lambda a: torch.relu(a[:, 0] + a[:, 1]) - torch.relu(a[:, 0] + a[:, 1] - 1),
    "and": lambda a: 2 * torch.relu(a[:, 0] + a[:, 1] - 1.35),
    "and not": lambda a: torch.relu(a[:, 0] - 3 * a[:, 1]),
}
"""A is source 0, B is source 1; activations are from .7 to 1.3."""


class Planted(torch.nn.Module):
    """Reads the sources' activations off the first places of the stream, and writes one target per rule."""

    def __init__(self, rules: list[Rule], d: int, gain: float):
        super().__init__()
        self._rules, self._d, self._gain = rules, d, gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x.new_zeros(len(x), x.shape[1])
        for number, rule in enumerate(self._rules):
            out[:, number] = rule(x[:, : self._d] * self._gain)
        return out


def sources(n: int = 3000, d: int = 8, density: float = 0.2, seed: int = 0) -> torch.Tensor:
    """[n, d] activations that are independent of one another."""
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(n, d, generator=generator) < density
    return active * (0.7 + 0.6 * torch.rand(n, d, generator=generator))


def planted_block(
    a: torch.Tensor, rules: list[Rule], rest: torch.Tensor | None = None, norm: torch.nn.Module | None = None,
    k: int | None = None, gain: float = 1.0,
) -> Block:  # fmt: skip
    """The block on tokens with source activations a [n, d]; `rest` [n, m] is written beside them, which no SAE sees.

    Source j is place j of the stream, target i is what rules[i] gives (times `gain`, what it reads).
    """
    n, d = a.shape
    rest = torch.zeros(n, 1) if rest is None else rest
    x = torch.cat([a, rest], 1)
    width = x.shape[1]
    assert len(rules) <= width
    steps = Steps([norm or torch.nn.Identity(), Planted(rules, d, gain)], True)
    eye = torch.eye(width)
    source = SAE(eye[:, :d].clone(), torch.zeros(d), eye[:d].clone(), torch.zeros(width))
    targets = len(rules)
    target = SAE(eye[:, :targets].clone(), torch.zeros(targets), eye[:targets].clone(), torch.zeros(width), k=k)
    return Block(Chain(steps, x), [source], target, [x], torch.arange(n) % FOLDS)
