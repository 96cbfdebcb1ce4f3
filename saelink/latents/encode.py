"""Activations to sparse latents: the stage `encode`, one artifact per hook and SAE."""

# torch leaves arguments of some of its methods without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypedDict, cast

import torch

from saelink import memory
from saelink.activations.cache import (
    CacheFacts,
    CacheStage,
    Look,
    NormFacts,
    Shard,
    cache_hooks,
    forward_need,
    norm_facts,
    run_model,
    shards_of,
)
from saelink.activations.tokens import TokensStage
from saelink.config.schema import Config
from saelink.config.size import gigabytes
from saelink.engine.tasks import Engine, engine_of
from saelink.latents.rows import sparse_linear, unpack
from saelink.latents.shards import TYPICAL_L0, EncodeWork, SAELook, encode_shard, side_of, step_of
from saelink.progress import Observer, Progress
from saelink.runtime import device_of, torch_dtype
from saelink.saes.check import check_place
from saelink.saes.choice import sae_choice
from saelink.saes.load import load_choice, pull_sae
from saelink.saes.sae import SAE, Units
from saelink.store.artifact import Artifact
from saelink.store.draft import Claim, Draft, Part
from saelink.store.recipe import Plan
from saelink.store.stage import Need, Stage, promised
from saelink.store.store import Store

TYPICAL_NORM_RATIO = 3.0
"""Rows with more than this many median norms carry massive activations; figures are given with and without them."""

QUALITY_FROM_POSITION = 1
"""An SAE's own figures leave position 0 out, with its massive activations, whatever data.drop_positions does."""


class EncodeFacts(TypedDict):
    """What is known of a hook's latents; lists are by position, on the training split."""

    hook_name: str
    context_size: int
    sequences: dict[str, int]
    """By split."""
    d_sae: int
    width: int
    mean_norm: list[float]
    """Mean l2 norm of the acts,"""
    median_norm: float
    """and the median over all of them."""
    active_sum: list[float]
    """Sum and number of active values: the latent scale."""
    active_count: list[float]
    dead: int
    """Latents that never fire on the training split."""
    fvu: float
    """The SAE's own quality on the test split,"""
    fvu_typical: float
    """without rows of massive activations,"""
    typical: float
    """and the share of the others."""
    l0: float


class EncodeStage(Stage[EncodeFacts]):
    """The latents of one hook (by its full name), all positions of all splits.

    Files `<split>-<number>.safetensors`: `indices`, `values`, `lengths` (see rows.pack) and `norm`, the l2 norm
    of each row's acts; for an SAE that normalises its input also `mean` and `scale` (see sae.Units).
    """

    name = "encode"
    version = 2

    def __init__(self, cfg: Config, store: Store, hook_name: str):
        self.cfg, self.store, self.hook_name = cfg, store, hook_name
        self._choice = sae_choice(cfg, store, hook_name)

    @property
    def device(self) -> str:
        return device_of(self.cfg)

    def recipe(self) -> dict[str, Any]:
        return {"hook_name": self.hook_name, "sae_dtype": self.cfg.sae.dtype.name}

    def inputs(self) -> dict[str, str]:
        return {"acts": CacheStage(self.cfg, self.store, self.hook_name).key, "sae": self._choice.key}

    def about(self) -> str:
        return f"{self.cfg.model.label} {self.hook_name}, SAE {self._choice.about}"

    def make(self, draft: Draft) -> EncodeFacts:
        hook, look = self.hook_name, SAELook(self.cfg, self.store, TYPICAL_NORM_RATIO)
        acts = _Cached(cache_hooks(self.cfg, self.store, [hook], look))
        saes = {hook: pull_sae(self.cfg, self.store, hook)}
        _write(self.cfg, self.store, {hook: draft}, saes, look, acts)
        return _facts(self.cfg, self.store.observer, acts, saes, {hook: draft})[hook]

    def pull(self) -> Artifact[EncodeFacts]:
        """The latents, shard by shard where an earlier try or another worker left off."""
        return encode_hooks(self.cfg, self.store, [self.hook_name])[self.hook_name]


def encode_hooks(cfg: Config, store: Store, hook_names: Iterable[str]) -> dict[str, Artifact[EncodeFacts]]:
    """The latents of several hooks: one forward pass for all whose activations are missing, see EncodeStage.

    With cfg.stream there are no activations in between; the latents are the same.
    """
    stages = {hook: EncodeStage(cfg, store, hook) for hook in dict.fromkeys(hook_names)}
    missing = [hook for hook, stage in stages.items() if store.up_to_date(stage.plan) is None]
    for hook in stages if cfg.sae.strict else missing:
        choice = sae_choice(cfg, store, hook)
        if choice.exists:
            check_place(cfg, store, hook, load_choice(cfg, choice), choice.where)
    if missing:
        look = SAELook(cfg, store, TYPICAL_NORM_RATIO)
        plans = {hook: stages[hook].plan for hook in missing}
        cached = all(CacheStage(cfg, store, hook).find() is not None for hook in missing)
        if cfg.stream and not cached:
            _encode(cfg, store, plans, look, _Streamed(cfg, store, missing))
        else:
            acts = cache_hooks(cfg, store, missing, look)
            for hook in missing:
                _encode(cfg, store, {hook: plans[hook]}, look, _Cached({hook: acts[hook]}))
    found = {hook: stage.find() for hook, stage in stages.items()}
    return {hook: artifact for hook, artifact in found.items() if artifact is not None}


