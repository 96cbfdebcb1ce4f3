"""A layer's scores as the model itself has them."""

from __future__ import annotations

from typing import Any

import torch

from saelink.looks.layer import ScoredLayer


def taken(attention: ScoredLayer, stream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[heads, n, n] the model's own scores, and its pattern: its own queries and keys behind norms and rotation."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    seen: list[torch.Tensor] = []

    def record(_: Any, query: Any, key: Any, _value: Any, mask: Any, scaling: float, **_others: Any) -> Any:
        group = query.shape[1] // key.shape[1]
        scores = query @ key.repeat_interleave(group, 1).transpose(2, 3) * scaling
        seen.extend([scores[0], (scores if mask is None else scores + mask).softmax(-1)[0]])
        return torch.zeros_like(query).transpose(1, 2), None

    AttentionInterface.register("recorded", record)
    AttentionMaskInterface.register("recorded", eager_mask)
    config: Any = attention.module.config
    config._attn_implementation = "recorded"  # noqa: SLF001 (set_attn_implementation is the whole model's)
    with torch.inference_mode():
        attention.block(**attention.arguments | {"hidden_states": stream[None]})
    config._attn_implementation = "eager"  # noqa: SLF001
    return seen[0], seen[1]
