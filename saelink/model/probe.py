"""A few tokens run through Hugging Face's own model: what its modules take and give, and what it answers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


class Place(NamedTuple):
    """A tensor in the Hugging Face model: what a module is given, or what it gives."""

    module: str
    """Its name, `*` for the layer."""
    side: str
    """`input` or `output`."""


class SeenError(Exception):
    """All hooks have been seen: the rest of the forward pass is not wanted."""


def first_of(value: Any) -> Any:
    """What a module gives, without what it gives besides."""
    return value[0] if isinstance(value, tuple) and value else value


def listen(module: Any, side: str, keep: Callable[[Any], None]) -> Any:
    """Call `keep` with the first thing that the module is given, or that it gives; the handle that ends it.

    A module may change it in place behind the hook: what is kept has to be copied at once.
    """

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(next(iter((*args, *kwargs.values())), None))

    def after(_: Any, _args: Any, out: Any) -> None:
        keep(first_of(out))

    if side == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


def listen_to_arguments(module: Any, keep: Callable[[dict[str, Any]], None]) -> Any:
    """Call `keep` with all that the module is given, by name; the handle that ends it."""
    signature = inspect.signature(module.forward)

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = signature.bind(*args, **kwargs).arguments
        for name, parameter in signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                bound |= bound.pop(name, {})
        keep(dict(bound))

    return module.register_forward_pre_hook(before, with_kwargs=True)


def at_positions(value: Any, n: int, index: torch.Tensor) -> Any:
    """What a module is given of the first of its sequences by position, at other positions: [n], [batch, n, ...] or
    tuples of such."""
    import torch

    if isinstance(value, tuple | list):
        return type(value)(at_positions(part, n, index) for part in value)
    if isinstance(value, torch.Tensor):
        dim = min(value.dim() - 1, 1)
        if dim >= 0 and value.shape[dim] == n:
            return value[:1].index_select(dim, index) if dim else value.index_select(dim, index)
    return value


PROBE_TOKENS = 16
"""Length of the sequences by which a model is looked at."""

WINDOWS = ("sliding_window", "window_size", "attention_window_size")
"""How configs call the number of tokens that a token sees."""

LONGEST_WINDOW = 1024
"""A longer one is not tried: that takes a laptop minutes."""

BLOCK_HOOKS = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")
"""The hooks of a block between which effects are measured."""


def n_tokens(hf_model: Any) -> int:
    """How many token ids it has an embedding for."""
    return int(hf_model.get_input_embeddings().weight.shape[0])


def context_of(hf_model: Any) -> int | None:
    """The longest sequence that its config allows; None where it does not say."""
    config = hf_model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)


def probe_ids(hf_model: Any, length: int = PROBE_TOKENS) -> torch.Tensor:
    """[3, length] token ids from all of the vocabulary; the third sequence begins as the first does."""
    import torch

    length = min(length, context_of(hf_model) or length)
    ids = torch.randint(n_tokens(hf_model), (3, length), generator=torch.Generator().manual_seed(0))
    ids[2, : length // 2] = ids[0, : length // 2]
    return ids


def window_of(config: Any) -> int:
    """How many tokens back a model's attention sees by its config, where it sees them longest; 0 for all of them."""
    text = config.get_text_config()
    return max((window for name in WINDOWS if isinstance(window := getattr(text, name, None), int)), default=0)


def _longer_ids(hf_model: Any) -> torch.Tensor | None:
    """One sequence whose end does not see its beginning."""
    longest = window_of(hf_model.config)
    if not PROBE_TOKENS <= longest <= LONGEST_WINDOW:
        return None
    return probe_ids(hf_model, longest + PROBE_TOKENS)[:1]


def at_its_end(logits: torch.Tensor) -> torch.Tensor:
    """The last tokens' alone, copied: a wide vocabulary's logits of a thousand tokens take a gigabyte."""
    return logits[:, -PROBE_TOKENS:].clone()


class Inside(NamedTuple):
    """What Hugging Face's own model makes of the probe's tokens [sequences, length]."""

    ids: torch.Tensor
    tensors: dict[Place, dict[int, torch.Tensor]]
    """By place and layer [sequences, length, width]: what modules of the layers take and give, token by token."""
    logits: torch.Tensor
    longer: tuple[torch.Tensor, torch.Tensor] | None
    """Tokens [1, length], longer than the window of the model's attention, and the logits of the last ones, which don't
    see the first; None where it has none, or one above LONGEST_WINDOW."""


def by_token(tensor: Any, shape: torch.Size) -> torch.Tensor | None:
    """[*shape, width], heads side by side; None for what is not one vector a token."""
    import torch

    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        return None
    if tensor.dim() == 2 and len(tensor) == shape.numel():
        return tensor.view(*shape, -1)
    return tensor.flatten(2) if tensor.dim() > 2 and tensor.shape[:2] == shape else None


def look_inside(hf_model: Any) -> Inside:
    """Run the probe, and keep what every layer's modules take and give; not of modules that run more than once."""
    import torch

    ids, longer = probe_ids(hf_model), _longer_ids(hf_model)
    found: dict[Place, dict[int, torch.Tensor]] = {}
    flat: set[Place] = set()
    calls: dict[tuple[Place, int], int] = {}

    def keep_at(place: Place, layer: int) -> Callable[[Any], None]:
        def keep(given: Any) -> None:
            tensor = by_token(given, ids.shape)
            if tensor is not None:
                if given.dim() == 2:
                    flat.add(place)
                found.setdefault(place, {})[layer] = tensor.clone()
                calls[place, layer] = calls.get((place, layer), 0) + 1

        return keep

    handles = []
    for name, module in hf_model.named_modules():
        inside = re.match(r"(.*?\.)(\d+)(\..*|$)", name)
        if inside is not None:
            module_name = f"{inside[1]}*{inside[3]}"
            for side in ("input", "output"):
                handles.append(listen(module, side, keep_at(Place(module_name, side), int(inside[2]))))
    with torch.inference_mode():
        logits = hf_model(ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    for (place, layer), times in calls.items():
        if times > 1:
            found[place].pop(layer)
    with torch.inference_mode():
        further = None if longer is None else (longer, at_its_end(hf_model(longer, use_cache=False).logits))
    # Of places with the same tensor the outermost module is first, and one by sequence before one of a list of tokens.
    ordered = {place: found[place] for place in sorted(found, key=lambda at: (at in flat, at.module.count(".")))}
    return Inside(ids, ordered, logits, further)
