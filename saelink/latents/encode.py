"""Activations to sparse latents: the stage `encode`, one artifact per hook and SAE."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from saelink.activations.cache import Look, Shard, cache, cache_plan, norm_facts, run_model, shards_of
from saelink.activations.tokens import pull_tokens
from saelink.config.schema import Config
from saelink.kernels import cuda
from saelink.latents.rows import Rows, pack, sparse_linear, unpack
from saelink.progress import Progress
from saelink.runtime import device_of, torch_dtype
from saelink.saes.check import check_sae
from saelink.saes.choice import sae_choice
from saelink.saes.load import pull_sae
from saelink.saes.sae import SAE, Units
from saelink.store.artifact import Artifact
from saelink.store.draft import Claim, Draft
from saelink.store.files import gigabytes
from saelink.store.recipe import Plan
from saelink.store.store import Store

VERSION = 2

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
    of each row's acts; for an SAE that normalises its input also `mean` and `scale` (see autoencoder.Units). Facts:
    sums and counts of active values by position on the training split (the latent scale), norms, and the SAE's quality
    on the test split: fvu, fvu_typical (without massive rows), l0, dead latents.
    """
    return encode_all(cfg, store, [hook_name])[hook_name]


def encode_all(cfg: Config, store: Store, hook_names: Iterable[str]) -> dict[str, Artifact]:
    """Pull the latents of several hooks: one forward pass for all whose activations are missing.

    With cfg.stream there are no activations in between; the latents are the same.
    """
    plans = {hook: encode_plan(cfg, store, hook) for hook in dict.fromkeys(hook_names)}
    missing = [hook for hook, plan in plans.items() if store.up_to_date(plan) is None]
    if missing:
        checked: set[str] = set()

        def look(hook: str, acts: torch.Tensor) -> None:
            if hook in checked:
                return
            checked.add(hook)
            if sae_choice(cfg, store, hook).exists:
                check_sae(cfg, hook, pull_sae(cfg, store, hook), acts, TYPICAL_NORM_RATIO)

        streamed = cfg.stream and not all(_cached(cfg, store, hook) for hook in missing)
        if streamed:
            _encode(cfg, store, plans, missing, look, _Streamed(cfg, store, missing))
        else:
            acts = cache(cfg, store, missing, look)
            for hook in missing:
                _encode(cfg, store, plans, [hook], look, _Cached({hook: acts[hook]}))
    found = {hook: store.find(plan) for hook, plan in plans.items()}
    return {hook: artifact for hook, artifact in found.items() if artifact is not None}


def _cached(cfg: Config, store: Store, hook: str) -> bool:
    return store.find(cache_plan(cfg, store, hook)) is not None


class _Cached:
    """Activations from the disk."""

    def __init__(self, artifacts: dict[str, Artifact]):
        self._artifacts = artifacts
        facts = next(iter(artifacts.values())).facts
        self.sequences, self.context_size = facts["sequences"], facts["context_size"]

    def shards(self, shards: Iterable[Shard], bar: Progress) -> Iterator[tuple[Shard, dict[str, torch.Tensor]]]:
        for shard in shards:
            yield shard, {hook: a.tensors(shard.name)["acts"] for hook, a in self._artifacts.items()}
            bar.advance((shard.last - shard.first) * self.context_size)


class _Streamed:
    """Activations from the model, kept no longer than they are looked at."""

    def __init__(self, cfg: Config, store: Store, hooks: list[str]):
        self._cfg, self._store, self._hooks = cfg, store, hooks
        self._tokens = pull_tokens(cfg, store)
        self.sequences, self.context_size = self._tokens.facts["sequences"], self._tokens.facts["context_size"]

    def shards(self, shards: Iterable[Shard], bar: Progress) -> Iterator[tuple[Shard, dict[str, torch.Tensor]]]:
        yield from run_model(self._cfg, self._store, self._tokens, self._hooks, shards, bar)


def _encode(
    cfg: Config, store: Store, plans: dict[str, Plan], hooks: list[str], look: Look, acts: _Cached | _Streamed
) -> None:
    device = device_of(cfg)
    saes = {hook: pull_sae(cfg, store, hook) for hook in hooks}
    chosen = [plans[hook] for hook in hooks]
    with store.drafts(chosen, resumable=True, shared=cfg.runtime.worker is not None) as drafts:
        if drafts:
            by_hook = {draft.plan.recipe["hook_name"]: draft for draft in drafts}
            _write(cfg, store, by_hook, saes, look, acts)
            made: dict[str, dict[str, Any]] = {}

            def facts(hook: str) -> dict[str, Any]:
                # All at once, for a streamed model's sake; beside other workers, who may finish one, one by one.
                if hook not in made:
                    these = {hook: by_hook[hook]} if by_hook[hook].shared else by_hook
                    made.update(_facts(cfg, acts, saes, these, device))
                return made[hook]

            for hook, draft in by_hook.items():
                store.finish(draft, partial(facts, hook), device)


