"""From token ids to the activations at some hooks, and no further."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from saelink.config.schema import Config
from saelink.model.info import ModelInfo
from saelink.model.load import load_bridge, load_hf
from saelink.model.probe import SeenError, listen

if TYPE_CHECKING:
    import torch


def load_forward(
    cfg: Config, info: ModelInfo, hook_names: Iterable[str], device: str
) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    """A function from token ids [n, context] to the acts [n, context, d_model] at the hooks.

    It stops behind the last of them. Where Hugging Face's own modules hold them, these run alone, with the attention
    kernel of torch; otherwise the TransformerBridge, whose attention forms the whole matrix of scores.
    """

    wanted = {hook: info.place(hook) for hook in hook_names}
    if any(place is None for place in wanted.values()):
        bridge = load_bridge(cfg, info, device)
        stop_at_layer = max(int(hook.split(".")[1]) for hook in wanted) + 1

        def through_bridge(ids: torch.Tensor) -> dict[str, torch.Tensor]:
            _, seen = bridge.run_with_cache(ids, names_filter=list(wanted), stop_at_layer=stop_at_layer)
            return {hook: seen[hook] for hook in wanted}

        return through_bridge
    _, hf_model = load_hf(cfg.model, info.artifact, attention=None)
    hf_model.to(device)
    seen: dict[str, torch.Tensor] = {}
    modules = dict(hf_model.named_modules())
    for hook, place in wanted.items():
        assert place is not None

        def keep(tensor: torch.Tensor, hook: str = hook) -> None:
            seen[hook] = tensor
            if len(seen) == len(wanted):
                raise SeenError

        listen(modules[place.module], place.side, keep)

    def forward(ids: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.clear()
        with suppress(SeenError):
            hf_model(ids, use_cache=False)
        return dict(seen)

    return forward
