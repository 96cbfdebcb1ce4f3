"""Is a linear map with a few hidden units beside it better than either alone, and how much of a target is linear then?

The linear connector is the exact lasso; of the two with hidden units all that leads into a target is exact, given the
hidden units that proximal Adam finds. The penalties of the three don't weigh the same (an mlp's weights are at half
price), so compare them at equal numbers of edges.
"""

from __future__ import annotations

from typing import Any

import torch

from saelink.config.schema import Config
from saelink.experiments.base import Done, Experiment, Result
from saelink.experiments.fits import fit
from saelink.experiments.tables import Row, paragraph
from saelink.job import Job

SOLVED_BY = {"linear": "exact", "mlp": "readout", "skip": "readout"}


class SkipExperiment(Experiment):
    title = "Linear maps, mlps and both side by side: error against edges, the linear share of every target"

    def alphas(self, cfg: Config) -> list[float]:
        """The grid, and the penalty of the sparse experiments."""
        sparse = cfg.experiment.sparse_alpha
        return sorted({*cfg.experiment.l1_grid, 8e-4 if sparse == "elbow" else float(sparse)})

    def fits(self, job: Job) -> dict[str, Config]:
        settings: dict[str, Any] = {"tokens": job.cfg.experiment.tokens, "seed": job.cfg.experiment.seeds[0]}
        return {
            f"{connector} {alpha:g}": fit(
                job.cfg, connector, solver, l1_alpha=alpha, **(settings if solver == "readout" else {})
            )
            for alpha in self.alphas(job.cfg)
            for connector, solver in SOLVED_BY.items()
        }

    def make(self, job: Job, done: dict[str, Done]) -> Result:
        rows: list[Row] = []
        shares: dict[float, torch.Tensor] = {}
        for result in done.values():
            figures, alpha = result.metrics, float(result.cfg.l1_alpha)
            if "linear" in (latents := result.latents()):
                shares[alpha] = latents["linear"][~latents["linear"].isnan()]
            rows.append(
                {
                    "layer": job.cfg.layer,
                    "connector": result.cfg.connector.name,
                    "l1_alpha": alpha,
                    "mse": figures["mse"],
                    "fvu": figures["fvu"],
                    "fvu_median": figures["fvu_median_latent"],
                    "predicted": figures["fraction_predicted"],
                    "n_edges": figures["n_edges"],
                    "hidden_l0": figures.get("hidden_l0"),
                    "linear_share": figures.get("linear_share_median"),
                    "no_hidden": figures.get("n_targets_linear"),
                }
            )
        rows.sort(key=lambda row: list(SOLVED_BY).index(row["connector"]))
        said = [paragraph("What the linear part explains of what skip explains, 10% / median / 90% of targets:")]
        for alpha, share in shares.items():
            if len(share):
                low, middle, high = share.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=share.dtype)).tolist()
                said.append(f"  {low:.0%} / {middle:.0%} / {high:.0%} at l1_alpha {alpha:g}")

        def draw(figure: Any) -> None:
            left, right = figure.subplots(1, 2)
            for connector in SOLVED_BY:
                chosen = [row for row in rows if row["connector"] == connector and row["n_edges"]]
                left.plot([row["n_edges"] for row in chosen], [row["fvu"] for row in chosen], "o-", label=connector)
            left.set(xscale="log", xlabel="edges", ylabel="FVU, test documents")
            left.tick_params(axis="x", which="minor", labelbottom=False)
            left.legend(fontsize=8)
            for alpha, share in shares.items():
                right.plot(share.sort().values, torch.linspace(0, 1, len(share)), label=f"l1_alpha {alpha:g}")
            right.set(xlabel="linear share of what skip explains", ylabel="share of targets below")
            right.legend(fontsize=8)
            figure.suptitle(
                f"A linear map and {job.cfg.experiment.d_hidden} hidden units, layer {job.cfg.layer}", fontsize=10
            )

        shown = [name for name in rows[0] if name != "mse"]
        return Result(rows, shown, draw, "\n".join(said))
