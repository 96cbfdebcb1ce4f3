"""How many hidden units an mlp connector needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from saelink.config.schema import Config
from saelink.experiments.base import Done, Experiment, Result
from saelink.experiments.fits import fit
from saelink.job import Job


@dataclass
class HiddenSizeSettings:
    """Settings of the experiment hidden_size."""

    sizes: list[int] = field(default_factory=lambda: [2**power for power in range(1, 14)])
    """Numbers of hidden units."""


class HiddenSizeExperiment(Experiment):
    Settings = HiddenSizeSettings
    title = "mlp connector: error against the number of hidden units"

    def check(self, settings: HiddenSizeSettings) -> None:
        if not settings.sizes or any(size < 1 for size in settings.sizes):
            raise self.mistake(settings, "sizes", "give at least one, each at least 1")

    def fits(self, job: Job) -> dict[str, Config]:
        fits = {
            str(size): fit(
                job.cfg, "mlp", d_hidden=size, tokens=job.cfg.experiment.sweep_tokens, seed=job.cfg.experiment.seeds[0]
            )
            for size in self.own(job.cfg).sizes
        }
        return fits | {"exact linear": fit(job.cfg, "linear", "exact")}

    def make(self, job: Job, done: dict[str, Done]) -> Result:
        rows = [
            {
                "layer": job.cfg.layer,
                "connector": "exact linear" if label == "exact linear" else "mlp",
                "d_hidden": None if label == "exact linear" else int(label),
                "mse": result.metrics["mse"],
                "fvu": result.metrics["fvu"],
                "fvu_typical": result.metrics["fvu_typical"],
                "predicted": result.metrics["fraction_predicted"],
            }
            for label, result in done.items()
        ]

        def draw(figure: Any) -> None:
            axes = figure.subplots()
            chosen = [row for row in rows if row["d_hidden"] is not None]
            axes.plot([row["d_hidden"] for row in chosen], [row["fvu"] for row in chosen], "o-", label="mlp")
            axes.axhline(rows[-1]["fvu"], color="black", lw=1, ls="--", label="exact linear")
            axes.set(xscale="log", xlabel="hidden units", ylabel="FVU, test documents")
            axes.set_xscale("log", base=2)
            axes.set_title(f"mlp connector, layer {job.cfg.layer}", fontsize=10)
            axes.legend(fontsize=8)

        return Result(rows, draw=draw)
