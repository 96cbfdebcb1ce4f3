"""From token ids to the activations at some hooks, and no further."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from saelink.config.schema import Config
from saelink.model.info import ModelInfo
from saelink.model.load import load_bridge, load_hf
from saelink.model.probe import Place, SeenError, by_token, listen

if TYPE_CHECKING:
    import torch

Forward = Callable[["torch.Tensor"], dict[str, "torch.Tensor"]]


def load_forward(cfg: Config, info: ModelInfo, hook_names: Iterable[str], device: str) -> Forward:
    """A function from token ids [n, context] to the acts [n, context, width] at the hooks, heads side by side.

    It stops behind the last of them. A hook that is a place in Hugging Face's own model is always read there, with the
    attention kernel of torch, and any other always through the TransformerBridge, whose attention forms the whole
    matrix of scores: so a hook's acts do not depend on which others are asked for.
    """
    names = list(dict.fromkeys(hook_names))
    places = {hook: place for hook in names if (place := info.place(hook)) is not None}
    others = [hook for hook in names if hook not in places]
    parts: list[Forward] = []
    if places:
        parts.append(_through_modules(load_hf(cfg.model, info.artifact).hf_model.to(device), places))
    if others:
        parts.append(_through_bridge(load_bridge(cfg, info, device), others))

    def forward(ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {hook: acts for part in parts for hook, acts in part(ids).items()}

    return forward


def _copied(given: Any, ids: torch.Tensor) -> torch.Tensor:
    """A copy at once: a module behind the hook may change in place what the hook was shown."""
    tensor = by_token(given, ids.shape)
    assert tensor is not None, "a hook of the model shows one vector for each token"
    return tensor.clone()


def _through_modules(hf_model: Any, places: dict[str, Place]) -> Forward:
    seen: dict[str, torch.Tensor] = {}
    now: list[torch.Tensor] = []
    modules = dict(hf_model.named_modules())
    for hook, place in places.items():

        def keep(given: Any, hook: str = hook) -> None:
            seen[hook] = _copied(given, now[0])
            if len(seen) == len(places):
                raise SeenError

        listen(modules[place.module], place.side, keep)

    def forward(ids: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.clear()
        now[:] = [ids]
        with suppress(SeenError):
            hf_model(ids, use_cache=False)
        return dict(seen)

    return forward


def _through_bridge(bridge: Any, hooks: list[str]) -> Forward:
    stop_at_layer = max(int(hook.split(".")[1]) for hook in hooks) + 1

    def forward(ids: torch.Tensor) -> dict[str, torch.Tensor]:
        seen: dict[str, torch.Tensor] = {}

        def keeper(hook: str) -> Any:
            def keep(given: torch.Tensor, **_: object) -> torch.Tensor:
                seen[hook] = _copied(given, ids)
                return given

            return keep

        bridge.run_with_hooks(ids, fwd_hooks=[(hook, keeper(hook)) for hook in hooks], stop_at_layer=stop_at_layer)
        return seen

    return forward
