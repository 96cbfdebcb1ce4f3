"""The model's activations at the hooks that are wanted: the stage `cache`, one artifact per hook.

One forward pass fills every missing hook of every wanted layer and stops after the last of them. All positions
are kept; which of them count is decided where they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypedDict

import torch

from saelink import memory
from saelink.activations.tokens import SPLITS, TokensFacts, TokensStage
from saelink.config.schema import Config
from saelink.config.size import gigabytes
from saelink.engine.tasks import Engine, engine_of
from saelink.engine.work import Work
from saelink.model.describe import model_info
from saelink.model.dimensions import size_of
from saelink.model.forward import load_forward
from saelink.progress import Progress
from saelink.runtime import device_of, fitting_tokens, torch_dtype
from saelink.store.artifact import Artifact
from saelink.store.draft import Claim, Draft, Part, Parts
from saelink.store.stage import Need, Stage, promised
from saelink.store.store import Store

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


Look = Callable[[str, torch.Tensor], None]
"""Is shown the first acts [n, width] of a hook as soon as there are some; raises what makes going on pointless."""


class CacheFacts(TypedDict):
    width: int
    context_size: int
    sequences: dict[str, int]
    """By split."""
    mean_norm: list[float]
    """By position the mean l2 norm on the training split,"""
    median_norm: float
    """and the median over all of them."""


class CacheStage(Stage[CacheFacts]):
    """One hook's activations; `hook_name` is a full name such as blocks.3.hook_mlp_out.

    Files `<split>-<number>.safetensors` with `acts` [sequences, context_size, width] in bfloat16 (its rounding
    adds about 1e-6 to an FVU). A hook with several heads is taken as wide as all of them together.
    """

    name = "cache"
    version = 3

    def __init__(self, cfg: Config, store: Store, hook_name: str):
        self.cfg, self.store, self.hook_name = cfg, store, hook_name

    @property
    def device(self) -> str:
        return device_of(self.cfg)

    def recipe(self) -> dict[str, Any]:
        return {"hook_name": self.hook_name, "model_dtype": self.cfg.model.dtype.name, "dtype": "bfloat16"}

    def inputs(self) -> dict[str, str]:
        tokens = TokensStage(self.cfg, self.store)
        return {"model": model_info(self.cfg, self.store).artifact.key, "tokens": tokens.key}

    def about(self) -> str:
        return f"{self.cfg.model.label} {self.hook_name}"

    def need(self) -> Need:
        return forward_need(self.cfg, self.store, TokensStage(self.cfg, self.store).pull(), [self.hook_name])

    def make(self, draft: Draft) -> CacheFacts:
        tokens = TokensStage(self.cfg, self.store).pull()
        _write(self.cfg, self.store, tokens, [draft], None)
        return _facts(tokens, draft)

    def pull(self) -> Artifact[CacheFacts]:
        """The activations, shard by shard where an earlier try or another worker left off."""
        return cache_hooks(self.cfg, self.store, [self.hook_name])[self.hook_name]


def cache_hooks(
    cfg: Config, store: Store, hook_names: Iterable[str], look: Look | None = None
) -> dict[str, Artifact[CacheFacts]]:
    """The activations at several hooks: one forward pass fills all that are missing, see CacheStage."""
    stages = {hook: CacheStage(cfg, store, hook) for hook in dict.fromkeys(hook_names)}
    missing = [stage.plan for stage in stages.values() if store.up_to_date(stage.plan) is None]
    if missing:
        tokens = TokensStage(cfg, store).pull()
        promised(store, f"cache: {', '.join(stages)}", forward_need(cfg, store, tokens, list(stages)))
        with store.drafts(missing, resumable=True, shared=cfg.runtime.shared) as drafts:
            if drafts:
                _write(cfg, store, tokens, drafts, look)
            for draft in drafts:
                store.finish(draft, partial(_facts, tokens, draft), device_of(cfg))
    found = {hook: stage.find() for hook, stage in stages.items()}
    return {hook: artifact for hook, artifact in found.items() if artifact is not None}


def forward_need(cfg: Config, store: Store, token_ids: Artifact[TokensFacts], hooks: list[str]) -> Need:
    """What a pass of the model over all tokens takes, with what is kept at these hooks meanwhile."""
    room = _Room.of(cfg, store, token_ids, hooks)
    return Need(
        room.bytes(max(room.fitting(), room.context)),
        "use a smaller model or context (data.context_size), or model.dtype=bfloat16",
    )


class _Room(NamedTuple):
    """Memory of the model's passes."""

    size: memory.ModelSize
    bytes_each: int
    widths: list[int]
    context: int
    training: int
    wanted: int

    @staticmethod
    def of(cfg: Config, store: Store, token_ids: Artifact[TokensFacts], hooks: list[str]) -> _Room:
        size, facts = size_of(cfg.model, model_info(cfg, store).artifact), token_ids.facts
        widths = [max(size.d_model, size.d_mlp if ".mlp.hook_" in hook else 0) for hook in hooks]
        bytes_each = torch_dtype(cfg.model.dtype).itemsize
        training = facts["tokens"]["train"]
        return _Room(size, bytes_each, widths, facts["context_size"], training, cfg.runtime.forward_tokens)

    def bytes(self, step: int) -> float:
        return memory.cache(self.size, self.bytes_each, self.widths, step, self.context, self.training)

    def fitting(self) -> int:
        """Tokens of a pass: runtime.forward_tokens, halved as often as memory asks for."""
        fixed, each = self.bytes(0), self.size.passed(1, self.context, len(self.widths))
        return fitting_tokens(self.wanted, each, fixed)


