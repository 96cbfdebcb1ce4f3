"""Replace a hook's activations and let the model run on: what the stages `oracle` and `ce` do.

It happens at the positions that count of a split, the test split unless said otherwise; all others keep the model's
own activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from saelink import memory
from saelink.activations.cache import CacheStage, act_shards, shards_of
from saelink.job import Job
from saelink.latents.encode import EncodeFacts, stored_units
from saelink.latents.link import load_split
from saelink.latents.rows import Rows, sparse_linear, unpack
from saelink.model.load import load_bridge
from saelink.progress import Progress
from saelink.saes.load import pull_sae
from saelink.saes.sae import SAE, Units
from saelink.store.artifact import Artifact
from saelink.store.stage import Need

LOGITS_TOKENS = 2048
"""Tokens of one pass to the logits, which are as wide as the vocabulary."""

Hook = tuple[str, Callable[..., torch.Tensor]]


def losses_need(job: Job, way_out: str, beside: float = 0.0) -> Need:
    """What cross-entropies on eval.ce_tokens test tokens take, `beside` what else is in memory."""
    context, target = job.cfg.data.context_size, job.sides.sizes[1]
    needed = memory.losses(job.size, target, job.cfg.eval.ce_tokens, max(LOGITS_TOKENS, context), context)
    return Need(beside + needed, way_out)


class SplicedTokens(NamedTuple):
    """The first sequences of a split."""

    ids: torch.Tensor
    """[sequences, context_size] int64: tokens."""
    document: torch.Tensor
    """[sequences, context_size] int64: the document each token belongs to."""
    counts: torch.Tensor
    """[sequences, context_size] bool: where latents are explained."""


def spliced_tokens(job: Job, limit: int | None = None, split: str = "test") -> SplicedTokens:
    """At most `limit` tokens of a split, in whole sequences, at least one."""
    tensors = job.tokens.tensors(f"{split}.safetensors")
    ids, document = tensors["ids"].long(), tensors["document"].long()
    counts = torch.zeros(ids.numel(), dtype=torch.bool)
    counts[load_split(job.cfg, job.sides, split).row] = True
    n = len(ids) if limit is None else min(max(limit // ids.shape[1], 1), len(ids))
    return SplicedTokens(ids[:n], document[:n], counts.view(ids.shape)[:n])


def first_latents(side: Artifact[EncodeFacts], n_sequences: int, split: str = "test") -> Rows:
    """All positions of the split's first sequences, as the SAE gave them."""
    context = side.facts["context_size"]
    parts = [
        unpack(side.tensors(shard.name), side.facts["d_sae"])
        for shard in shards_of(side.facts["sequences"], context, [split])
    ]
    return Rows.stack(parts).select(torch.arange(n_sequences * context))


def first_units(side: Artifact[EncodeFacts], n_sequences: int, split: str = "test") -> Units | None:
    """The units of all positions of the split's first sequences, for an SAE that normalises what it reads."""
    context = side.facts["context_size"]
    parts = [stored_units(side.tensors(shard.name)) for shard in shards_of(side.facts["sequences"], context, [split])]
    known = [part for part in parts if part is not None]
    if not known:
        return None
    return Units(*(torch.cat(column) for column in zip(*known, strict=True))).select(slice(n_sequences * context))


def decoded(sae: SAE, rows: Rows, units: Units | None, shape: torch.Size) -> torch.Tensor:
    """[sequences, context_size, d_in]"""
    return sae.output(sparse_linear(rows, sae.W_dec), units).view(*shape, sae.d_in)


def put(replacement: torch.Tensor, where: torch.Tensor) -> Callable[..., torch.Tensor]:
    """A hook that puts `replacement` [rows, context, d_in] where `where` [rows, context] is true."""

    def hook(acts: torch.Tensor, **_: object) -> torch.Tensor:
        flat = acts.flatten(2)  # heads side by side
        return torch.where(where[..., None], replacement.to(acts.dtype), flat).view(acts.shape)

    return hook


def add(change: torch.Tensor, where: torch.Tensor) -> Callable[..., torch.Tensor]:
    """A hook that adds `change` where `where` is true."""

    def hook(acts: torch.Tensor, **_: object) -> torch.Tensor:
        flat = acts.flatten(2)
        return (flat + torch.where(where[..., None], change.to(acts.dtype), 0.0)).view(acts.shape)

    return hook