class _Cached:
    """Activations from the disk."""

    def __init__(self, artifacts: dict[str, Artifact[CacheFacts]]):
        self._artifacts = artifacts
        facts = next(iter(artifacts.values())).facts
        self.sequences, self.context_size = facts["sequences"], facts["context_size"]

    def bytes(self) -> float:
        """Memory that giving them takes."""
        return 0.0

    def shards(self, shards: Iterable[Shard], bar: Progress) -> Iterator[tuple[Shard, dict[str, torch.Tensor]]]:
        for shard in shards:
            yield shard, {hook: a.tensors(shard.name)["acts"] for hook, a in self._artifacts.items()}
            bar.advance((shard.last - shard.first) * self.context_size)


class _Streamed:
    """Activations from the model, kept no longer than they are looked at."""

    def __init__(self, cfg: Config, store: Store, hooks: list[str]):
        self._cfg, self._store, self._hooks = cfg, store, hooks
        self._tokens = TokensStage(cfg, store).pull()
        self.sequences, self.context_size = self._tokens.facts["sequences"], self._tokens.facts["context_size"]

    def bytes(self) -> float:
        """Memory that giving them takes."""
        return forward_need(self._cfg, self._store, self._tokens, self._hooks).bytes

    def shards(self, shards: Iterable[Shard], bar: Progress) -> Iterator[tuple[Shard, dict[str, torch.Tensor]]]:
        yield from run_model(self._cfg, self._store, self._tokens, self._hooks, shards, bar)


def _encode(cfg: Config, store: Store, plans: dict[str, Plan], look: Look, acts: _Cached | _Streamed) -> None:
    """Make the artifacts of these plans, by hook."""
    device = device_of(cfg)
    saes = {hook: pull_sae(cfg, store, hook) for hook in plans}
    promised(store, f"encode: {', '.join(plans)}", encode_need(cfg, saes, acts))
    with store.drafts(list(plans.values()), resumable=True, shared=cfg.runtime.shared) as drafts:
        if drafts:
            by_hook = {draft.plan.recipe["hook_name"]: draft for draft in drafts}
            _write(cfg, store, by_hook, saes, look, acts)
            made: dict[str, EncodeFacts] = {}

            def facts(hook: str) -> EncodeFacts:
                # All at once, for a streamed model's sake; beside other workers, who may finish one, one by one.
                if hook not in made:
                    these = {hook: by_hook[hook]} if by_hook[hook].shared else by_hook
                    made.update(_facts(cfg, store.observer, acts, saes, these))
                return made[hook]

            for hook, draft in by_hook.items():
                store.finish(draft, partial(facts, hook), device)


def encode_need(cfg: Config, saes: dict[str, SAE], acts: _Cached | _Streamed) -> Need:
    """What encoding through these SAEs takes; where the activations are streamed, the model's passes beside it."""
    step = step_of(cfg, saes)
    training = acts.sequences["train"] * acts.context_size
    size = sum(memory.encode(side_of(sae), step, training) for sae in saes.values())
    return Need(size + acts.bytes(), "use SAEs with fewer latents, or sae.dtype=bfloat16")


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
        mine = (
            total * (sae.k or TYPICAL_L0) * (4 if sae.d_sae <= 2**16 else 6)
        )  # how many are active is known for TopK only
        what = f"encode: {hook} of {total:,} tokens with {sae.d_sae:,} latents"
        store.observer.say(f"{what}, about {gigabytes(mine)} to write")
        size += mine
        store.need_space(what, size)
    unfinished = [shard for shard in shards.values() if any(shard.name not in draft for draft in drafts)]
    done = total - sum((shard.last - shard.first) * context for shard in unfinished)
    ready = {hook: saes[hook].to(device, torch_dtype(cfg.sae.dtype)) for hook in by_hook}
    step = step_of(cfg, saes)
    rooms = {hook: torch.empty(step, sae.d_sae, device=device, dtype=sae.W_enc.dtype) for hook, sae in ready.items()}
    engine = engine_of(cfg, store.observer)
    if engine.several_on(device):
        with store.observer.progress("encode", total, done=done) as bar:
            _write_by_workers(engine, cfg, by_hook, unfinished, bar, acts)
        return
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
    with store.observer.progress("encode", total, done=done) as bar, ThreadPoolExecutor(1) as writer:
        for shard, found in acts.shards(todo(), bar):
            tensors: dict[str, dict[str, torch.Tensor]] = {}
            for hook, sae in ready.items():
                flat = found[hook].reshape(-1, found[hook].shape[-1])
                look(hook, flat)
                tensors[hook] = encode_shard(sae, flat, rooms[hook], step, device)
            if saving is not None:
                saving.result()
            saving = writer.submit(save, shard.name, tensors)
        if saving is not None:
            saving.result()


