"""The model's activations at the hooks that are wanted: the stage `cache`, one artifact per hook.

One forward pass fills every missing hook of every wanted layer and stops after the last of them. All positions
are kept; which of them count is decided where they are used.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from saelink.config import Config
from saelink.data import SPLITS, tokens, tokens_plan
from saelink.model import device_of, load_forward, model_info
from saelink.progress import Progress
from saelink.store import Artifact, Draft, Plan, SaelinkError, Store, gigabytes

if TYPE_CHECKING:
    import torch

VERSION = 2

SHARD_TOKENS = 32_768


class Shard(NamedTuple):
    """Sequences `first` to `last` (excluded) of a split, and the name of their file."""

    split: str
    first: int
    last: int
    name: str


def shards_of(sequences: dict[str, int], context_size: int, splits: Iterable[str] = SPLITS) -> list[Shard]:
    """How the sequences of each split are cut into files; the latents are cut alike."""
    step = max(SHARD_TOKENS // context_size, 1)
    return [
        Shard(split, first, min(first + step, sequences[split]), f"{split}-{number:05d}.safetensors")
        for split in splits
        for number, first in enumerate(range(0, sequences[split], step))
    ]


def cache_plan(cfg: Config, store: Store, hook_name: str) -> Plan:
    """Plan of one hook's activations; `hook_name` is a full name such as blocks.3.hook_mlp_out."""
    info = model_info(cfg, store)
    recipe = {"hook_name": hook_name, "model_dtype": cfg.model.dtype.name, "dtype": "bfloat16"}
    inputs = {"model": info.artifact.key, "tokens": tokens_plan(cfg, info).key}
    return Plan("cache", VERSION, recipe, inputs, f"{cfg.model.label} {hook_name}")


def cache(cfg: Config, store: Store, hook_names: Iterable[str]) -> dict[str, Artifact]:
    """Pull the activations at `hook_names`.

    Files `<split>-<number>.safetensors` with `acts` [sequences, context_size, d_model] in bfloat16 (its rounding
    adds about 1e-6 to an FVU). Facts: `mean_norm`, for each position the mean l2 norm on the training split.
    """
    plans = {hook: cache_plan(cfg, store, hook) for hook in dict.fromkeys(hook_names)}
    missing = [plan for plan in plans.values() if store.up_to_date(plan) is None]
    if missing:
        token_ids = tokens(cfg, store)
        with store.drafts(missing, resumable=True) as drafts:
            if drafts:
                _forward(cfg, store, token_ids, drafts)
    found = {hook: store.find(plan) for hook, plan in plans.items()}
    return {hook: artifact for hook, artifact in found.items() if artifact is not None}


