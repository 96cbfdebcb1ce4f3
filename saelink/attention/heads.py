"""What a head of one layer is: the norm in front, what it makes of a token, what it writes, the norm behind.

Row vectors. With x(k) in the residual stream in front of attention, h' the key-value head of head h, A^h its pattern:

    n(k) = (x(k) - mean) / s(k) * gain + shift                                 mean: 0 for an RMSNorm
    out(q) = sum over h and k of A^h(q, k) (n(k) W_V^{h'} + b_V^{h'}) W_O^h, + b_O
    attn_out(q) = out(q), or the norm behind it of that

Nothing here goes by names of an architecture: the weights are what the model's own modules make of unit vectors, and
`load_attention` compares the formula with the model before it gives anything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from saelink.attention.opened import Given, OpenAttention, open_attention
from saelink.config.schema import Config, DType
from saelink.errors import SaelinkError
from saelink.model.info import ModelInfo
from saelink.model.load import load_hf
from saelink.model.probe import probe_ids

AGREES = 1e-4
"""What a norm, the values and the sum over heads may differ from the model's own, as a share of its norm."""


@dataclass(frozen=True)
class Norm:
    """A norm: (x - mean) / scale * gain + shift."""

    gain: torch.Tensor
    """[d]; 1 + the weight in Gemma."""
    shift: torch.Tensor
    """[d]; 0 where there is none."""
    centred: bool
    """Whether it takes the mean away (LayerNorm)."""
    eps: float

    def centre(self, x: torch.Tensor) -> torch.Tensor:
        """[..., d] -> [..., d] without the mean, where the norm takes it away."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def scale(self, x: torch.Tensor) -> torch.Tensor:
        """[..., d] -> [..., 1]: what x is divided by."""
        return (self.centre(x).square().mean(-1, keepdim=True) + self.eps).sqrt()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.centre(x) / self.scale(x) * self.gain + self.shift


@dataclass(frozen=True)
class Heads:
    """The value side of all heads of one layer."""

    W_V: torch.Tensor
    """[n_kv, d_model, d_head]"""
    value_bias: torch.Tensor
    """[n_kv, d_head]"""
    W_O: torch.Tensor
    """[n_heads, d_head, d_model]"""
    out_bias: torch.Tensor
    """[d_model]"""
    norm: Norm | None
    """In front of attention; None where attention reads the stream as it is."""
    post: Norm | None
    """Behind it (Gemma 2 and 3); None for most models."""

    @property
    def n_heads(self) -> int:
        return len(self.W_O)

    @property
    def n_kv(self) -> int:
        """Key-value heads; as many heads share each as follow one another."""
        return len(self.W_V)

    @property
    def kv_of(self) -> torch.Tensor:
        """[n_heads] int64: the key-value head of each head."""
        return torch.arange(self.n_heads, device=self.W_O.device) // (self.n_heads // self.n_kv)

    def scale(self, x: torch.Tensor) -> torch.Tensor:
        """[..., d_model] of the stream -> [..., 1]: s, what the norm in front divides it by."""
        return torch.ones_like(x[..., :1]) if self.norm is None else self.norm.scale(x)

    def values(self, directions: torch.Tensor) -> torch.Tensor:
        """[m, d_model] directions of the stream -> [m, n_kv, d_head]: (d * gain) W_V, d without its mean for LayerNorm.

        A head's value of a whole token is that of x divided by s, and `constant_values` once.
        """
        if self.norm is not None:
            directions = self.norm.centre(directions) * self.norm.gain
        return torch.einsum("md,kdv->mkv", directions, self.W_V)

    def constant_values(self) -> dict[str, torch.Tensor]:
        """[n_kv, d_head] each, the same at every token: `shift`, what the norm's shift becomes, and `b_V`."""
        shift = torch.zeros_like(self.value_bias)
        if self.norm is not None:
            shift = torch.einsum("d,kde->ke", self.norm.shift, self.W_V)
        return {"shift": shift, "b_V": self.value_bias}

    def readers(self, encoder: torch.Tensor) -> torch.Tensor:
        """[d_model, m] columns that read attn_out -> [n_heads, d_head, m]: how they read each head's sum of values.

        With a norm behind attention: less its scale at the query, see `post`.
        """
        if self.post is not None:
            encoder = self.post_encoder(encoder)
        return torch.einsum("hed,dm->hem", self.W_O, encoder)

    def post_encoder(self, encoder: torch.Tensor) -> torch.Tensor:
        """[d_model, m] columns that read attn_out -> those that read what the norm behind is given, less its scale."""
        if self.post is None:
            return encoder
        scaled = encoder * self.post.gain[:, None]
        return scaled - scaled.mean(0, keepdim=True) if self.post.centred else scaled

    def weights(self, directions: torch.Tensor, encoder: torch.Tensor, head: int) -> torch.Tensor:
        """[m, n]: V^h of decoder directions [m, d_model] on encoder columns [d_model, n], (d * gain) W_V W_O e."""
        kv = int(self.kv_of[head])
        if self.norm is not None:
            directions = self.norm.centre(directions) * self.norm.gain
        return directions @ self.W_V[kv] @ (self.W_O[head] @ self.post_encoder(encoder))

    def token_values(self, x: torch.Tensor) -> torch.Tensor:
        """[..., d_model] of the stream -> [..., n_kv, d_head]: the values of whole tokens, biases included."""
        normed = x if self.norm is None else self.norm(x)
        return torch.einsum("...d,kde->...ke", normed, self.W_V) + self.value_bias

    def behind(self, out: torch.Tensor) -> torch.Tensor:
        """[..., d_model] that attention's module gives -> at attn_out: Gemma 2 and 3 norm it once more."""
        return out if self.post is None else self.post(out)

    def out(self, z: torch.Tensor) -> torch.Tensor:
        """[..., n_heads, d_head] sums of values -> [..., d_model] at attn_out."""
        return self.behind(torch.einsum("...he,hed->...d", z, self.W_O) + self.out_bias)

    def to(self, dtype: torch.dtype) -> Heads:
        """The same in another type, such as float64 for a check."""

        def norm(of: Norm | None) -> Norm | None:
            return None if of is None else replace(of, gain=of.gain.to(dtype), shift=of.shift.to(dtype))

        return Heads(
            self.W_V.to(dtype),
            self.value_bias.to(dtype),
            self.W_O.to(dtype),
            self.out_bias.to(dtype),
            norm(self.norm),
            norm(self.post),
        )


