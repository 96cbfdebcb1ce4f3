"""The attention of one layer as the model itself computes it, and its weights as a form over the residual stream."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.looks.rotary import Rotary
from saelink.looks.scores import Form, Norm, Scales, Side
from saelink.model.info import ModelInfo
from saelink.model.load import load_hf
from saelink.model.probe import SeenError, first_of, listen_to_arguments

AGREES = 1e-4
"""A form's pattern must be the model's own within this, or the model is refused."""

QUERY_NORMS, KEY_NORMS = ("q_norm", "q_layernorm"), ("k_norm", "k_layernorm")


class Projections(NamedTuple):
    """The products that make queries and keys of what a layer's attention is given."""

    query: torch.Tensor
    """[heads, d_model, d_head]"""
    key: torch.Tensor
    """[key heads, d_model, d_head]"""
    biases: tuple[torch.Tensor, torch.Tensor]
    """Alike, [heads, d_head]."""


class Run(NamedTuple):
    """What the model itself makes of a stream."""

    pattern: torch.Tensor
    """[batch, heads, n, n]"""
    output: torch.Tensor
    """[batch, n, d_model] what the attention module gives."""


class ScoredLayer:
    """One layer's attention in Hugging Face's own model, with what its block is given besides the stream.

    Its queries and keys; values, and what is made of them, are `attention.heads`'.
    """

    def __init__(self, hf_model: Any, info: ModelInfo, layer: int, ids: torch.Tensor):
        """ids [1, n]: tokens that it is run on once. Raises SaelinkError for attention that it can't read."""
        place = info.place(f"blocks.{layer}.hook_resid_post")
        self._where = f"qk: {type(hf_model).__name__}"
        if place is None or place.side != "output":
            raise SaelinkError(f"{self._where}: its blocks are no modules of their own; QK can't be read from it")
        hf_model.set_attn_implementation("eager")  # alone of them it hands the pattern out
        self.block = hf_model.get_submodule(place.module)
        found = [module for module in self.block.modules() if _projected(module)]
        if len(found) != 1:
            names = sorted({type(m).__name__ for m in self.block.modules() if "Att" in type(m).__name__})
            raise SaelinkError(
                f"{self._where}: QK is read from q_proj and k_proj, query_key_value, qkv_proj or c_attn, and its "
                f"attention ({', '.join(names) or 'none'}) has none of them"
            )
        self.module: Any = found[0]
        self._config = hf_model.config.get_text_config()
        if getattr(self.module, "attn_logit_softcapping", None) is not None:
            raise SaelinkError(
                f"{self._where}: its scores are capped (tanh), which no sum over pairs of latents survives"
            )
        self.arguments = _arguments_of(hf_model, self.block, ids)
        stream = self.arguments["hidden_states"]
        self.n, self.dtype, self.device = stream.shape[1], stream.dtype, str(stream.device)
        self.norm, self._rotary = self._around()
        mask = self.arguments.get("attention_mask")
        self.seen = _seen(mask, self.n, stream.device)
        """[n, n] bool: which keys each query sees."""

    def run(self, stream: torch.Tensor, scales: tuple[Form, Scales] | None = None) -> Run:
        """What the model itself makes of a stream [batch, n, d_model] in front of the block.

        With `scales` its norms divide by those (of all tokens of the batch) instead of their own.
        """
        kept: list[Run] = []

        def keep(_: Any, _args: Any, out: Any) -> None:
            kept.append(Run(out[1], out[0]))
            raise SeenError

        handles = [self.module.register_forward_hook(keep)]
        if scales is not None:
            handles += self._frozen(*scales)
        arguments = self.arguments | {"hidden_states": stream.to(self.dtype)}
        try:
            with suppress(SeenError):
                self.block(**arguments)
        finally:
            for handle in handles:
                handle.remove()
        return kept[0]

    def form(self) -> Form:
        """Its scores as a bilinear form. Raises SaelinkError where the form gives another pattern than the model."""
        weights = self.projections()
        query_norm, key_norm = (
            self._own_norm(names, w) for names, w in ((QUERY_NORMS, weights.query), (KEY_NORMS, weights.key))
        )
        d_model = weights.query.shape[1]
        norm = None if self.norm is None else Norm.of(self.norm, self.arguments["hidden_states"][0])
        gain = torch.ones(d_model, device=self.device) if norm is None else norm.gain
        shift = torch.zeros(d_model, device=self.device) if norm is None else norm.shift
        sides = [
            Side(w * gain[:, None], bias + torch.einsum("d,hde->he", shift, w), own)
            for w, bias, own in (
                (weights.query, weights.biases[0], query_norm), (weights.key, weights.biases[1], key_norm)
            )
        ]  # fmt: skip
        scaling = getattr(self.module, "scaling", None)
        scaling = weights.query.shape[2] ** -0.5 if scaling is None else float(scaling)
        for rotary in self._rotary:
            form = Form(norm, sides[0], sides[1], scaling, rotary)
            if self._agrees(form):
                return form
        raise self._unknown()

    def projections(self) -> Projections:
        """Its weights, cut by head."""
        module, n_heads = self.module, self._config.num_attention_heads
        d_head = (
            getattr(module, "head_dim", None)
            or getattr(module, "head_size", None)
            or self._config.hidden_size // n_heads
        )
        kinds = ("query_key_value", "c_attn", "qkv_proj")
        fused = next((getattr(module, name) for name in kinds if hasattr(module, name)), None)
        try:
            if fused is None:
                weights = [
                    (getattr(module, name).weight.float(), getattr(module, name).bias) for name in ("q_proj", "k_proj")
                ]
            else:
                linear = isinstance(fused, torch.nn.Linear)
                weight = (fused.weight if linear else fused.weight.T).float()  # [out, d_model]
                weights = _cut(weight, fused.bias, n_heads, d_head, hasattr(module, "query_key_value"))
            heads = [weight.view(-1, d_head, weight.shape[1]).transpose(1, 2) for weight, _ in weights]
            biases = [
                torch.zeros(len(w), d_head, device=w.device) if bias is None else bias.float().view(-1, d_head)
                for w, (_, bias) in zip(heads, weights, strict=True)
            ]
        except RuntimeError:  # cut in another way than those known
            raise self._unknown() from None
        if len(heads[0]) != n_heads or n_heads % len(heads[1]):
            raise self._unknown()
        return Projections(heads[0], heads[1], (biases[0], biases[1]))

    def _unknown(self) -> SaelinkError:
        return SaelinkError(
            f"{self._where}: queries and keys as they are known give another pattern than the model's own"
        )

    def _agrees(self, form: Form) -> bool:
        """Whether the form's pattern on the tokens it was made with is the model's."""
        stream = self.arguments["hidden_states"]
        with torch.inference_mode():
            own = self.run(stream).pattern[0].float()
            scores = form.scores(stream[0].float(), torch.arange(self.n, device=self.device))
            ours = scores.masked_fill(~self.seen, -torch.inf).softmax(-1)
        return ours.shape == own.shape and float((ours - own).abs().max()) <= AGREES

    def _own_norm(self, names: tuple[str, ...], weight: torch.Tensor) -> Norm | None:
        """The query or key norm, over one head's dimensions or all heads' together."""
        module = next(
            (getattr(self.module, name) for name in names if getattr(self.module, name, None) is not None), None
        )
        if module is None:
            return None
        heads, _, d_head = weight.shape
        own = next((parameter.numel() for parameter in module.parameters()), 0)
        if own == d_head:
            return Norm.of(module, weight.new_ones(1, d_head))
        if own != heads * d_head:
            raise self._unknown()
        norm = Norm.of(module, weight.new_ones(1, own))
        return norm._replace(gain=norm.gain.view(heads, d_head), shift=norm.shift.view(heads, d_head))

    def _around(self) -> tuple[torch.nn.Module | None, list[Rotary]]:
        """The norm in front of attention, if there is one, and the rotary positions it is given."""
        stream = self.arguments["hidden_states"]
        made: list[tuple[torch.nn.Module, torch.Tensor, torch.Tensor]] = []
        taken: list[tuple[torch.Tensor, Any]] = []

        def after(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            given = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)
            if given is not None and isinstance(first_of(out), torch.Tensor):
                made.append((module, given, first_of(out)))

        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
            taken.append((given, kwargs.get("position_embeddings")))
            raise SeenError

        handles = [
            child.register_forward_hook(after, with_kwargs=True)
            for child in self.block.modules()
            if child is not self.module
        ]
        handles.append(self.module.register_forward_pre_hook(before, with_kwargs=True))
        try:
            with suppress(SeenError), torch.inference_mode():
                self.block(**self.arguments)
        finally:
            for handle in handles:
                handle.remove()
        given, positions = taken[0]
        rotary = [Rotary.none(self.n, self.device)]
        if positions is not None:
            rotary = Rotary.readings(*(part.float().view(-1, part.shape[-1])[: self.n] for part in positions))
        if given is stream:
            return None, rotary
        for module, x, out in made:
            if out is given and x is stream:
                return module, rotary
        raise SaelinkError(f"{self._where}: between the stream and its attention stands more than one norm")

    def _frozen(self, form: Form, scales: Scales) -> list[Any]:
        """Hooks that let the norms divide by given scales."""
        pairs: list[tuple[Any, Norm | None, torch.Tensor]] = [(self.norm, form.norm, scales.stream)]
        for names, side, scale in ((QUERY_NORMS, form.query, scales.query), (KEY_NORMS, form.key, scales.key)):
            module = next(
                (getattr(self.module, name) for name in names if getattr(self.module, name, None) is not None), None
            )
            pairs.append((module, side.norm, scale))
        return [
            module.register_forward_hook(_dividing(norm, scale, self.n))
            for module, norm, scale in pairs
            if module is not None and norm is not None
        ]


