"""How many hidden units an mlp connector needs."""

from __future__ import annotations

from typing import Any

from saelink.config.schema import Config
from saelink.experiments.base import Done, Experiment, Result
from saelink.experiments.fits import fit
from saelink.store.store import Store


class HiddenSizeExperiment(Experiment):
    title = "mlp connector: error against the number of hidden units"

    def fits(self, cfg: Config, store: Store) -> dict[str, Config]:
        fits = {
            str(size): fit(cfg, "mlp", d_hidden=size, tokens=cfg.experiment.sweep_tokens, seed=cfg.experiment.seeds[0])
            for size in cfg.experiment.hidden_sizes
        }
        return fits | {"exact linear": fit(cfg, "linear", "exact")}

    def make(self, cfg: Config, store: Store, done: dict[str, Done]) -> Result:
        rows = [
            {
                "layer": cfg.layer,
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
            axes.set_title(f"mlp connector, layer {cfg.layer}", fontsize=10)
            axes.legend(fontsize=8)

        return Result(rows, draw=draw)
