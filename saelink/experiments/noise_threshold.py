"""How much error in the target latents the model can bear: a threshold with a reason.

Gaussian noise is added to the true target latents of every token and the sum clamped at 0; its variance per latent is
a loss level times a normaliser. The result is decoded, spliced in, and the model's cross-entropy measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from saelink import memory
from saelink.activations.norms import NormsStage
from saelink.config.schema import Config
from saelink.evidence.baselines import NORMALISERS, normalisers
from saelink.experiments.base import Done, Experiment, Result
from saelink.experiments.tables import Row
from saelink.interventions.cross_entropy import BaselinesStage, ce_figures
from saelink.interventions.splice import Splice, losses_need, spliced_tokens
from saelink.job import Job
from saelink.latents.link import counted_split, load_split
from saelink.latents.metrics import in_steps
from saelink.latents.split import Tokens
from saelink.latents.targets import targets_of


@dataclass
class NoiseThresholdSettings:
    """Settings of the experiment noise_threshold."""

    levels: list[float] = field(default_factory=lambda: [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0])
    """Loss levels."""
    ce_tokens: int = 16_384
    """Test tokens it is measured on."""
    share: float = 0.01
    """The cost in cross-entropy that is allowed, as a share of the zero-ablation gap."""


class NoiseThresholdExperiment(Experiment):
    Settings = NoiseThresholdSettings
    title = "Cross-entropy against noise in the target latents"
    settings = ("levels", "ce_tokens", "share")

    def check(self, settings: NoiseThresholdSettings) -> None:
        if not settings.levels or any(level <= 0 for level in settings.levels):
            raise self.mistake(settings, "levels", "give numbers above 0")
        if settings.ce_tokens < 1:
            raise self.mistake(settings, "ce_tokens", "must be at least 1")

    def fits(self, job: Job) -> dict[str, Config]:
        return {}

    def needs(self, job: Job) -> dict[str, str]:
        return {"norms": NormsStage(job.cfg, job.store).key, "ce": BaselinesStage(job).key}

    def recipe(self, cfg: Config) -> dict[str, Any]:
        return {
            "bootstrap": cfg.eval.bootstrap,
            "latent_scale": cfg.latent_scale,
            "drop_positions": cfg.data.drop_positions,
            "max_norm_ratio": cfg.data.max_norm_ratio,
            "normalise_layers": cfg.normalise_layers,
            "targets": cfg.targets,
        }

    def memory(self, job: Job) -> float:
        """The target latents of a step densely, noise, and what it changes; the model run with that."""
        losses = losses_need(job, "").bytes
        dense = 5 * 4.0 * min(2048 * job.sides.d_target, memory.STEP_ENTRIES)
        return losses + dense + job.sides.split_bytes("train")

    def make(self, job: Job, done: dict[str, Done]) -> Result:
        levels = sorted(self.own(job.cfg).levels)
        sides = job.sides
        limit = min(self.own(job.cfg).ce_tokens, job.cfg.eval.ce_tokens)
        baselines = BaselinesStage(job).pull().tensors("losses.safetensors")
        test = spliced_tokens(job, limit)
        losses = {name: baselines[name][: len(test.ids)] for name in ("clean", "sae", "mean", "zero")}
        ids = targets_of(job.cfg, job.store, counted_split(job.cfg, sides, "train"))
        counted = load_split(job.cfg, sides, "test", ids)
        scales = normalisers(job, counted)
        counted = counted.subset(counted.row < test.ids.numel())
        with Splice(job, test, len(NORMALISERS) * len(levels)) as splice:
            unchanged = splice.decode(splice.true_latents())
            for name in NORMALISERS:
                for level in levels:
                    deviation = (level * scales[name]).sqrt().float()
                    moved = splice.decode_changes(ids, noisy_changes(counted, deviation, sides.scales[-1]))
                    losses[f"{name} {level:g}"] = splice.losses(unchanged + moved)
        figures = ce_figures(losses, test.document, job.cfg.eval.bootstrap)
        gap = figures["zero"]["ce"] - figures["clean"]["ce"]
        rows: list[Row] = []
        found: dict[str, float | None] = {}
        for name in NORMALISERS:
            shares = []
            for level in levels:
                entry = figures[f"{name} {level:g}"]
                shares.append((entry["ce"] - figures["sae"]["ce"]) / gap)
                rows.append(
                    {
                        "layer": job.cfg.layer,
                        "divided by": name,
                        "level": level,
                        "ce": entry["ce"],
                        "ce_low": figures["clean"]["ce"] + entry["cost_low"],
                        "ce_high": figures["clean"]["ce"] + entry["cost_high"],
                        "share_of_gap": shares[-1],
                    }
                )
            found[name] = largest_level(levels, shares, self.own(job.cfg).share)
        said = ", ".join(f"{name} {'none' if level is None else f'{level:.2g}'}" for name, level in found.items())
        clean, rebuilt, zeroed = (figures[name]["ce"] for name in ("clean", "sae", "zero"))
        text = (
            f"  {test.ids.numel():,} test tokens. CE clean {clean:.3f}, SAE {rebuilt:.3f}, zero ablation {zeroed:.3f}; "
            "share_of_gap is (CE - CE of the SAE) / (zero - clean).\n"
            f"  Largest level that costs less than {self.own(job.cfg).share:.0%} of the gap: {said}"
            " (the largest tested where none costs more; none where the smallest does)."
        )

        def draw(figure: Any) -> None:
            axes = figure.subplots()
            for name in NORMALISERS:
                chosen = [row for row in rows if row["divided by"] == name]
                axes.plot([row["level"] for row in chosen], [row["ce"] for row in chosen], "o-", label=name)
            for name, style in (("sae", "--"), ("zero", ":")):
                axes.axhline(figures[name]["ce"], color="black", lw=1, ls=style, label=name)
            limit_ce = figures["sae"]["ce"] + self.own(job.cfg).share * gap
            axes.axhline(limit_ce, color="tab:red", lw=1, label=f"SAE + {self.own(job.cfg).share:.0%} of the gap")
            axes.set(xscale="log", xlabel="noise variance / normaliser", ylabel="cross-entropy (nats)")
            axes.set_title(f"Noise in the target latents, layer {job.cfg.layer}", fontsize=10)
            axes.legend(fontsize=8)

        return Result(rows, draw=draw, text=text, facts={"levels": found})


def noisy_changes(
    counted: Tokens, deviation: torch.Tensor, scale: float
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:  # fmt: skip
    """A few tokens at a time their positions, and what noise of this deviation [d_target], the same in every call,
    changes of the target latents, times `scale`."""
    generator, first = torch.Generator().manual_seed(0), 0
    for (target,) in in_steps(counted.target):
        true = target.dense()
        noise = torch.randn(true.shape, generator=generator)
        yield counted.row[first : first + len(true)], (torch.relu(noise * deviation + true) - true) * scale
        first += len(true)


def largest_level(levels: list[float], shares: list[float], allowed: float) -> float | None:
    """Where the cost first reaches `allowed`, between the levels by log-linear interpolation.

    None when the smallest level is too much already; the largest level when none is.
    """
    if shares[0] >= allowed:
        return None
    for (low, before), (high, after) in zip(
        zip(levels, shares, strict=True), zip(levels[1:], shares[1:], strict=True), strict=False
    ):
        if after >= allowed:
            part = (allowed - before) / (after - before)
            return math.exp(math.log(low) + part * (math.log(high) - math.log(low)))
    return levels[-1]
