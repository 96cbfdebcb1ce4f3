"""What lies between a link's SAEs, opened so that single latents can be taken out of it."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from saelink import memory
from saelink.config.schema import Config, DType
from saelink.job import Job
from saelink.latents.link import load_split
from saelink.latents.rows import Rows
from saelink.model.block import Attended, Chain, load_attended, load_module
from saelink.model.forward import load_forward
from saelink.saes.load import pull_sae
from saelink.saes.sae import SAE

FOLDS = 10
"""Groups of documents whose effects are kept apart, for intervals and for the two halves."""

STEP = 4096
"""Ablations of one pass."""

ENTRIES = 2**24
"""Pre-activations that are in memory at a time."""


def most_tokens(cfg: Config, split: str) -> int:
    """How many of a split's tokens are looked at."""
    return cfg.verify.tokens if split == "test" else cfg.verify.fit_tokens


def tokens_looked_at(job: Job, split: str) -> int:
    """How many of a split's tokens there are to look at, those that don't count included."""
    facts = job.sides.target.facts
    return max(min(most_tokens(job.cfg, split), facts["sequences"][split] * facts["context_size"]), 1)


class Opened(NamedTuple):
    """What opening a block, and taking latents out of it, takes memory for; see memory.block."""

    size: memory.ModelSize
    sources: list[memory.Side]
    target: memory.Side
    n_tokens: int
    step: int
    context: int


def opened_sizes(job: Job, split: str = "test") -> Opened:
    """The sizes of a job's block."""
    sources, target = job.sides.sizes
    context = job.sides.target.facts["context_size"]
    return Opened(job.size, sources, target, tokens_looked_at(job, split), job.cfg.runtime.forward_tokens, context)


