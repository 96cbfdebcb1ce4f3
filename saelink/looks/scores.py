"""A head's score between two tokens as a bilinear form of what stands in the residual stream at both.

    S^h(q, k) = scaling * Q^h(q) . K^h(k)
    Q^h(q) = R(q) [ sum_p (C p) * g / s(q) W_Q^h + b ] * w_Q / n_Q(q)         over the parts p of the stream at q

with C the centring of a LayerNorm (else nothing), g and s gain and scale of the norm in front of attention, b what its
shift and the biases give, w_Q and n_Q gain and scale of a query norm where there is one, R the rotary positions; keys
alike, of the head's group. Every part of the stream (a latent's a_j d_j, the SAE's b_dec, its error) has its own query
and key, and the products of all pairs sum to the model's score.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from saelink.looks.rotary import Rotary

EPSILONS = ("eps", "variance_epsilon")
"""What norms call the number that keeps them from dividing by 0."""


class Norm(NamedTuple):
    """What a norm computes: (x - its mean) * gain / scale(x) + shift, over the last dimensions."""

    gain: torch.Tensor
    """[d], or [heads, d_head] for one over all heads together."""
    shift: torch.Tensor
    centred: bool
    eps: float

    @staticmethod
    def of(module: torch.nn.Module, like: torch.Tensor) -> Norm:
        """Of a module that takes [..., d], `like` being such; whatever it calls its weights (Gemma's gain is 1 + w)."""
        eps = next((float(getattr(module, name)) for name in EPSILONS if hasattr(module, name)), 0.0)
        ones = torch.ones(1, like.shape[-1], device=like.device, dtype=like.dtype)
        signs = ones.clone()
        signs[:, 1::2] = -1  # mean 0 and RMS 1, but for an odd width
        shift, flat, turned = module(0 * ones)[0], module(ones)[0], module(signs)[0]
        centred = bool((flat - shift).abs().max() < 1e-3 * (turned - shift).abs().max())
        mean = signs.mean(-1, keepdim=True) if centred else 0 * signs.mean(-1, keepdim=True)
        moved = signs - mean
        scale = (moved.square().mean(-1, keepdim=True) + eps).sqrt()
        return Norm((turned - shift) * scale[0] / moved[0], shift, centred, eps)

    def moved(self, x: torch.Tensor) -> torch.Tensor:
        """x less its mean where the norm takes it away."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def scale(self, x: torch.Tensor) -> torch.Tensor:
        """[..., 1] what each x is divided by; of [n, heads, d_head] one a head, or one for all heads together."""
        dims = (-1,) if self.gain.dim() == 1 else (-2, -1)
        return (self.moved(x).square().mean(dims, keepdim=True) + self.eps).sqrt()

    def to(self, device: str, dtype: torch.dtype) -> Norm:
        return self._replace(gain=self.gain.to(device, dtype), shift=self.shift.to(device, dtype))


class Side(NamedTuple):
    """Queries, or keys, of a layer's heads."""

    weight: torch.Tensor
    """[heads, d_model, d_head], the gain of the norm in front in it."""
    bias: torch.Tensor
    """[heads, d_head]: the norm's shift and the bias."""
    norm: Norm | None
    """The query or key norm."""

    def raw(self, stream: torch.Tensor) -> torch.Tensor:
        """[n, heads, d_head] of parts of the stream [n, d_model], centred and scaled, without bias and own norm."""
        return torch.einsum("ti,hij->thj", stream, self.weight)

    def gained(self, raw: torch.Tensor) -> torch.Tensor:
        """Times the gain of the query or key norm."""
        return raw if self.norm is None else raw * self.norm.gain

    def gained_of(self, head: int, raw: torch.Tensor) -> torch.Tensor:
        """The same of one head, [n, d_head]."""
        gain = None if self.norm is None else self.norm.gain
        return raw if gain is None else raw * (gain if gain.dim() == 1 else gain[head])

    def scale(self, raw: torch.Tensor) -> torch.Tensor:
        """[n, heads or 1, 1] what the query or key norm divides by; `raw` with the bias."""
        return raw.new_ones(len(raw), 1, 1) if self.norm is None else self.norm.scale(raw)

    def to(self, device: str, dtype: torch.dtype) -> Side:
        norm = None if self.norm is None else self.norm.to(device, dtype)
        return Side(self.weight.to(device, dtype), self.bias.to(device, dtype), norm)


class Scales(NamedTuple):
    """What norms divide by at each token: what is frozen where scales are."""

    stream: torch.Tensor
    """[n, 1] of the norm in front of attention,"""
    query: torch.Tensor
    """[n, heads or 1, 1] of the query norm,"""
    key: torch.Tensor
    """and of the key norm."""

    def select(self, rows: torch.Tensor) -> Scales:
        return Scales(*(scale[rows] for scale in self))


class Form(NamedTuple):
    """The scores of one layer's heads."""

    norm: Norm | None
    """In front of attention; its gain and shift are in the weights. None: attention reads the stream as it is."""
    query: Side
    key: Side
    scaling: float
    rotary: Rotary

    @property
    def n_heads(self) -> int:
        return len(self.query.weight)

    @property
    def d_model(self) -> int:
        return self.query.weight.shape[1]

    def key_head(self, head: int) -> int:
        """Whose keys a head reads: heads of a group share them."""
        return head // (self.n_heads // len(self.key.weight))

    def to(self, device: str, dtype: torch.dtype = torch.float32) -> Form:
        norm = None if self.norm is None else self.norm.to(device, dtype)
        rotary = self.rotary.to(device, dtype)
        return Form(norm, self.query.to(device, dtype), self.key.to(device, dtype), self.scaling, rotary)

    def moved(self, parts: torch.Tensor) -> torch.Tensor:
        """Parts of the stream [n, d_model], centred where the norm does that."""
        return parts if self.norm is None else self.norm.moved(parts)

    def scales(self, stream: torch.Tensor) -> Scales:
        """Of the whole stream [n, d_model]."""
        scale = stream.new_ones(len(stream), 1) if self.norm is None else self.norm.scale(stream)
        normed = self.moved(stream) / scale
        own = [side.scale(side.raw(normed) + side.bias) for side in (self.query, self.key)]
        return Scales(scale, *own)

    def part(self, side: Side, parts: torch.Tensor, stream: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """[n, heads, d_head] the queries (or keys) of parts of the stream [n, d_model], not turned yet.

        `stream` [n, 1] and `own` [n, heads or 1, 1] are the scales of the whole stream.
        """
        return side.gained(side.raw(self.moved(parts) / stream)) / own

    def constant(self, side: Side, own: torch.Tensor) -> torch.Tensor:
        """[n, heads, d_head] what the norm's shift and the bias give, whatever stands in the stream."""
        return side.gained(side.bias) / own

    def whole(self, stream: torch.Tensor, scales: Scales | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries [n, heads, d_head] and keys [n, key heads, d_head] of the whole stream, not turned yet.

        Norms divide by their own scales, or by the given ones.
        """
        scales = self.scales(stream) if scales is None else scales
        both = [
            self.part(side, stream, scales.stream, own) + self.constant(side, own)
            for side, own in ((self.query, scales.query), (self.key, scales.key))
        ]
        return both[0], both[1]

    def scores(self, stream: torch.Tensor, position: torch.Tensor, scales: Scales | None = None) -> torch.Tensor:
        """[heads, n, n] between all tokens of a sequence [n, d_model], later keys too; `scales` as for `whole`."""
        queries, keys = self.whole(stream, scales)
        group = self.n_heads // keys.shape[1]
        keys = self.rotary.turned(keys, position).repeat_interleave(group, 1)
        return self.scaling * torch.einsum("qhe,khe->hqk", self.rotary.turned(queries, position), keys)