def _forward(cfg: Config, store: Store, token_ids: Artifact, drafts: list[Draft]) -> None:
    """Fill all drafts shard by shard; shards that an earlier try finished are kept."""
    import torch

    info = model_info(cfg, store)
    hooks = [draft.plan.recipe["hook_name"] for draft in drafts]
    context = token_ids.facts["context_size"]
    shards = shards_of(token_ids.facts["sequences"], context)
    wanted = [(shard, draft) for shard in shards for draft in drafts if shard.name not in draft]
    size = sum((shard.last - shard.first) * context * info.d_model * 2 for shard, _ in wanted)
    total = sum(token_ids.facts["tokens"].values())
    what = f"cache: {', '.join(hooks)} of {total:,} tokens"
    store.say(f"{what}, {gigabytes(size)} to write")
    store.need_space(what, size)
    device = device_of(cfg)
    forward = load_forward(cfg, info, hooks, device)
    rows = max(cfg.runtime.forward_tokens // context, 1)
    ids = {split: token_ids.tensors(f"{split}.safetensors")["ids"] for split in SPLITS}
    unfinished = {shard.name for shard, _ in wanted}
    done = sum((shard.last - shard.first) * context for shard in shards if shard.name not in unfinished)
    savings: list[Future[None]] = []
    with Progress("cache", total, done=done) as bar, ThreadPoolExecutor(1) as writer, torch.inference_mode():
        for shard in shards:
            missing = [draft for draft in drafts if shard.name not in draft]
            if not missing:
                continue
            acts = {
                draft.plan.recipe["hook_name"]: torch.empty(
                    shard.last - shard.first, context, info.d_model, dtype=torch.bfloat16, pin_memory=device == "cuda"
                )
                for draft in missing
            }
            for first in range(shard.first, shard.last, rows):
                last = min(first + rows, shard.last)
                batch = ids[shard.split][first:last].long().to(device)
                seen = forward(batch)
                for hook, out in acts.items():
                    if seen[hook].shape != (last - first, context, info.d_model):
                        raise SaelinkError(
                            f"link: {hook} has shape {list(seen[hook].shape)}, not [*, *, {info.d_model}] as was "
                            "expected; only hooks of the residual stream's width can be explained"
                        )
                    # On a GPU the copy runs beside the next batch: to pinned memory, and waited for at the shard's end.
                    part = out[first - shard.first : last - shard.first]
                    part.copy_(seen[hook].to(torch.bfloat16), non_blocking=device == "cuda")
                bar.advance(batch.numel())
            if device == "cuda":
                torch.cuda.synchronize()
            # The disk works on this shard while the model works on the next.
            for saving in savings:
                saving.result()
            savings = [
                writer.submit(draft.save_tensors, shard.name, {"acts": acts[draft.plan.recipe["hook_name"]]})
                for draft in missing
            ]
        for saving in savings:
            saving.result()
    for draft in drafts:
        store.commit(draft, {"d_model": info.d_model, **_facts(token_ids, draft)}, device)


def _facts(token_ids: Artifact, draft: Draft) -> dict[str, Any]:
    import torch

    context = token_ids.facts["context_size"]
    shards = shards_of(token_ids.facts["sequences"], context, ["train"])
    norms = torch.cat([draft.tensors(shard.name)["acts"].float().norm(dim=-1) for shard in shards])
    return {
        "context_size": context,
        "sequences": token_ids.facts["sequences"],
        "mean_norm": norms.double().mean(0).tolist(),
        "median_norm": norms.median().item(),
    }


def act_shards(
    artifact: Artifact, splits: Iterable[str] = SPLITS, skip: Container[str] = ()
) -> Iterator[tuple[Shard, torch.Tensor]]:
    """Each shard whose file is not in `skip`, with its acts [sequences, context_size, d_model] in bfloat16."""
    for shard in shards_of(artifact.facts["sequences"], artifact.facts["context_size"], splits):
        if shard.name not in skip:
            yield shard, artifact.tensors(shard.name)["acts"]


def shuffled_rows(
    artifact: Artifact,
    *,
    batch: int,
    total: int,
    drop_positions: int,
    max_norm: float | None,
    seed: int,
    shards_in_memory: int = 64,
) -> Iterator[torch.Tensor]:
    """Batches [batch, d_model] of float32 training activations, shuffled, until `total` rows are used up.

    Rows whose l2 norm exceeds `max_norm` are left out.

    Shards are read in a new order each pass, `shards_in_memory` of them at a time are mixed row by row, so memory
    does not grow with the number of tokens. What does not fill a last batch goes into the next group.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    shards = shards_of(artifact.facts["sequences"], artifact.facts["context_size"], ["train"])
    d_model = artifact.facts["d_model"]
    left = total // batch
    rest = torch.empty(0, d_model, dtype=torch.bfloat16)
    while left > 0:
        order = torch.randperm(len(shards), generator=generator).tolist()
        for start in range(0, len(order), shards_in_memory):
            pieces = [rest]
            for number in order[start : start + shards_in_memory]:
                rows = artifact.tensors(shards[number].name)["acts"][:, drop_positions:].reshape(-1, d_model)
                pieces.append(rows if max_norm is None else rows[rows.float().norm(dim=1) <= max_norm])
            pool = torch.cat(pieces)
            del pieces
            shuffle = torch.randperm(len(pool), generator=generator)
            full = len(pool) // batch * batch
            for at in range(0, full, batch):
                if left == 0:
                    return
                left -= 1
                yield pool[shuffle[at : at + batch]].float()
            rest = pool[shuffle[full:]]