class Block(NamedTuple):
    """What lies between a link's SAEs, and activations it starts from."""

    computation: Chain | Attended
    source_saes: list[SAE]
    target_sae: SAE
    x: list[torch.Tensor]
    """For each source hook [n, d_in], the model's own activations on the tokens that count."""
    fold: torch.Tensor
    """[n] the group of documents each token belongs to."""

    @property
    def side(self) -> torch.Tensor:
        """[d_source] the source hook of each source latent, by its place."""
        sizes = torch.tensor([sae.d_sae for sae in self.source_saes])
        return torch.repeat_interleave(torch.arange(len(sizes)), sizes)

    def active(self) -> Rows:
        """[n, d_source] the source latents, those of several hooks side by side."""
        return Rows.beside([encoded_with_floor(sae, x)[0] for sae, x in zip(self.source_saes, self.x, strict=True)])

    def taken(
        self, token: torch.Tensor, source: torch.Tensor, value: torch.Tensor, directions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[m, d_in] what a source latent [m] of size value [m] writes at each token [m], or in other directions."""
        device = self.x[0].device
        if directions is None:
            directions = self.directions()
        out = directions[source.to(device)] * value[:, None].to(device)
        units = [sae.units(x[token.to(device)]) for sae, x in zip(self.source_saes, self.x, strict=True)]
        if any(unit is not None for unit in units):
            scale = torch.stack([out.new_ones(len(out), 1) if unit is None else unit.scale for unit in units])
            out = out * scale[self.side[source].to(device), torch.arange(len(out), device=device)]
        return out

    def directions(self) -> torch.Tensor:
        """[d_source, d_in] decoder directions."""
        return torch.cat([sae.W_dec for sae in self.source_saes])

    def without(self, token: torch.Tensor, source: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
        """[m, d_out] at the target hook where `taken` [m, d_in] goes from a source [m]'s hook at each token [m]."""
        return self.computation.without(token, self.side[source], taken)


def open_block(job: Job, split: str) -> Block:
    """A link's computation with the activations of a split's first documents, from the model run anew."""
    info, link, device = job.model, job.link, job.device
    source_saes = [pull_sae(job.cfg, job.store, hook).to(device, torch.float32) for hook in link.sources]
    target_sae = pull_sae(job.cfg, job.store, link.target).to(device, torch.float32)
    text = job.tokens.tensors(f"{split}.safetensors")
    context = text["ids"].shape[1]
    counted = load_split(job.cfg, job.sides, split).row
    n = max(min(most_tokens(job.cfg, split) // context, len(text["ids"])), 1)
    counted = counted[counted < n * context]
    ids = text["ids"][:n].long()
    chained = job.cfg.link.sources in (["mlp_in"], ["hook_resid_mid"]) and job.cfg.link.target == "hook_mlp_out"
    module = load_module(job.cfg, info, link.sources[0], link.target, device).float() if chained else None
    hooks: list[str] = [*link.sources, *([] if chained else [link.target])]
    # Copies are run in float32; what they are compared with has to be, too.
    exact = job.cfg if chained else replace(job.cfg, model=replace(job.cfg.model, dtype=DType.float32))
    forward = load_forward(exact, info, hooks, device)
    with torch.inference_mode():
        rows = max(job.cfg.runtime.forward_tokens // context, 1)
        parts = [forward(ids[i : i + rows].to(device)) for i in range(0, n, rows)]
        place = counted.to(device)
        acts = {hook: torch.cat([part[hook].float().flatten(0, 1) for part in parts])[place] for hook in hooks}
    x = [acts[hook] for hook in link.sources]
    if module is not None:
        computation: Chain | Attended = Chain(module, x[0])
    else:
        computation = load_attended(
            job.cfg, info, link.sources, link.target, ids, counted, x, acts[link.target], device
        )
    document = text["document"].flatten().long()[counted]
    return Block(computation, source_saes, target_sae, x, document.unique(return_inverse=True)[1] % FOLDS)


def rows_at_once(sae: SAE) -> int:
    """Of how many tokens the pre-activations are in memory at a time; by nothing but the SAE's width."""
    return max(min(ENTRIES // sae.d_sae, STEP), 64)


def encoded_with_floor(sae: SAE, x: torch.Tensor) -> tuple[Rows, torch.Tensor]:
    """What the SAE makes of activations x, and what a value must reach to count at each token; on the CPU.

    For a TopK SAE that is the middle between its k-th and its next value, so that rounding moves nothing across it.
    """
    parts, floors = [], []
    step = rows_at_once(sae)
    room = torch.empty(min(step, len(x)), sae.d_sae, device=x.device)
    for first in range(0, len(x), step):
        acts = x[first : first + step]
        if sae.k is not None and sae.k < sae.d_sae:
            rows, floor = _with_next(replace(sae, k=sae.k + 1), acts, room)
        else:
            rows, floor = _encoded(sae, acts, room), torch.zeros(len(acts))
        parts.append(rows)
        floors.append(floor)
    return Rows.stack(parts), torch.cat(floors)


def _encoded(sae: SAE, acts: torch.Tensor, room: torch.Tensor) -> Rows:
    return Rows.from_pairs(*sae.encode_sparse(acts, room), n=len(acts), d=sae.d_sae).to("cpu")


def _with_next(one_more: SAE, acts: torch.Tensor, room: torch.Tensor) -> tuple[Rows, torch.Tensor]:
    """What a TopK SAE makes of activations and the middle between its k-th and its next value, read by one of k + 1."""
    assert one_more.k is not None
    both = _encoded(one_more, acts, room)
    k, row, count = one_more.k - 1, both.row_of, both.offsets.diff()
    place = torch.arange(len(row)) - both.offsets[row]
    values = torch.zeros(len(acts), k + 1)
    values[row, place] = both.values
    last_two = values.sort(dim=1, descending=True).values[:, -2:]
    floor = torch.where(last_two[:, 0] > 0, last_two.mean(1), 0.0)
    least = k - values.flip(1).argmin(1)  # of equal ones the last, as among the k largest
    kept = ~((count[row] > k) & (place == least[row]))
    return Rows.from_pairs(row[kept], both.indices[kept], both.values[kept], n=len(acts), d=both.d), floor


def read_held(pre: torch.Tensor, by_token: torch.Tensor, by_latent: torch.Tensor) -> torch.Tensor:
    """What counts of pre-activations, the thresholds held: at least the token's and above the latent's."""
    enough = (pre >= by_token.to(pre.device)[:, None]) & (pre > by_latent.to(pre.device))
    return torch.where(enough, pre, 0.0)
