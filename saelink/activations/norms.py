"""How large the activations are: the stage `norms`, a table of mean norms by layer and hook.

It runs the model over the first training sequences and keeps nothing but the norms, so that comparing layers
(normalise=post) does not need them cached.
"""

from __future__ import annotations

from typing import Any, TypedDict

import torch

from saelink import memory
from saelink.activations.tokens import TokensStage
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.model.describe import model_info
from saelink.model.dimensions import size_of
from saelink.model.load import load_bridge
from saelink.runtime import device_of
from saelink.store.draft import Draft
from saelink.store.stage import Need, Stage
from saelink.store.store import Store

HOOKS = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")

NORM_TOKENS = 16_384
"""Training tokens that the norms are averaged over."""


def _hooks(cfg: Config) -> list[str]:
    """The hooks of a block that are measured: those of the residual stream, and the link's target."""
    return list(dict.fromkeys([*HOOKS, cfg.link.target]))


class NormsFacts(TypedDict):
    tokens: int
    """Training tokens that were run."""


class NormsStage(Stage[NormsFacts]):
    """Norms of all layers.

    File `norms.json`: for every layer and hook of the block that the model has, and the link's target, the mean and
    the median l2 norm over the positions that count of the first 16,384 training tokens.
    """

    name = "norms"
    version = 1

    def __init__(self, cfg: Config, store: Store):
        self.cfg, self.store = cfg, store
        self._model = model_info(cfg, store)

    @property
    def device(self) -> str:
        return device_of(self.cfg)

    def recipe(self) -> dict[str, Any]:
        return {
            "hooks": _hooks(self.cfg),
            "tokens": NORM_TOKENS,
            "drop_positions": self.cfg.data.drop_positions,
            "model_dtype": self.cfg.model.dtype.name,
        }

    def inputs(self) -> dict[str, str]:
        return {"model": self._model.artifact.key, "tokens": TokensStage(self.cfg, self.store).key}

    def about(self) -> str:
        return f"{self.cfg.model.label}, all layers"

    def need(self) -> Need:
        cfg, size = self.cfg, size_of(self.cfg.model, self._model.artifact)
        hooks, context = self._model.n_layers * len(_hooks(cfg)), cfg.data.context_size
        needed = memory.norms(size, hooks, NORM_TOKENS, max(cfg.runtime.forward_tokens, context), context)
        return Need(needed, "use a smaller runtime.forward_tokens")

    def make(self, draft: Draft) -> NormsFacts:
        tokens, info, device = TokensStage(self.cfg, self.store).pull(), self._model, self.device
        bridge = load_bridge(self.cfg, info, device)
        hooks = [f"blocks.{layer}.{name}" for layer in range(info.n_layers) for name in _hooks(self.cfg)]
        hooks = [hook for hook in hooks if hook in info.hooks]
        context = tokens.facts["context_size"]
        ids = tokens.tensors("train.safetensors")["ids"][: max(NORM_TOKENS // context, 1)].long()
        rows = max(self.cfg.runtime.forward_tokens // context, 1)
        drop = self.cfg.data.drop_positions
        seen: dict[str, list[torch.Tensor]] = {hook: [] for hook in hooks}

        def keeper(name: str) -> Any:  # by our name: some of the model's hooks go by several
            def keep(acts: torch.Tensor, **_: object) -> torch.Tensor:
                seen[name].append(acts[:, drop:].flatten(2).float().norm(dim=-1).flatten().cpu())
                return acts

            return keep

        with self.store.observer.progress("norms", ids.numel()) as bar, torch.inference_mode():
            for batch in ids.split(rows):
                bridge.run_with_hooks(
                    batch.to(device), fwd_hooks=[(hook, keeper(hook)) for hook in hooks], stop_at_layer=info.n_layers
                )
                bar.advance(batch.numel())
        table = [
            {
                "layer": int(hook.split(".")[1]),
                "hook": hook.split(".", 2)[2],
                "mean_norm": torch.cat(parts).double().mean().item(),
                "median_norm": torch.cat(parts).median().item(),
            }
            for hook, parts in seen.items()
            if parts
        ]
        draft.save_json("norms.json", table)
        return {"tokens": ids.numel()}


def c_post(cfg: Config, store: Store, hook_name: str) -> float:
    """The post's c_L of a hook: (its mean norm / the smallest over normalise_layers at the same hook)^2.

    Raises SaelinkError for a layer that the model lacks.
    """
    _, layer, name = hook_name.split(".", 2)
    by_layer = {
        row["layer"]: row["mean_norm"]
        for row in NormsStage(cfg, store).pull().json("norms.json")
        if row["hook"] == name
    }
    if not cfg.normalise_layers or not set(cfg.normalise_layers) <= set(by_layer):
        raise SaelinkError(
            f"normalise_layers={cfg.normalise_layers}: name at least one layer whose {name} is compared, such as "
            f"[1,3]; the model has layers {min(by_layer)} to {max(by_layer)}"
        )
    return (by_layer[int(layer)] / min(by_layer[other] for other in cfg.normalise_layers)) ** 2