def _write(
    cfg: Config, store: Store, by_hook: dict[str, Draft], saes: dict[str, SAE], look: Look, acts: _Cached | _Streamed
) -> None:
    """Every shard of the drafts that is missing."""
    device, context = device_of(cfg), acts.context_size
    total = sum(acts.sequences.values()) * context
    drafts = list(by_hook.values())
    shards = {shard.name: shard for shard in shards_of(acts.sequences, context)}
    size = 0
    for hook in by_hook:
        sae = saes[hook]
        mine = total * (sae.k or 64) * (4 if sae.d_sae <= 2**16 else 6)  # how many are active is known for TopK only
        what = f"encode: {hook} of {total:,} tokens with {sae.d_sae:,} latents"
        store.say(f"{what}, about {gigabytes(mine)} to write")
        size += mine
        store.need_space(what, size)
    unfinished = [shard for shard in shards.values() if any(shard.name not in draft for draft in drafts)]
    done = total - sum((shard.last - shard.first) * context for shard in unfinished)
    ready = {hook: saes[hook].to(device, torch_dtype(cfg.sae.dtype)) for hook in by_hook}
    step = cfg.runtime.forward_tokens
    rooms = {hook: torch.empty(step, sae.d_sae, device=device, dtype=sae.W_enc.dtype) for hook, sae in ready.items()}
    claims: dict[str, Claim] = {}

    def todo() -> Iterator[Shard]:
        for name, claim in store.claims(drafts, list(shards)):
            claims[name] = claim
            yield shards[name]

    def save(name: str, tensors: dict[str, dict[str, torch.Tensor]]) -> None:
        for hook, mine in tensors.items():
            if name not in by_hook[hook] and not by_hook[hook].gone:
                by_hook[hook].save_tensors(name, mine)
        claims.pop(name).release()

    saving: Future[None] | None = None
    with Progress("encode", total, done=done) as bar, ThreadPoolExecutor(1) as writer:
        for shard, found in acts.shards(todo(), bar):
            tensors = {}
            for hook, sae in ready.items():
                flat = found[hook].reshape(-1, found[hook].shape[-1])
                look(hook, flat)
                tensors[hook] = _encode_shard(sae, flat, rooms[hook], step, device)
            if saving is not None:
                saving.result()
            saving = writer.submit(save, shard.name, tensors)
        if saving is not None:
            saving.result()


def _encode_shard(sae: SAE, flat: torch.Tensor, room: torch.Tensor, step: int, device: str) -> dict[str, torch.Tensor]:
    """The tensors of one shard, from its acts [n, d_in]."""
    parts, norms, units = [], [], []
    with torch.inference_mode():
        for batch in cuda.batches(flat, step, device):
            batch = batch.float()
            parts.append(encode_rows(sae, batch, room).to("cpu"))
            norms.append(batch.norm(dim=1).cpu())
            of = sae.units(batch)
            if of is not None:
                units.append(torch.cat(of, dim=1).float().cpu())
    tensors = {**pack(Rows.stack(parts)), "norm": torch.cat(norms)}
    if units:
        both = torch.cat(units)
        tensors |= {"mean": both[:, 0].contiguous(), "scale": both[:, 1].contiguous()}
    return tensors


def _facts(
    cfg: Config, acts: _Cached | _Streamed, saes: dict[str, SAE], drafts: dict[str, Draft], device: str
) -> dict[str, dict[str, Any]]:
    facts: dict[str, dict[str, Any]] = {}
    for hook, draft in drafts.items():
        shards = shards_of(acts.sequences, acts.context_size, ["train"])
        norms = torch.cat([draft.tensors(shard.name)["norm"] for shard in shards]).view(-1, acts.context_size)
        facts[hook] = {
            "hook_name": hook,
            "context_size": acts.context_size,
            "sequences": acts.sequences,
            "d_sae": saes[hook].d_sae,
            "width": saes[hook].d_in,
            **norm_facts(norms),
        }
        facts[hook] |= _training_counts(facts[hook], draft)
    limits = {hook: TYPICAL_NORM_RATIO * facts[hook]["median_norm"] for hook in drafts}
    ready = {hook: saes[hook].to(device, torch_dtype(cfg.sae.dtype)).to(device, torch.float32) for hook in drafts}
    found = _quality(acts, ready, drafts, limits, device)
    return {hook: facts[hook] | found[hook] for hook in drafts}


