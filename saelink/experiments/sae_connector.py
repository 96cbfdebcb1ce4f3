"""The connector that is an SAE itself: few edges and few hidden units at a time, over penalties."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from saelink.config.schema import Config
from saelink.connectors.sae import HiddenL1
from saelink.experiments.base import Done, Experiment, Result
from saelink.experiments.fits import fit
from saelink.job import Job


@dataclass
class SAEConnectorSettings:
    """Settings of the experiment sae_connector."""

    alphas: list[float] = field(default_factory=lambda: [1e-5, 4e-5, 7e-5, 1e-4, 4e-4, 7e-4, 1e-3, 4e-3, 7e-3, 1e-2])
    """The post's penalties."""
    bias_alphas: list[float] | None = None
    """The penalties that are also tried with a hidden bias; null tries all."""
    hidden_l1: str = "as_is"
    """Units of the hidden penalty, as_is or sqrt_c."""


class SAEConnectorExperiment(Experiment):
    Settings = SAEConnectorSettings
    title = "SAE connector: error, L1, hidden L1 and hidden L0 over penalties, with and without a hidden bias"

    def check(self, settings: SAEConnectorSettings) -> None:
        if not settings.alphas:
            raise self.mistake(settings, "alphas", "give at least one")
        for name in ("alphas", "bias_alphas"):
            if any(alpha < 0 for alpha in getattr(settings, name) or []):
                raise self.mistake(settings, name, "penalties are numbers >= 0")
        if settings.hidden_l1 not in ("as_is", "sqrt_c"):
            raise self.mistake(settings, "hidden_l1", "one of as_is, sqrt_c")

    def fits(self, job: Job) -> dict[str, Config]:
        shared, settings = job.cfg.experiment, self.own(job.cfg)
        with_bias = settings.alphas if settings.bias_alphas is None else settings.bias_alphas
        fits = {}
        for hidden_bias, alphas in ((False, settings.alphas), (True, with_bias)):
            for alpha in alphas:
                label = f"{alpha:g}{' + hidden bias' if hidden_bias else ''}"
                fits[label] = fit(
                    job.cfg,
                    "sae",
                    "proximal",
                    l1_alpha=alpha,
                    tokens=shared.sweep_tokens,
                    seed=shared.seeds[0],
                    hidden_bias=hidden_bias,
                    hidden_l1=HiddenL1[settings.hidden_l1],
                )
        return fits

    def make(self, job: Job, done: dict[str, Done]) -> Result:
        rows = [
            {
                "layer": job.cfg.layer,
                "hidden_bias": "bias" in label,
                "l1_alpha": result.cfg.l1_alpha,
                "mse": result.metrics["mse"],
                "fvu": result.metrics["fvu"],
                "l1": result.metrics["l1"],
                "n_edges": result.metrics["n_edges"],
                "hidden_l1": result.metrics["hidden_l1"],
                "hidden_l0": result.metrics["hidden_l0"],
            }
            for label, result in done.items()
        ]

        def draw(figure: Any) -> None:
            for axes, column in zip(figure.subplots(1, 4), ("mse", "l1", "hidden_l1", "hidden_l0"), strict=True):
                for hidden_bias, style in ((False, "o-"), (True, "s--")):
                    chosen = [row for row in rows if row["hidden_bias"] is hidden_bias]
                    axes.plot(
                        [row["l1_alpha"] for row in chosen],
                        [row[column] for row in chosen],
                        style,
                        ms=4,
                        label="hidden bias" if hidden_bias else "no hidden bias",
                    )
                axes.set(xscale="log", xlabel="l1_alpha", title=column)
            figure.axes[0].legend(fontsize=7)
            figure.suptitle(
                f"SAE connector, {job.cfg.experiment.d_hidden} hidden units, layer {job.cfg.layer}", fontsize=10
            )

        return Result(rows, draw=draw, text="  hidden_l0 and hidden_l1: per test token, over the hidden units.")