class Seen(NamedTuple):
    """What one layer's attention is given and does, on some sequences."""

    x: torch.Tensor
    """[n, context, d_model] the residual stream in front of the norm."""
    given: Given
    """Queries, keys and values of all heads, positions and norms in them, and the mask."""
    pattern: torch.Tensor
    """[n, n_heads, context, context] A."""
    before: torch.Tensor
    """[n, context, d_model] what attention gives, in front of a norm behind it,"""
    out: torch.Tensor
    """and what the model has at attn_out."""


class Attention(NamedTuple):
    """One layer's attention: its heads, and the model that runs it."""

    heads: Heads
    opened: OpenAttention

    def look(self, ids: torch.Tensor) -> Seen:
        """Run the model on tokens [n, context] as far as this layer's attention."""
        x, given, before, out = self.opened.look(ids)
        return Seen(x, given, given.pattern(), before, out)


def load_attention(cfg: Config, info: ModelInfo, layer: int, device: str) -> Attention:
    """The attention of one layer, in float32, with the model behind it.

    Raises SaelinkError where the model's attention is not of the form above: values that are not linear in what the
    norm gives, a norm of another kind, something added, or a pattern that is not softmax of queries times keys.
    """
    exact = replace(cfg.model, dtype=DType.float32)
    hf_model: Any = load_hf(exact, info.artifact).hf_model.to(device)
    return attention_of(cfg, info, hf_model, layer)


