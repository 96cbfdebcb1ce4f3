"""percent_linear for the attention link: what attention writes, from the residual stream at the same token."""

from __future__ import annotations

from dataclasses import replace

from saelink.config.schema import Config
from saelink.experiments.fits import link_named
from saelink.experiments.percent_linear import PercentLinearExperiment


class AttentionExperiment(PercentLinearExperiment):
    title = "Percentage of attention's output latents that are linear in the same token's residual latents"

    def configured(self, cfg: Config) -> Config:
        return replace(cfg, link=link_named("attn"))

    @property
    def owner(self) -> str:
        return "percent_linear"
