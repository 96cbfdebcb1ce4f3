"""The causal effect of every source latent on every target latent: the stage `effects`.

    M_ij = mean over tokens where j is active of  f_i(x) - f_i(x - a_j d_j)

with x the model's own activation at the source hook (the SAE's error stays in), a_j and d_j the latent's activation
(with verify.ablation=resample less its activation on another token) and decoder direction, and f the model's
computation up to the target hook, norms recomputed, read by the target SAE. What
other tokens and other source hooks hold stays as it is (see block). A
TopK SAE is read with a threshold held at the token's own k-th value: taking the top k anew would add what one latent's
going does to its competitors. Effects don't add up to the target's activation.

`verify` judges by those on test documents. solver=causal fits to those on training documents, of which the change at
every single ablation is kept too. Effects are kept of the pairs alone in which something changes, and are measured,
written and read in parts of some sources each, so that memory hardly grows with the number of latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypedDict

import torch

from saelink import memory
from saelink.config.evidence import AblationValue
from saelink.config.schema import Config
from saelink.engine.work import Work
from saelink.errors import SaelinkError
from saelink.interventions.block import FOLDS, most_tokens, open_block, opened_sizes, tokens_looked_at
from saelink.interventions.measure import (
    Changes,
    Measurement,
    effects_of_sources,
    gathered,
    open_measurement,
    part_of_sources,
)
from saelink.interventions.pairs import Effects, Pairs
from saelink.job import Job, JobStage
from saelink.latents.rows import Rows, pack, unpack
from saelink.model.probe import BLOCK_HOOKS
from saelink.runtime import need_memory
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft, Parts
from saelink.store.draft import Part as DraftPart
from saelink.store.stage import Need
from saelink.store.store import Store

EFFECTS_FILE = "effects.safetensors"

PAIRS, CHANGES = "pairs-", "changes-"
"""How the names of the parts begin: effects of some sources, and what each of their ablations changes."""

NULLS = ("permuted decoders", "random weights")
"""Effects that no graph should find: along another latent's decoder direction, with the same activation; and of an MLP
(or block) whose weights are in a random order, read by the same SAEs."""

NULL_TOKENS = 64
"""Tokens per source that these are measured on,"""

NULLS_ON_ALL, FEWEST = 4096, 2048
"""and sources: all of up to so many; of more, if verify.null_sources does not say, a tenth but no fewer than these."""


def measurable(cfg: Config) -> bool:
    """Whether the effects of single edges can be measured: between hooks that are modules' own inputs and outputs."""
    return {*cfg.link.sources, cfg.link.target} <= {"mlp_in", *BLOCK_HOOKS}


def check_measurable(cfg: Config) -> None:
    """Raise SaelinkError for a link between whose hooks effects can't be measured."""
    if not measurable(cfg):
        unknown = sorted({*cfg.link.sources, cfg.link.target} - {"mlp_in", *BLOCK_HOOKS})
        raise SaelinkError(
            f"link={cfg.link.name}: effects of single edges are measured between {', '.join(BLOCK_HOOKS)}; not for "
            f"{', '.join(unknown)}"
        )


def ablation_recipe(cfg: Config) -> dict[str, str]:
    """What verify.ablation adds to a recipe; nothing for zero ablation, which was all there was."""
    return {} if cfg.verify.ablation is AblationValue.zero else {"ablation": cfg.verify.ablation.name}


def nulls_of(cfg: Config) -> tuple[str, ...]:
    """Those of NULLS that mean something for the link: where the target is the sources' sum there are no weights."""
    adds_up = {"hook_attn_out", "hook_mlp_out"} <= set(cfg.link.sources)
    return NULLS[:1] if adds_up else NULLS