def attention_of(cfg: Config, info: ModelInfo, hf_model: Any, layer: int) -> Attention:
    """The same of a model that is loaded already, in float32."""
    where = f"model.path={cfg.model.path}: the attention of layer {layer}"
    opened = open_attention(hf_model, info, layer, where)
    with torch.inference_mode():
        heads = _read(opened, where)
        _check(Attention(heads, opened), probe_ids(hf_model).to(opened.device), where)
    return Attention(heads, opened)


def _read(opened: OpenAttention, where: str) -> Heads:
    """The weights, from what the modules make of unit vectors."""
    d_model = opened.d_model
    device = opened.device
    found: list[Norm | None] = []
    for module in (opened.norm, opened.post):
        norm = None if module is None else read_norm(module, d_model, device)
        if norm is None and module is not None:
            raise SaelinkError(f"{where} has a norm, {type(module).__name__}, that is neither LayerNorm nor RMSNorm")
        found.append(norm)
    nothing = torch.zeros(1, d_model, device=device)
    b_V = opened.project(nothing, torch.zeros(1, dtype=torch.int64)).value[0]
    # At position 0 each: no position is part of a value.
    units = opened.project(torch.eye(d_model, device=device), torch.zeros(d_model, dtype=torch.int64)).value
    W_V = (units - b_V).transpose(0, 1).contiguous()
    n_heads, d_head = opened.n_heads, b_V.shape[1]
    b_O = opened.finish(torch.zeros(1, n_heads, d_head, device=device))[0]
    eye = torch.eye(n_heads * d_head, device=device).view(-1, n_heads, d_head)
    W_O = (opened.finish(eye) - b_O).view(n_heads, d_head, d_model)
    heads = Heads(W_V, b_V, W_O, b_O, *found)
    if n_heads % heads.n_kv:
        raise SaelinkError(f"{where} has {n_heads} heads on {heads.n_kv} key-value heads")
    generator = torch.Generator().manual_seed(0)
    some = torch.randn(8, d_model, generator=generator).to(device)
    own = opened.project(some, torch.arange(8) % 4).value
    if not _close(torch.einsum("md,kdv->mkv", some, W_V) + b_V, own):
        raise SaelinkError(f"{where} makes values that are not linear in what it reads; what it moves can't be split")
    return heads


def read_norm(module: Any, d: int, device: str) -> Norm | None:
    """A norm's gain, shift, kind and eps, found by trying which give what the module gives; None if none does."""
    eps = next((e for name in ("eps", "variance_epsilon") if isinstance(e := getattr(module, name, None), float)), None)
    weight = getattr(module, "weight", None)
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(16, d, generator=generator) + 0.5).to(device)
    shift = module(torch.zeros(1, d, device=device))[0]
    gains = [torch.ones(d, device=device)] if weight is None else [weight.detach(), 1 + weight.detach()]
    for gain in gains:
        for centred in (False, True):
            norm = Norm(gain.float(), shift.float(), centred, 0.0 if eps is None else eps)
            if _close(norm(x), module(x), 1e-5):
                return norm
    return None


def _check(attention: Attention, ids: torch.Tensor, where: str) -> None:
    """The formula against the model at its own implementation."""
    heads, seen = attention.heads, attention.look(ids)
    values = heads.token_values(seen.x).transpose(1, 2)
    z = (seen.pattern @ values[:, heads.kv_of]).transpose(1, 2)
    if not (_close(heads.out(z), seen.out) and _close(seen.out, attention.opened.untouched(ids))):
        raise SaelinkError(f"{where} computes something else than softmax(queries keys) values; it can't be split")


def _close(mine: torch.Tensor, own: torch.Tensor, within: float = AGREES) -> bool:
    return bool(torch.linalg.vector_norm(mine - own) <= within * torch.linalg.vector_norm(own).clamp(min=1e-6))
