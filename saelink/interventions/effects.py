"""The causal effect of every source latent on every target latent: the stage `effects`.

    M_ij = mean over tokens where j is active of  f_i(x) - f_i(x - a_j d_j)

with x the model's own activation at the source hook (the SAE's error stays in), a_j and d_j the latent's activation and
decoder direction, and f the model's computation up to the target hook, norms recomputed, read by the target SAE. What
other tokens and other source hooks hold stays as it is (see block). A
TopK SAE is read with a threshold held at the token's own k-th value: taking the top k anew would add what one latent's
going does to its competitors. Effects don't add up to the target's activation.

`verify` judges by those on test documents. solver=causal fits to those on training documents, of which the change at
every single ablation is kept too.
"""

from __future__ import annotations

from typing import Any, TypedDict

import torch

from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.interventions.block import FOLDS, most_tokens, open_block
from saelink.interventions.measure import Changes, Effects, measure_effects
from saelink.job import Job, JobStage
from saelink.latents.link import Sides
from saelink.latents.rows import pack, unpack
from saelink.model.probe import BLOCK_HOOKS
from saelink.runtime import need_memory
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft

EFFECTS_FILE = "effects.safetensors"

CHANGES_FILE = "changes.safetensors"

NULLS = ("permuted decoders", "random weights")
"""Effects that no graph should find: along another latent's decoder direction, with the same activation; and of an MLP
(or block) whose weights are in a random order, read by the same SAEs."""

NULL_TOKENS = 64
"""Tokens per source that these are measured on."""


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


def nulls_of(cfg: Config) -> tuple[str, ...]:
    """Those of NULLS that mean something for the link: where the target is the sources' sum there are no weights."""
    adds_up = {"hook_attn_out", "hook_mlp_out"} <= set(cfg.link.sources)
    return NULLS[:1] if adds_up else NULLS


def effects_bytes(sides: Sides) -> int:
    """Memory that measuring all effects between these latents takes."""
    return 6 * FOLDS * sides.d_source * sides.d_target


def need_effects(sides: Sides) -> None:
    """Raise SaelinkError where the memory for all effects between these latents can't be had."""
    need_memory(
        f"verify: the effects of {sides.d_source:,} source on {sides.d_target:,} target latents",
        effects_bytes(sides),
        "use SAEs with fewer latents, or eval.verify=false for an evaluation without verdicts",
    )


class EffectsFacts(TypedDict):
    n_tokens: int
    """Tokens that were looked at."""
    ablations: int
    strong: int
    """Strong effects, see verify.strong,"""
    strong_negative: int
    """and those among them that are below 0."""


class EffectsStage(JobStage[EffectsFacts]):
    """The effect of every source latent on every target latent, on test or train documents; or one of NULLS.

    File `effects.safetensors`: see `Effects`; for train also `changes.safetensors`: see `Changes`. Raises SaelinkError
    for a link whose hooks are not modules' own inputs and outputs.
    """

    name = "effects"
    version = 2

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
        return {
            "split": self.split,
            "null": self.null,
            "tokens_per_source": self._per_source,
            "tokens": most_tokens(cfg, self.split),
            "drop_positions": cfg.data.drop_positions,
            "max_norm_ratio": cfg.data.max_norm_ratio,
            "latent_scale": cfg.latent_scale.name,
            "model_dtype": cfg.model.dtype.name,
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

    def make(self, draft: Draft) -> EffectsFacts:
        job, sides, link = self.job, self.job.sides, self.job.link
        size = effects_bytes(sides) // 6
        most = max(most_tokens(job.cfg, self.split), 1)
        what = f"effects: {' + '.join(link.sources)} -> {link.target} on at most {most:,} {self.split} tokens"
        job.observer.say(f"{what}, {effects_bytes(sides) / 1e9:.1f} GB of memory")
        need_effects(sides)
        job.store.need_space("effects", 2 * size + 4 * size // FOLDS)
        block = open_block(job, self.split)
        directions: torch.Tensor | None = None
        if self.null == "permuted decoders":
            generator = torch.Generator().manual_seed(0)
            directions = torch.cat([s.W_dec[torch.randperm(s.d_sae, generator=generator)] for s in block.source_saes])
        elif self.null == "random weights":
            block.computation.permute()
        keep = self.split == "train"
        with torch.inference_mode():
            found, changes = measure_effects(block, self._per_source, job.observer, sides.scales, directions, keep)
        draft.save_tensors(EFFECTS_FILE, found._asdict())
        if changes is not None:
            ablations = {"token": changes.token.int(), "source": changes.source.int(), "value": changes.value}
            draft.save_tensors(CHANGES_FILE, pack(changes.rows) | ablations)
        strong = found.mean.abs() >= job.cfg.verify.strong * found.target_mean
        strong &= (found.target_mean > 0) & found.consistent()
        return {
            "n_tokens": len(block.fold),
            "ablations": int(found.tokens.sum()),
            "strong": int(strong.sum()),
            "strong_negative": int((strong & (found.mean < 0)).sum()),
        }


def load_effects(artifact: Artifact[EffectsFacts]) -> Effects:
    return Effects(**artifact.tensors(EFFECTS_FILE))


def load_changes(artifact: Artifact[EffectsFacts]) -> Changes:
    """The changes of every single ablation; only effects on training documents have them."""
    tensors = artifact.tensors(CHANGES_FILE)
    d_target = len(artifact.tensors(EFFECTS_FILE)["target_mean"])
    return Changes(unpack(tensors, d_target), tensors["token"].long(), tensors["source"].long(), tensors["value"])
