"""A norm whose scale is held: what a change does apart from making the norm divide by something else."""

from __future__ import annotations

import torch

from saelink.model.block import Attended, Chain, Steps

AGREES = 1e-3
"""What a norm gives must be linear in its input once it is multiplied by its scale, within this share."""


class Norm:
    """A norm as a linear map over a scale: n(x) = b + L(x) / s(x), s the root mean square of x (less its mean)."""

    def __init__(self, module: torch.nn.Module, x: torch.Tensor):
        """x [n, d]: activations that it is tried on. Raises ValueError for a module that is no such norm."""
        self._module = module
        with torch.inference_mode():
            self._bias = module(torch.zeros_like(x[:1]))
            shifted = module(x[:1] + x[:1].std()) - module(x[:1])
            self._centred = bool(shifted.norm() <= AGREES * module(x[:1]).norm())
            named = (getattr(module, name, None) for name in ("variance_epsilon", "eps"))
            self._eps = next((float(value) for value in named if value is not None), 0.0)
            half = len(x) // 2
            one, other = x[:half], x[half : 2 * half]
            parts = [self.scale(each) * (module(each) - self._bias) for each in (one, other, one + other)]
            off = (parts[0] + parts[1] - parts[2]).norm()
        if not half or not off <= AGREES * parts[2].norm():
            raise ValueError("no norm")

    def scale(self, x: torch.Tensor) -> torch.Tensor:
        """[n, 1] what it divides by."""
        rest = x - x.mean(1, keepdim=True) if self._centred else x
        return (rest.square().mean(1, keepdim=True) + self._eps).sqrt()

    def held(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """[n, d] what it gives of x where it divides by `scale` [n, 1]."""
        return self._bias + (self._module(x) - self._bias) * self.scale(x) / scale


class HeldNorm:
    """A chain whose first norm divides by what it divides by where nothing is taken out.

    A norm behind the MLP, as some models have it, is recomputed.
    """

    def __init__(self, norm: Norm, behind: torch.nn.Module):
        self.norm, self._behind = norm, behind

    def without(self, x: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
        """[n, d_out] the chain's output at x - taken [n, d_in], its norm's scale that of x."""
        return self._behind(self.norm.held(x - taken, self.norm.scale(x)))


def hold_norm(chain: Chain | Attended, x: torch.Tensor) -> HeldNorm | None:
    """The chain with its norm held; None for what does not begin with a norm. x [n, d_in]: some of its activations."""
    if isinstance(chain, Attended) or not isinstance(chain.module, Steps) or len(chain.module.steps) < 2:
        return None
    first, *rest = chain.module.steps
    try:
        return HeldNorm(Norm(first, x[:64]), Steps(rest, chain.module.flat))
    except ValueError:
        return None