def encode_rows(sae: SAE, batch: torch.Tensor, room: torch.Tensor | None = None) -> Rows:
    """The latents of acts [n, d_in]; `room` as in SAE.encode_sparse."""
    row, latent, value = sae.encode_sparse(batch, room)
    offsets = torch.zeros(len(batch) + 1, dtype=torch.int64, device=batch.device)
    torch.cumsum(torch.bincount(row, minlength=len(batch)), 0, out=offsets[1:])
    return Rows(offsets, latent, value.float(), sae.d_sae)


def _training_counts(facts: dict[str, Any], draft: Draft) -> dict[str, Any]:
    """Sum and number of active values by position on the training split, from what was written."""
    context, d_sae = facts["context_size"], facts["d_sae"]
    sums = torch.zeros(context, dtype=torch.float64)
    counts = torch.zeros(context, dtype=torch.float64)
    fired = torch.zeros(d_sae, dtype=torch.int64)
    for shard in shards_of(facts["sequences"], context, ["train"]):
        rows = unpack(draft.tensors(shard.name), d_sae)
        position = rows.row_of % context
        sums += torch.bincount(position, rows.values.double(), minlength=context)
        counts += torch.bincount(position, minlength=context)
        fired += torch.bincount(rows.indices, minlength=d_sae)
    return {
        "active_sum": sums.tolist(),
        "active_count": counts.tolist(),
        "dead": int((fired == 0).sum()),
    }


class _QualitySums:
    """What an SAE's FVU is made of: one row for all tokens, one for typical ones."""

    def __init__(self, d_in: int):
        self.sums = torch.zeros(2, 3, dtype=torch.float64)
        """Tokens, squared errors, squared norms."""
        self.total = torch.zeros(2, d_in, dtype=torch.float64)
        """The sum of x."""
        self.active = 0

    def figures(self) -> dict[str, float]:
        n = self.sums[:, 0]
        fvu, fvu_typical = (self.sums[:, 1] / (self.sums[:, 2] - self.total.square().sum(1) / n)).tolist()
        typical = (n[1] / n[0]).item()
        return {"fvu": fvu, "fvu_typical": fvu_typical, "typical": typical, "l0": self.active / n[0].item()}


def _quality(
    acts: _Cached | _Streamed, saes: dict[str, SAE], drafts: dict[str, Draft], limits: dict[str, float], device: str
) -> dict[str, dict[str, float]]:
    """The SAEs on test documents, from QUALITY_FROM_POSITION on: FVU, FVU of rows within `limits`, L0."""
    context = acts.context_size
    shards = shards_of(acts.sequences, context, ["test"])
    sums = {hook: _QualitySums(sae.d_in) for hook, sae in saes.items()}
    with Progress("quality", acts.sequences["test"] * context) as bar:
        for shard, found in acts.shards(shards, bar):
            for hook, sae in saes.items():
                x = found[hook].reshape(-1, sae.d_in).float()
                tensors = drafts[hook].tensors(shard.name)
                rows, units = unpack(tensors, sae.d_sae), stored_units(tensors)
                kept = (torch.arange(len(x)) % context >= QUALITY_FROM_POSITION).nonzero().squeeze(1)
                x, rows = x[kept], rows.select(kept)
                units = None if units is None else units.select(kept).to(device)
                reconstruction = sae.output(sparse_linear(rows.to(device), sae.W_dec), units).cpu()
                errors, energy = (x - reconstruction).double().square().sum(1), x.double().square().sum(1)
                mine = sums[hook]
                for which, chosen in enumerate((torch.ones(len(x), dtype=torch.bool), x.norm(dim=1) <= limits[hook])):
                    mine.sums[which] += torch.stack([chosen.sum(), errors[chosen].sum(), energy[chosen].sum()])
                    mine.total[which] += x[chosen].double().sum(0)
                mine.active += len(rows.values)
    return {hook: each.figures() for hook, each in sums.items()}


def stored_units(tensors: dict[str, torch.Tensor]) -> Units | None:
    """The units of a shard's tokens, if its SAE normalises what it reads."""
    return Units(tensors["mean"][:, None], tensors["scale"][:, None]) if "scale" in tensors else None
