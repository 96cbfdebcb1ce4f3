"""Where a block's hooks are among the Hugging Face model's modules, found by running a few tokens."""

from __future__ import annotations

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


def listen(module: Any, side: str, keep: Callable[[Any], None]) -> Any:
    """Call `keep` with the first thing that the module is given, or that it gives; the handle that ends it."""

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(next(iter((*args, *kwargs.values())), None))

    def after(_: Any, _args: Any, out: Any) -> None:
        keep(out[0] if isinstance(out, tuple) else out)

    if side == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


PROBE_TOKENS = 8
"""Length of the sequence by which the hooks are found in the Hugging Face model."""

BLOCK_HOOKS = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")
"""The hooks of a block that are looked for there."""


def tensors_inside(hf_model: Any) -> dict[Place, dict[int, torch.Tensor]]:
    """What every layer's modules are given and give on a few tokens, where it is as wide as the residual stream."""
    import torch

    found: dict[Place, dict[int, torch.Tensor]] = {}
    shape = (1, PROBE_TOKENS, getattr(hf_model.config.get_text_config(), "hidden_size", None))

    def keep_at(place: Place, layer: int) -> Callable[[Any], None]:
        def keep(tensor: Any) -> None:
            if isinstance(tensor, torch.Tensor) and tensor.shape == shape:
                found.setdefault(place, {})[layer] = tensor.clone()

        return keep

    handles = []
    for name, module in hf_model.named_modules():
        inside = re.match(r"(.*?\.)(\d+)(\..*|$)", name)
        if inside is not None:
            module_name = f"{inside[1]}*{inside[3]}"
            for side in ("input", "output"):
                handles.append(listen(module, side, keep_at(Place(module_name, side), int(inside[2]))))
    with torch.inference_mode():
        hf_model(torch.arange(PROBE_TOKENS)[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def places_of_hooks(bridge: Any, inside: dict[Place, dict[int, torch.Tensor]]) -> dict[str, Place]:
    """The hooks of FOUND whose tensor is the same one in every layer's place in the Hugging Face model."""
    import torch

    names = [f"blocks.{layer}.{name}" for layer in range(bridge.cfg.n_layers) for name in BLOCK_HOOKS]
    with torch.inference_mode():
        _, seen = bridge.run_with_cache(torch.arange(PROBE_TOKENS)[None], names_filter=names, return_cache_object=False)

    def same(layer: int, name: str, tensors: dict[int, torch.Tensor]) -> bool:
        hook, tensor = seen.get(f"blocks.{layer}.{name}"), tensors.get(layer)
        if hook is None or tensor is None or hook.shape != tensor.shape:
            return False
        return bool((hook - tensor).norm() <= 1e-4 * hook.norm())

    found = {}
    for name in BLOCK_HOOKS:
        for place, tensors in inside.items():
            if all(same(layer, name, tensors) for layer in range(bridge.cfg.n_layers)):
                found[name] = place
                break
    return found
