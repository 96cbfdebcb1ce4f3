"""Encoding a shard of activations, here or in a worker."""

# torch leaves arguments of some of its methods without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch

from saelink import memory
from saelink.activations.cache import Look, ModelPass, Shard, cache_hooks
from saelink.activations.tokens import TokensStage
from saelink.config.schema import Config
from saelink.engine.work import Work
from saelink.kernels import cuda
from saelink.latents.rows import Rows, pack
from saelink.progress import Progress
from saelink.runtime import device_of, fitting_tokens, torch_dtype
from saelink.saes.check import check_sae
from saelink.saes.choice import sae_choice
from saelink.saes.load import pull_sae
from saelink.saes.sae import SAE
from saelink.store.draft import Part, Parts
from saelink.store.store import Store

TYPICAL_L0 = 64
"""Latents that are reckoned with where an SAE does not say how many are active."""


class SAELook:
    """Sees to it that an SAE belongs to the first activations of its hook, once a hook.

    `typical` is what their norms may be, in medians, to count for that.
    """

    def __init__(self, cfg: Config, store: Store, typical: float):
        self._cfg, self._store, self._typical = cfg, store, typical
        self._checked: set[str] = set()

    def __call__(self, hook: str, acts: torch.Tensor) -> None:
        if hook not in self._checked:
            self._checked.add(hook)
            if sae_choice(self._cfg, self._store, hook).exists:
                check_sae(self._cfg, hook, pull_sae(self._cfg, self._store, hook), acts, self._typical)


def encode_shard(sae: SAE, flat: torch.Tensor, room: torch.Tensor, step: int, device: str) -> dict[str, torch.Tensor]:
    """The tensors of one shard, from its acts [n, d_in]."""
    parts: list[Rows] = []
    norms: list[torch.Tensor] = []
    units: list[torch.Tensor] = []
    with torch.inference_mode():
        for batch in cuda.batches(flat, step, device):
            batch = batch.float()
            parts.append(encode_rows(sae, batch, room).to("cpu"))
            norms.append(cast("torch.Tensor", batch.norm(dim=1)).cpu())
            of = sae.units(batch)
            if of is not None:
                units.append(torch.cat(of, dim=1).float().cpu())
    tensors = {**pack(Rows.stack(parts)), "norm": torch.cat(norms)}
    if units:
        both = torch.cat(units)
        tensors |= {"mean": both[:, 0].contiguous(), "scale": both[:, 1].contiguous()}
    return tensors


def side_of(sae: SAE) -> memory.Side:
    """Its sizes; how many latents are active is known for TopK only."""
    return memory.Side(sae.d_in, sae.d_sae, sae.k or TYPICAL_L0)


def step_of(cfg: Config, saes: dict[str, SAE]) -> int:
    """Tokens that are encoded at a time: runtime.forward_tokens, halved as often as memory asks for."""
    sides = [side_of(sae) for sae in saes.values()]
    fixed = sum(memory.encode(side, 0, 0) for side in sides)
    each = sum(memory.encode(side, 1, 0) for side in sides) - fixed
    return fitting_tokens(cfg.runtime.forward_tokens, each, fixed)


def encode_rows(sae: SAE, batch: torch.Tensor, room: torch.Tensor | None = None) -> Rows:
    """The latents of acts [n, d_in]; `room` as in SAE.encode_sparse."""
    row, latent, value = sae.encode_sparse(batch, room)
    return Rows.from_pairs(row, latent, value.float(), n=len(batch), d=sae.d_sae)


@dataclass(frozen=True)
class EncodeWork(Work["Encoder", tuple[Shard, bool], dict[str, Part]]):
    """The latents of one shard at several hooks; by hook the file that was written.

    With each shard whether its activations are looked at: the first one's are.
    """

    cfg: Config
    drafts: dict[str, Parts]
    streamed: bool
    """Whether activations come from the model, not from the disk."""
    typical: float
    on_gpu = True

    def open(self) -> Encoder:
        cfg, store, hooks = self.cfg, Store(self.cfg.runtime.outputs), list(self.drafts)
        saes = {hook: pull_sae(cfg, store, hook) for hook in hooks}
        looks = SAELook(cfg, store, self.typical)
        if self.streamed:
            model = ModelPass(cfg, store, TokensStage(cfg, store).pull(), hooks)
            return Encoder(cfg, lambda shard: model.acts(shard, Progress()), saes, looks)
        cached = cache_hooks(cfg, store, hooks)
        return Encoder(
            cfg, lambda shard: {hook: cached[hook].tensors(shard.name)["acts"] for hook in hooks}, saes, looks
        )

    def run(self, state: Encoder, task: tuple[Shard, bool]) -> dict[str, Part]:
        shard, looks = task
        tensors = state.tensors(shard, looks)
        return {hook: draft.save_tensors(shard.name, tensors[hook]) for hook, draft in self.drafts.items()}


class Encoder:
    """What a worker has open."""

    def __init__(self, cfg: Config, acts: Callable[[Shard], dict[str, torch.Tensor]], saes: dict[str, SAE], look: Look):
        self._acts, self._look, self._device = acts, look, device_of(cfg)
        self._step = step_of(cfg, saes)
        self._saes = {hook: sae.to(self._device, torch_dtype(cfg.sae.dtype)) for hook, sae in saes.items()}
        self._rooms = {
            hook: torch.empty(self._step, sae.d_sae, device=self._device, dtype=sae.W_enc.dtype)
            for hook, sae in self._saes.items()
        }

    def tensors(self, shard: Shard, looks: bool) -> dict[str, dict[str, torch.Tensor]]:
        """By hook the tensors of a shard."""
        tensors: dict[str, dict[str, torch.Tensor]] = {}
        found = self._acts(shard)
        for hook, sae in self._saes.items():
            flat = found[hook].reshape(-1, found[hook].shape[-1])
            if looks:
                self._look(hook, flat)
            tensors[hook] = encode_shard(sae, flat, self._rooms[hook], self._step, self._device)
        return tensors