def next_token_losses(bridge: Any, ids: torch.Tensor, hooks: Callable[[slice], list[Hook]], bar: Progress) -> Any:
    """Cross-entropy in nats of every actual next token, [sequences, context_size - 1], float32.

    `hooks` gives what is spliced in for a slice of the sequences.
    """
    rows = max(LOGITS_TOKENS // ids.shape[1], 1)
    losses = []
    device = next(bridge.parameters()).device
    with torch.inference_mode():
        for first in range(0, len(ids), rows):
            part = slice(first, first + rows)
            batch = ids[part].to(device)
            logits = bridge.run_with_hooks(batch, fwd_hooks=hooks(part))
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="none"
            )
            losses.append(loss.view(len(batch), -1).cpu())
            bar.advance(batch.numel())
    return torch.cat(losses)


def mean_acts(job: Job, hook: str) -> torch.Tensor:
    """[width] mean of a hook's acts over the training tokens, without the dropped positions."""
    total, n = torch.zeros(()), 0
    for _, acts in act_shards(CacheStage(job.cfg, job.store, hook).pull(), ["train"]):
        kept = acts[:, job.cfg.data.drop_positions :].flatten(0, 1).double()
        total, n = total + kept.sum(0), n + len(kept)
    return (total / n).float()


class Splice:
    """Runs the model with something else at the target hook. A context manager; `passes` is for the progress bar."""

    def __init__(self, job: Job, test: SplicedTokens, passes: int):
        self.hook = job.link.target
        self.device = job.device
        self.test = test
        self.sae = pull_sae(job.cfg, job.store, self.hook).to("cpu", torch.float32)
        self.units = first_units(job.sides.target, len(test.ids))
        self.sides = job.sides
        self.bridge = load_bridge(job.cfg, job.model, self.device)
        self.bar = job.observer.progress("ce", passes * test.ids.numel())

    def __enter__(self) -> Splice:
        self.bar.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        self.bar.__exit__(*problem)

    def losses(self, replacement: torch.Tensor | None = None) -> torch.Tensor:
        """Losses with `replacement` [sequences, context_size, d_in] at the counted positions, or untouched."""
        return self._run(put, replacement)

    def losses_of_change(self, change: torch.Tensor) -> torch.Tensor:
        """Losses with `change` added to the model's own activations at the counted positions."""
        return self._run(add, change)

    def losses_of_stream(self, replacement: torch.Tensor) -> torch.Tensor:
        """Losses with `replacement` in the place of the whole stream between attention and MLP; its hook_resid_mid is
        what the MLP reads alone, so attention writes what is missing from the stream in front of it."""
        before, written = (self.hook.replace("hook_resid_mid", name) for name in ("hook_resid_pre", "hook_attn_out"))

        def hooks(part: slice) -> list[Hook]:
            new, where = replacement[part].to(self.device), self.test.counts[part].to(self.device)
            stream: list[torch.Tensor] = []

            def keep(acts: torch.Tensor, **_: object) -> torch.Tensor:
                stream[:] = [acts]
                return acts

            def write(acts: torch.Tensor, **_: object) -> torch.Tensor:
                return torch.where(where[..., None], new.to(acts.dtype) - stream[0], acts)

            return [(before, keep), (written, write)]

        return next_token_losses(self.bridge, self.test.ids, hooks, self.bar)

    def _run(self, how: Callable[..., Any], tensor: torch.Tensor | None) -> torch.Tensor:
        return next_token_losses(self.bridge, self.test.ids, self.hooks(how, tensor), self.bar)

    def hooks(self, how: Callable[..., Any], tensor: torch.Tensor | None) -> Callable[[slice], list[Hook]]:
        """For a slice of the sequences what puts or adds a tensor at the counted positions; no hooks for None."""

        def found(part: slice) -> list[Hook]:
            if tensor is None:
                return []
            return [(self.hook, how(tensor[part].to(self.device), self.test.counts[part].to(self.device)))]

        return found

    def decode(self, rows: Rows) -> torch.Tensor:
        """The target SAE's reconstruction from latents of all positions: [sequences, context_size, d_in].

        An SAE that normalises what it reads decodes in the units of the model's own activations.
        """
        return decoded(self.sae, rows, self.units, self.test.ids.shape)

    def decode_changes(self, ids: torch.Tensor, changes: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """What changes of the latents `ids` [m] add to the reconstruction: [sequences, context_size, d_in].

        Each is of some positions [n], and how much of each latent [n, m] is added there; elsewhere nothing is.
        """
        directions = self.sae.W_dec[ids]
        moved = torch.zeros(self.test.ids.numel(), self.sae.d_in)
        for positions, change in changes:
            moved[positions] = change @ directions
        return (moved if self.units is None else moved * self.units.scale).view(*self.test.ids.shape, self.sae.d_in)

    def true_latents(self) -> Rows:
        """The target latents of all positions, as the SAE gives them."""
        return first_latents(self.sides.target, len(self.test.ids))