def _write(cfg: Config, store: Store, token_ids: Artifact[TokensFacts], drafts: list[Draft], look: Look | None) -> None:
    """Fill all drafts shard by shard; shards that an earlier try finished are kept."""
    info = model_info(cfg, store)
    by_hook = {draft.plan.recipe["hook_name"]: draft for draft in drafts}
    context = token_ids.facts["context_size"]
    shards = {shard.name: shard for shard in shards_of(token_ids.facts["sequences"], context)}
    wanted = [(shard, draft) for shard in shards.values() for draft in drafts if shard.name not in draft]
    size = sum((shard.last - shard.first) * context * info.d_model * 2 for shard, _ in wanted)
    total = sum(token_ids.facts["tokens"].values())
    what = f"cache: {', '.join(by_hook)} of {total:,} tokens"
    store.observer.say(f"{what}, {gigabytes(size)} to write")
    store.need_space(what, size)
    unfinished = {shard.name for shard, _ in wanted}
    done = sum((shard.last - shard.first) * context for shard in shards.values() if shard.name not in unfinished)
    engine = engine_of(cfg, store.observer)
    if engine.several_on(device_of(cfg)):
        with store.observer.progress("cache", total, done=done) as bar:
            _write_by_workers(engine, cfg, by_hook, [shard for shard, _ in wanted], context, look, bar)
        return
    claims: dict[str, Claim] = {}

    def todo() -> Iterator[Shard]:
        for name, claim in store.claims(drafts, list(shards)):
            claims[name] = claim
            yield shards[name]

    def save(shard: Shard, acts: dict[str, torch.Tensor]) -> None:
        for hook, tensor in acts.items():
            if shard.name not in by_hook[hook] and not by_hook[hook].gone:
                by_hook[hook].save_tensors(shard.name, {"acts": tensor})
        claims.pop(shard.name).release()

    saving: Future[None] | None = None
    with store.observer.progress("cache", total, done=done) as bar, ThreadPoolExecutor(1) as writer:
        for shard, acts in run_model(cfg, store, token_ids, list(by_hook), todo(), bar):
            if look is not None:
                for hook, tensor in acts.items():
                    look(hook, tensor.flatten(0, 1))
                look = None
            # The disk works on this shard while the model works on the next.
            if saving is not None:
                saving.result()
            saving = writer.submit(save, shard, acts)
        if saving is not None:
            saving.result()


@dataclass(frozen=True)
class CacheWork(Work["ModelPass", Shard, dict[str, Part]]):
    """The model's activations of one shard at several hooks; by hook the file that was written."""

    cfg: Config
    drafts: dict[str, Parts]
    on_gpu = True

    def open(self) -> ModelPass:
        store = Store(self.cfg.runtime.outputs)
        return ModelPass(self.cfg, store, TokensStage(self.cfg, store).pull(), list(self.drafts))

    def run(self, state: ModelPass, task: Shard) -> dict[str, Part]:
        acts = state.acts(task, Progress())
        return {hook: draft.save_tensors(task.name, {"acts": acts[hook]}) for hook, draft in self.drafts.items()}


def _write_by_workers(
    engine: Engine,
    cfg: Config,
    by_hook: dict[str, Draft],
    shards: list[Shard],
    context: int,
    look: Look | None,
    bar: Progress,
) -> None:
    """Fill the drafts with these shards; the first of them is looked at."""
    shards = list(dict.fromkeys(shards))

    def done(shard: Shard, parts: dict[str, Part]) -> None:
        for hook, part in parts.items():
            by_hook[hook].take(part)
            if look is not None and shard == shards[0]:
                look(hook, by_hook[hook].tensors(shard.name)["acts"].flatten(0, 1))
        bar.advance((shard.last - shard.first) * context)

    work = CacheWork(engine.of_worker(cfg), {hook: draft.parts for hook, draft in by_hook.items()})
    engine.run("cache", work, shards, done)