def _write_by_workers(
    engine: Engine,
    cfg: Config,
    by_hook: dict[str, Draft],
    shards: list[Shard],
    bar: Progress,
    acts: _Cached | _Streamed,
) -> None:
    """Fill the drafts with these shards."""

    def done(task: tuple[Shard, bool], parts: dict[str, Part]) -> None:
        for hook, part in parts.items():
            by_hook[hook].take(part)
        bar.advance((task[0].last - task[0].first) * acts.context_size)

    drafts = {hook: draft.parts for hook, draft in by_hook.items()}
    work = EncodeWork(engine.of_worker(cfg), drafts, isinstance(acts, _Streamed), TYPICAL_NORM_RATIO)
    engine.run("encode", work, [(shard, shard == shards[0]) for shard in shards], done)


def _facts(
    cfg: Config, observer: Observer, acts: _Cached | _Streamed, saes: dict[str, SAE], drafts: dict[str, Draft]
) -> dict[str, EncodeFacts]:
    """By hook what its artifact's manifest says."""
    device = device_of(cfg)
    norms: dict[str, NormFacts] = {}
    for hook, draft in drafts.items():
        shards = shards_of(acts.sequences, acts.context_size, ["train"])
        rows = torch.cat([draft.tensors(shard.name)["norm"] for shard in shards]).view(-1, acts.context_size)
        norms[hook] = norm_facts(rows)
    limits = {hook: TYPICAL_NORM_RATIO * norms[hook]["median_norm"] for hook in drafts}
    ready = {hook: saes[hook].to(device, torch_dtype(cfg.sae.dtype)).to(device, torch.float32) for hook in drafts}
    quality = _quality(observer, acts, ready, drafts, limits, device)
    return {
        hook: {
            "hook_name": hook,
            "context_size": acts.context_size,
            "sequences": acts.sequences,
            "d_sae": saes[hook].d_sae,
            "width": saes[hook].d_in,
            **norms[hook],
            **_training_counts(acts, saes[hook].d_sae, draft),
            **quality[hook],
        }
        for hook, draft in drafts.items()
    }


class _Counts(TypedDict):
    active_sum: list[float]
    active_count: list[float]
    dead: int


def _training_counts(acts: _Cached | _Streamed, d_sae: int, draft: Draft) -> _Counts:
    """Sum and number of active values by position on the training split, from what was written."""
    context = acts.context_size
    sums = torch.zeros(context, dtype=torch.float64)
    counts = torch.zeros(context, dtype=torch.float64)
    fired = torch.zeros(d_sae, dtype=torch.int64)
    for shard in shards_of(acts.sequences, context, ["train"]):
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


class _Quality(TypedDict):
    fvu: float
    fvu_typical: float
    typical: float
    l0: float


class _QualitySums:
    """What an SAE's FVU is made of: one row for all tokens, one for typical ones."""

    def __init__(self, d_in: int):
        self.sums = torch.zeros(2, 3, dtype=torch.float64)
        """Tokens, squared errors, squared norms."""
        self.total = torch.zeros(2, d_in, dtype=torch.float64)
        """The sum of x."""
        self.active = 0

    def figures(self) -> _Quality:
        n = self.sums[:, 0]
        both = self.sums[:, 1] / (self.sums[:, 2] - self.total.square().sum(1) / n)
        fvu, fvu_typical = cast("list[float]", both.tolist())
        typical = (n[1] / n[0]).item()
        return {"fvu": fvu, "fvu_typical": fvu_typical, "typical": typical, "l0": self.active / n[0].item()}


def _quality(
    observer: Observer,
    acts: _Cached | _Streamed,
    saes: dict[str, SAE],
    drafts: dict[str, Draft],
    limits: dict[str, float],
    device: str,
) -> dict[str, _Quality]:
    """The SAEs on test documents, from QUALITY_FROM_POSITION on: FVU, FVU of rows within `limits`, L0."""
    context = acts.context_size
    shards = shards_of(acts.sequences, context, ["test"])
    sums = {hook: _QualitySums(sae.d_in) for hook, sae in saes.items()}
    with observer.progress("quality", acts.sequences["test"] * context) as bar:
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
                norms = cast("torch.Tensor", x.norm(dim=1))
                for which, chosen in enumerate((torch.ones(len(x), dtype=torch.bool), norms <= limits[hook])):
                    mine.sums[which] += torch.stack([chosen.sum(), errors[chosen].sum(), energy[chosen].sum()])
                    mine.total[which] += x[chosen].double().sum(0)
                mine.active += len(rows.values)
    return {hook: each.figures() for hook, each in sums.items()}


def stored_units(tensors: dict[str, torch.Tensor]) -> Units | None:
    """The units of a shard's tokens, if its SAE normalises what it reads."""
    return Units(tensors["mean"][:, None], tensors["scale"][:, None]) if "scale" in tensors else None