def load_scored_layer(cfg: Config, info: ModelInfo, layer: int, ids: torch.Tensor, device: str) -> ScoredLayer:
    """One layer's attention in float32; ids [1, n]. Raises SaelinkError for attention that can't be read."""
    hf_model = load_hf(cfg.model, info.artifact).hf_model
    return ScoredLayer(hf_model.to(device).float(), info, layer, ids.to(device))


def _projected(module: Any) -> bool:
    """Whether a module makes queries and keys."""
    return (hasattr(module, "q_proj") and hasattr(module, "k_proj")) or any(
        hasattr(module, name) for name in ("query_key_value", "c_attn", "qkv_proj")
    )


def _cut(
    weight: torch.Tensor, bias: torch.Tensor | None, n_heads: int, d_head: int, by_head: bool
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Queries and keys of one product [out, d_model]: by head (GPT-NeoX), or one behind another; values behind them."""
    if by_head:
        order = torch.arange(len(weight), device=weight.device).view(n_heads, 3, d_head)
        parts = [order[:, i].flatten() for i in range(2)]
    else:
        queries = n_heads * d_head
        rest = (len(weight) - queries) // 2
        parts = list(torch.arange(len(weight), device=weight.device).split([queries, rest, rest]))[:2]
    return [(weight[part], None if bias is None else bias[part]) for part in parts]


def _arguments_of(hf_model: Any, block: Any, ids: torch.Tensor) -> dict[str, Any]:
    """What a block is given, by name, when the model runs on ids."""
    kept: dict[str, Any] = {}

    def keep(arguments: dict[str, Any]) -> None:
        kept.update(arguments)
        raise SeenError

    handle = listen_to_arguments(block, keep)
    with suppress(SeenError), torch.inference_mode():
        hf_model(ids, use_cache=False)
    handle.remove()
    return kept


def _seen(mask: Any, n: int, device: torch.device) -> torch.Tensor:
    if isinstance(mask, torch.Tensor) and mask.dim() == 4:
        own = mask[0, 0, :n, :n]
        return own if own.dtype is torch.bool else own > torch.finfo(own.dtype).min / 2
    return torch.ones(n, n, dtype=torch.bool, device=device).tril()


def _dividing(norm: Norm, scale: torch.Tensor, n: int) -> Callable[..., Any]:
    """A hook that computes a norm with given scales [batch * n, ...] instead of its own.

    A query norm is given [batch, n, heads, d_head], [batch, heads, n, d_head] or all heads side by side.
    """

    def hook(_: Any, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        x = args[0].float()
        divided = norm.moved(x) / _laid(scale, x, n)
        gain, shift = (value if x.dim() == 4 else value.flatten() for value in (norm.gain, norm.shift))
        return (divided * gain + shift).to(out.dtype)

    return hook


def _laid(scale: torch.Tensor, x: torch.Tensor, n: int) -> torch.Tensor:
    """Scales of tokens as they divide x."""
    if x.dim() == 3:
        return scale.view(-1, n, 1)
    by_token = scale.view(-1, n, scale.shape[1], 1)
    return by_token.transpose(1, 2) if x.shape[2] == n and x.shape[1] != n else by_token
