"""percent_linear for the attention link: what attention writes, from the residual stream at the same token."""

from __future__ import annotations

from dataclasses import replace

from saelink.config import Config
from saelink.experiments import percent_linear
from saelink.experiments.base import link_named


class Experiment(percent_linear.Experiment):
    title = "Percentage of attention's output latents that are linear in the same token's residual latents"

    def configured(self, cfg: Config) -> Config:
        return replace(cfg, link=link_named("attn"))
