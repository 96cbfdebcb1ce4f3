"""Activations to sparse latents: the stage `encode`, one artifact per hook and SAE."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from saelink.cache import act_shards, cache, cache_plan, shards_of
from saelink.config import Config
from saelink.kernels import cuda
from saelink.latents import Rows, pack, sparse_linear, unpack
from saelink.model import device_of, torch_dtype
from saelink.progress import Progress
from saelink.sae import SAE, pull_sae, sae_choice
from saelink.store import Artifact, Draft, Plan, Store, gigabytes

VERSION = 1

TYPICAL_NORM_RATIO = 3.0
"""Rows with more than this many median norms carry massive activations; figures are given with and without them."""

QUALITY_FROM_POSITION = 1
"""An SAE's own figures leave position 0 out, with its massive activations, whatever data.drop_positions does."""


def encode_plan(cfg: Config, store: Store, hook_name: str) -> Plan:
    """Plan of one hook's latents; `hook_name` is a full name."""
    choice = sae_choice(cfg, store, hook_name)
    recipe = {"hook_name": hook_name, "sae_dtype": cfg.sae.dtype.name}
    inputs = {"acts": cache_plan(cfg, store, hook_name).key, "sae": choice.key}
    return Plan("encode", VERSION, recipe, inputs, f"{cfg.model.label} {hook_name}, SAE {choice.about}")


def encode(cfg: Config, store: Store, hook_name: str) -> Artifact:
    """Pull the latents of one hook, all positions of all splits.

    Files `<split>-<number>.safetensors`: `indices`, `values`, `lengths` (see latents.pack) and `norm`, the l2 norm
    of each row's acts. Facts: sums and counts of active values by position on the training split (the latent
    scale), and the SAE's quality on the test split: fvu, fvu_typical (without massive rows), l0, dead latents.
    """
    plan = encode_plan(cfg, store, hook_name)
    found = store.up_to_date(plan)
    if found is not None:
        return found
    sae = pull_sae(cfg, store, hook_name)
    acts = cache(cfg, store, [hook_name])[hook_name]
    device = device_of(cfg)
    with store.drafts([plan], resumable=True) as drafts:
        for draft in drafts:
            facts = _encode(cfg, store, acts, sae.to(device, torch_dtype(cfg.sae.dtype)), draft, device)
            return store.commit(draft, facts, device)
    artifact = store.find(plan)
    assert artifact is not None
    return artifact


def _encode(cfg: Config, store: Store, acts: Artifact, sae: SAE, draft: Draft, device: str) -> dict[str, Any]:
    context = acts.facts["context_size"]
    total = sum(acts.facts["sequences"].values()) * context
    active = sae.k or 64  # how many a token will have is only known for TopK
    size = total * active * (4 if sae.d_sae <= 2**16 else 6)
    what = f"encode: {draft.plan.recipe['hook_name']} of {total:,} tokens with {sae.d_sae:,} latents"
    store.say(f"{what}, about {gigabytes(size)} to write")
    store.need_space(what, size)
    step = cfg.runtime.forward_tokens
    shards = shards_of(acts.facts["sequences"], context)
    done = sum((shard.last - shard.first) * context for shard in shards if shard.name in draft)
    room = torch.empty(step, sae.d_sae, device=device, dtype=sae.W_enc.dtype)
    saving: Future[None] | None = None
    with Progress("encode", total, done=done) as bar, ThreadPoolExecutor(1) as writer, torch.inference_mode():
        for shard, shard_acts in act_shards(acts, skip=draft):
            flat = shard_acts.reshape(-1, sae.d_in)
            parts, norms = [], []
            for acts_batch in cuda.batches(flat, step, device):
                batch = acts_batch.float()
                parts.append(_encode_rows(sae, batch, room).to("cpu"))
                norms.append(batch.norm(dim=1).cpu())
                bar.advance(len(batch))
            tensors = {**pack(Rows.stack(parts)), "norm": torch.cat(norms)}
            if saving is not None:
                saving.result()
            saving = writer.submit(draft.save_tensors, shard.name, tensors)
        if saving is not None:
            saving.result()
        facts = {
            "hook_name": draft.plan.recipe["hook_name"],
            "context_size": context,
            "sequences": acts.facts["sequences"],
            "d_sae": sae.d_sae,
            "median_norm": acts.facts["median_norm"],
            "mean_norm": acts.facts["mean_norm"],
        }
        return facts | _training_counts(acts, sae, draft) | _quality(acts, sae, draft, device)


def _encode_rows(sae: SAE, batch: torch.Tensor, room: torch.Tensor) -> Rows:
    row, latent, value = sae.encode_sparse(batch, room)
    offsets = torch.zeros(len(batch) + 1, dtype=torch.int64, device=batch.device)
    torch.cumsum(torch.bincount(row, minlength=len(batch)), 0, out=offsets[1:])
    return Rows(offsets, latent, value.float(), sae.d_sae)


def _training_counts(acts: Artifact, sae: SAE, draft: Draft) -> dict[str, Any]:
    """Sum and number of active values by position on the training split, from what was written."""
    context = acts.facts["context_size"]
    sums = torch.zeros(context, dtype=torch.float64)
    counts = torch.zeros(context, dtype=torch.float64)
    fired = torch.zeros(sae.d_sae, dtype=torch.int64)
    for shard in shards_of(acts.facts["sequences"], context, ["train"]):
        rows = unpack(draft.tensors(shard.name), sae.d_sae)
        position = rows.row_of % context
        sums += torch.bincount(position, rows.values.double(), minlength=context)
        counts += torch.bincount(position, minlength=context)
        fired += torch.bincount(rows.indices, minlength=sae.d_sae)
    return {
        "active_sum": sums.tolist(),
        "active_count": counts.tolist(),
        "dead": int((fired == 0).sum()),
    }


def _quality(acts: Artifact, sae: SAE, draft: Draft, device: str) -> dict[str, Any]:
    """The SAE on test documents, from QUALITY_FROM_POSITION on: FVU, FVU of typical rows, L0."""
    drop, context = QUALITY_FROM_POSITION, acts.facts["context_size"]
    limit = TYPICAL_NORM_RATIO * acts.facts["median_norm"]
    n, active = 0, 0
    # One row of sums for all rows, one for typical ones: tokens, squared errors, squared norms; and the sum of x.
    sums = torch.zeros(2, 3, dtype=torch.float64)
    total = torch.zeros(2, sae.d_in, dtype=torch.float64)
    for shard, shard_acts in act_shards(acts, ["test"]):
        x = shard_acts.reshape(-1, sae.d_in).float()
        rows = unpack(draft.tensors(shard.name), sae.d_sae)
        kept = (torch.arange(len(x)) % context >= drop).nonzero().squeeze(1)
        x, rows = x[kept], rows.select(kept)
        reconstruction = sparse_linear(rows.to(device), sae.W_dec.float()) + sae.b_dec.float()
        errors = (x - reconstruction.cpu()).double().square().sum(1)
        energy = x.double().square().sum(1)
        for which, chosen in enumerate((torch.ones(len(x), dtype=torch.bool), x.norm(dim=1) <= limit)):
            sums[which] += torch.stack([chosen.sum(), errors[chosen].sum(), energy[chosen].sum()])
            total[which] += x[chosen].double().sum(0)
        n += len(x)
        active += len(rows.values)
    variance = sums[:, 2] - total.square().sum(1) / sums[:, 0]
    fvu, fvu_typical = (sums[:, 1] / variance).tolist()
    return {"fvu": fvu, "fvu_typical": fvu_typical, "typical": (sums[1, 0] / n).item(), "l0": active / n}