class ModelPass:
    """The model at some hooks, loaded when it is first needed."""

    def __init__(self, cfg: Config, store: Store, token_ids: Artifact[TokensFacts], hooks: list[str]):
        self._cfg, self._info, self._device = cfg, model_info(cfg, store), device_of(cfg)
        self._context, self._hooks = token_ids.facts["context_size"], hooks
        self._rows = max(_Room.of(cfg, store, token_ids, hooks).fitting() // self._context, 1)
        self._ids = {split: token_ids.tensors(f"{split}.safetensors")["ids"] for split in SPLITS}
        self._forward: Any = None

    def acts(self, shard: Shard, bar: Progress) -> dict[str, torch.Tensor]:
        """The shard's acts at all hooks, [sequences, context_size, width] in bfloat16."""
        device = self._device
        if self._forward is None:  # not loaded where nothing is left to do
            self._forward = load_forward(self._cfg, self._info, self._hooks, device)
        rows = self._rows
        acts: dict[str, torch.Tensor] = {}
        for first in range(shard.first, shard.last, rows):
            last = min(first + rows, shard.last)
            batch = self._ids[shard.split][first:last].long().to(device)
            with torch.inference_mode():
                for hook, tensor in self._forward(batch).items():
                    if hook not in acts:
                        size = (shard.last - shard.first, self._context, tensor.shape[2])
                        acts[hook] = torch.empty(size, dtype=torch.bfloat16, pin_memory=device == "cuda")
                    # On a GPU the copy runs beside the next batch: to pinned memory, and waited for at the shard's end.
                    part = acts[hook][first - shard.first : last - shard.first]
                    part.copy_(tensor.to(torch.bfloat16), non_blocking=device == "cuda")
            bar.advance(batch.numel())
        if device == "cuda":
            torch.cuda.synchronize()
        return acts


def run_model(
    cfg: Config,
    store: Store,
    token_ids: Artifact[TokensFacts],
    hooks: list[str],
    shards: Iterable[Shard],
    bar: Progress,
) -> Iterator[tuple[Shard, dict[str, torch.Tensor]]]:
    """Each of the shards with the model's acts at all hooks, [sequences, context_size, width] in bfloat16."""
    model = ModelPass(cfg, store, token_ids, hooks)
    for shard in shards:
        yield shard, model.acts(shard, bar)


def _facts(token_ids: Artifact[TokensFacts], draft: Draft) -> CacheFacts:
    context = token_ids.facts["context_size"]
    shards = shards_of(token_ids.facts["sequences"], context, ["train"])
    norms, width = [], 0
    for shard in shards:
        acts = draft.tensors(shard.name)["acts"]
        norms.append(acts.float().norm(dim=-1))
        width = acts.shape[-1]
    return {
        "width": width,
        "context_size": context,
        "sequences": token_ids.facts["sequences"],
        **norm_facts(torch.cat(norms)),
    }


class NormFacts(TypedDict):
    mean_norm: list[float]
    median_norm: float


def norm_facts(norms: torch.Tensor) -> NormFacts:
    """Of the l2 norms [sequences, context_size] of all training acts: the mean by position, and the median.

    Where that is 0, the median of the acts that are not: to a median of 0 every other norm would be massive.
    """
    median, some = norms.median(), norms[norms > 0]
    if median == 0 and len(some):
        median = some.median()
    return {"mean_norm": norms.double().mean(0).tolist(), "median_norm": median.item()}


def act_shards(
    artifact: Artifact[CacheFacts], splits: Iterable[str] = SPLITS, skip: Container[str] = ()
) -> Iterator[tuple[Shard, torch.Tensor]]:
    """Each shard whose file is not in `skip`, with its acts [sequences, context_size, width] in bfloat16."""
    for shard in shards_of(artifact.facts["sequences"], artifact.facts["context_size"], splits):
        if shard.name not in skip:
            yield shard, artifact.tensors(shard.name)["acts"]


def shuffled_rows(
    artifact: Artifact[CacheFacts],
    *,
    batch: int,
    total: int,
    drop_positions: int,
    max_norm: float | None,
    seed: int,
    first: int = 0,
    shards_in_memory: int = 64,
) -> Iterator[torch.Tensor]:
    """Batches [batch, width] of float32 training activations, shuffled, until `total` rows are used up.

    The `first` so many are left out, as if they had been taken.

    Rows whose l2 norm exceeds `max_norm` are left out.

    Shards are read in a new order each pass, `shards_in_memory` of them at a time are mixed row by row, so memory
    does not grow with the number of tokens. What does not fill a last batch goes into the next group.
    """
    generator = torch.Generator().manual_seed(seed)
    shards = shards_of(artifact.facts["sequences"], artifact.facts["context_size"], ["train"])
    width = artifact.facts["width"]
    left = total // batch
    rest = torch.empty(0, width, dtype=torch.bfloat16)
    while left > 0:
        order = torch.randperm(len(shards), generator=generator).tolist()
        for start in range(0, len(order), shards_in_memory):
            pieces = [rest]
            for number in order[start : start + shards_in_memory]:
                rows = artifact.tensors(shards[number].name)["acts"][:, drop_positions:].reshape(-1, width)
                pieces.append(rows if max_norm is None else rows[rows.float().norm(dim=1) <= max_norm])
            pool = torch.cat(pieces)
            del pieces
            shuffle = torch.randperm(len(pool), generator=generator)
            full = len(pool) // batch * batch
            for at in range(0, full, batch):
                if left == 0:
                    return
                left -= 1
                if left < total // batch - first:
                    yield pool[shuffle[at : at + batch]].float()
            rest = pool[shuffle[full:]]