def null_sources(cfg: Config, d_source: int) -> torch.Tensor:
    """[m] the sources that nulls are measured on, ascending: all of them, or a sample that depends on nothing else."""
    most = cfg.verify.null_sources
    if most is None:
        most = d_source if d_source <= NULLS_ON_ALL else max(d_source // 10, FEWEST)
    order = torch.randperm(d_source, generator=torch.Generator().manual_seed(0))
    return order[:most].sort().values


def changes_of_a_source(job: Job, split: str, most: int) -> float:
    """About how many changes of single targets `most` ablations of a source make: of what is active before or after."""
    return 2 * max(job.sides.target.facts["l0"], 1.0) * max(min(most, tokens_looked_at(job, split)), 1)


def effects_bytes(job: Job, split: str = "test") -> int:
    """Memory that measuring the effects of the job's sources takes."""
    changes = changes_of_a_source(job, split, job.cfg.verify.tokens_per_source)
    part = 16 * changes * part_of_sources(job.sides.d_source, changes)
    return int(memory.effects(*opened_sizes(job, split), part))


def need_effects(job: Job, split: str = "test") -> None:
    """Raise SaelinkError where the memory for measuring effects between the job's latents can't be had."""
    need_memory(
        f"verify: the effects of {job.sides.d_source:,} source on {job.sides.d_target:,} target latents",
        effects_bytes(job, split),
        _way_out(split),
    )


def _way_out(split: str) -> str:
    fewer = f"use fewer tokens (verify.{'tokens' if split == 'test' else 'fit_tokens'})"
    return f"{fewer}, or eval.verify=false for an evaluation without verdicts"


class SourcesBlock(NamedTuple):
    """A task: the effects of some of the sources, which go into a file of this name."""

    name: str
    low: int
    high: int


def measured(
    given: Measurement, block: SourcesBlock, split: str, done: Callable[[int], object]
) -> dict[str, dict[str, torch.Tensor]]:
    """By file, in the order they are to be written, the tensors of one part; the last file says that it is whole."""
    part = effects_of_sources(given, block.low, block.high, split == "train", done)
    files: dict[str, dict[str, torch.Tensor]] = {}
    if part.changes is not None:
        ablations = {"token": part.changes.token.int(), "source": part.changes.source.int()}
        tensors = pack(part.changes.rows) | ablations | {"value": part.changes.value}
        files[block.name.replace(PAIRS, CHANGES)] = tensors
    of_sources = {"tokens": part.tokens, "source_mean": part.source_mean}
    return files | {block.name: part.pairs._asdict() | of_sources}


@dataclass(frozen=True)
class EffectsWork(Work[Measurement, SourcesBlock, list[DraftPart]]):
    """The effects of some of the sources, written as files of the draft."""

    cfg: Config
    draft: Parts
    split: str
    null: str | None
    needed: int
    other_text: bool = False
    """On the text of eval.data."""
    on_gpu = True

    def memory(self) -> int:
        return self.needed

    def open(self) -> Measurement:
        job = Job(self.cfg, Store(self.cfg.runtime.outputs))
        return EffectsStage(job.measured if self.other_text else job, self.split, self.null).opened()

    def run(self, state: Measurement, task: SourcesBlock) -> list[DraftPart]:
        with torch.inference_mode():
            files = measured(state, task, self.split, lambda n: None)
        return [self.draft.save_tensors(name, tensors) for name, tensors in files.items()]


class EffectsFacts(TypedDict):
    n_tokens: int
    """Tokens that were looked at."""
    sources: int
    """Sources that were ablated, or would have been had they been active."""
    ablations: int
    pairs: int
    """Pairs of a source and a target that some ablation changed."""
    strong: int
    """Strong effects, see verify.strong,"""
    strong_negative: int
    """and those among them that are below 0."""


class EffectsStage(JobStage[EffectsFacts]):
    """The effect of every source latent on every target latent, on test or train documents; or one of NULLS.

    Files: `pairs-<first source>.safetensors`, a part each: the tensors of `Pairs`, `tokens` and `source_mean` of its
    sources; `effects.safetensors`, by latent: `tokens`, `source_mean`, `source_rate`, `target_mean` of `Effects`; on
    train documents `changes-<first source>.safetensors`, what each ablation changed. Units are the latents' scales. A
    try that was cut short goes on at the first part that is missing, and several workers can share the parts
    (runtime.workers). Raises SaelinkError for a link whose effects can't be measured.
    """

    name = "effects"
    version = 3

    def __init__(self, job: Job, split: str = "test", null: str | None = None):
        super().__init__(job)
        check_measurable(job.cfg)
        self.split, self.null = split, null

    @property
    def _per_source(self) -> int:
        most = self.job.cfg.verify.tokens_per_source
        return most if self.null is None else min(most, NULL_TOKENS)

    def recipe(self) -> dict[str, Any]:
        cfg = self.job.cfg
        sources = {} if self.null is None else {"sources": cfg.verify.null_sources}
        return {
            "split": self.split,
            "null": self.null,
            **sources,
            "tokens_per_source": self._per_source,
            "tokens": most_tokens(cfg, self.split),
            "drop_positions": cfg.data.drop_positions,
            "max_norm_ratio": cfg.data.max_norm_ratio,
            "latent_scale": cfg.latent_scale.name,
            "model_dtype": cfg.model.dtype.name,
            **ablation_recipe(cfg),
        }

    def inputs(self) -> dict[str, str]:
        return {**self.latents_inputs(), "model": self.job.model.artifact.key}

    def about(self) -> str:
        return f"{self.job.about}, {self.null or self.split}"

    def check(self) -> None:
        settings = self.job.cfg.verify
        for name in ("tokens_per_source", "tokens", "fit_tokens"):
            if getattr(settings, name) < 1:
                raise SaelinkError(f"verify.{name}={getattr(settings, name)} must be at least 1")
        if settings.null_sources is not None and settings.null_sources < 1:
            raise SaelinkError(f"verify.null_sources={settings.null_sources} must be at least 1")

    def need(self) -> Need:
        return Need(effects_bytes(self.job, self.split), _way_out(self.split))

    def make(self, draft: Draft) -> EffectsFacts:
        return self._measured(draft)()

    def pull(self) -> Artifact[EffectsFacts]:
        """The effects, found or measured, part by part."""
        self.check()
        found = self.store.up_to_date(self.plan)
        if found is not None:
            return found
        self.promise()
        with self.store.drafts([self.plan], resumable=True, shared=self.job.cfg.runtime.shared) as drafts:
            for draft in drafts:
                return self.store.finish(draft, self._measured(draft), self.device)
        artifact = self.find()
        assert artifact is not None
        return artifact

    def _sources(self) -> torch.Tensor:
        """[m] the sources that are ablated."""
        d_source = self.job.sides.d_source
        return torch.arange(d_source) if self.null is None else null_sources(self.job.cfg, d_source)

    def opened(self) -> Measurement:
        """What the effects are measured from."""
        job = self.job
        block = open_block(job, self.split)
        directions: torch.Tensor | None = None
        if self.null == "permuted decoders":
            generator = torch.Generator().manual_seed(0)
            directions = torch.cat([s.W_dec[torch.randperm(s.d_sae, generator=generator)] for s in block.source_saes])
        elif self.null == "random weights":
            block.computation.permute()
        with torch.inference_mode():
            return open_measurement(
                block, self._per_source, job.sides.scales, directions, self._sources(), job.cfg.verify.ablation
            )

    def _say(self, n_sources: int, changes: float) -> None:
        """What will be measured, and how much it needs of disk; `changes` is of one source."""
        job, link, sides = self.job, self.job.link, self.job.sides
        n = tokens_looked_at(job, self.split)
        some = "" if n_sources == sides.d_source else f", {n_sources:,} of {sides.d_source:,} sources"
        what = f"effects: {' + '.join(link.sources)} -> {link.target} on {n:,} {self.split} tokens{some}"
        job.observer.say(what)
        pairs = min(changes, sides.d_target)
        single = 4 * changes if self.split == "train" else 0
        job.store.need_space("effects", int(n_sources * (10 * pairs + 2 * min(changes, FOLDS * pairs) + single)))

    def _measured(self, draft: Draft) -> Callable[[], EffectsFacts]:
        """Measures the parts that are missing; gives what puts them together."""
        sources = self._sources()
        changes = changes_of_a_source(self.job, self.split, self._per_source)
        self._say(len(sources), changes)
        step = part_of_sources(len(sources), changes)
        lows = {f"{PAIRS}{low:06d}.safetensors": low for low in range(0, len(sources), step)}
        given: Measurement | None = None
        blocks = {name: SourcesBlock(name, low, min(low + step, len(sources))) for name, low in lows.items()}
        done = sum(block.high - block.low for name, block in blocks.items() if name in draft)
        engine = self.job.engine
        with self.job.observer.progress("effects", len(sources), "sources", done) as bar, torch.inference_mode():
            if engine.several_on(self.device):
                missing = [block for name, block in blocks.items() if name not in draft]
                cfg, other = engine.of_worker(self.job.fit.cfg), self.job.fitted is not None
                work = EffectsWork(cfg, draft.parts, self.split, self.null, self._bytes(), other)

                def take(block: SourcesBlock, files: list[DraftPart]) -> None:
                    for file in files:
                        draft.take(file)
                    bar.advance(block.high - block.low)

                engine.run("effects", work, missing, take)
                return lambda: self._together(draft, list(lows), given)
            for name, claim in self.store.claims([draft], list(lows)):
                given = given or self.opened()
                for file, tensors in measured(given, blocks[name], self.split, bar.advance).items():
                    draft.save_tensors(file, tensors)
                claim.release()
        return lambda: self._together(draft, list(lows), given)

    def _bytes(self) -> int:
        return effects_bytes(self.job, self.split)

    def _together(self, draft: Draft, names: list[str], given: Measurement | None) -> EffectsFacts:
        """Writes what is said of latents, and counts what is in the parts."""
        with torch.inference_mode():
            given = given or self.opened()
        read = [partial(draft.tensors, name) for name in names]
        parts = [partial(_read_pairs, each) for each in read]
        tokens, source_mean = (torch.cat([each()[name] for each in read], -1) for name in ("tokens", "source_mean"))
        found = gathered(given, parts, tokens, source_mean)
        by_latent = ("tokens", "source_mean", "source_rate", "target_mean")
        draft.save_tensors(EFFECTS_FILE, {name: getattr(found, name) for name in by_latent})
        n = strong = negative = 0
        for pairs in found.pairs():
            unit = found.target_mean[pairs.target.long()]
            is_strong = (pairs.mean.abs() >= self.job.cfg.verify.strong * unit) & (unit > 0) & pairs.consistent()
            n += len(pairs.target)
            strong += int(is_strong.sum())
            negative += int((is_strong & (pairs.mean < 0)).sum())
        return {
            "n_tokens": len(given.block.fold),
            "sources": len(given.sources),
            "ablations": int(tokens.sum()),
            "pairs": n,
            "strong": strong,
            "strong_negative": negative,
        }


def _read_pairs(read: Callable[[], dict[str, torch.Tensor]]) -> Pairs:
    tensors = read()
    return Pairs(*(tensors[name] for name in Pairs._fields))


def _parts_of(artifact: Artifact[EffectsFacts], begin: str) -> list[str]:
    return [name for name in artifact.files if name.startswith(begin)]


def load_effects(artifact: Artifact[EffectsFacts]) -> Effects:
    """The effects of an artifact; a part of the sources is in memory at a time."""
    read = [partial(artifact.tensors, name) for name in _parts_of(artifact, PAIRS)]
    return Effects([partial(_read_pairs, each) for each in read], **artifact.tensors(EFFECTS_FILE))


def load_changes(artifact: Artifact[EffectsFacts]) -> Changes:
    """The changes of every single ablation; only effects on training documents have them."""
    d_target = len(artifact.tensors(EFFECTS_FILE)["target_mean"])
    parts = [artifact.tensors(name) for name in _parts_of(artifact, CHANGES)]
    rows = Rows.stack([unpack(part, d_target) for part in parts])
    token, source, value = (torch.cat([part[name] for part in parts]) for name in ("token", "source", "value"))
    return Changes(rows, token.long(), source.long(), value)
