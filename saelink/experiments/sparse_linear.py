"""The sparse linear connector of the linear latents, debiased; the mlp beside it on the very same targets."""

from __future__ import annotations

from typing import Any

from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.experiments.base import Done, Experiment, Result
from saelink.experiments.fits import fit
from saelink.experiments.pareto import ParetoExperiment
from saelink.experiments.percent_linear import PercentLinearExperiment
from saelink.fit.train import fitted_connector
from saelink.job import Job


def sparse_alpha(job: Job) -> float:
    """experiment.sparse_alpha; `elbow` is the one that pareto finds for the exact linear connector."""
    chosen = job.cfg.experiment.sparse_alpha
    if chosen != "elbow":
        return float(chosen)
    found = ParetoExperiment().run(job).facts.get("elbows", {}).get("linear")
    if found is None:
        raise SaelinkError("experiment.sparse_alpha=elbow: pareto finds no elbow; give more penalties or a number")
    return found


class SparseLinearExperiment(Experiment):
    title = "Sparse linear connectors of the linear latents, with weights refitted on their support"

    def fits(self, job: Job) -> dict[str, Config]:
        alpha, tokens = sparse_alpha(job), job.cfg.experiment.sweep_tokens
        fits = {}
        for part, subset in PercentLinearExperiment().parts(job).items():
            fits[f"linear, {part.name}"] = fit(job.cfg, "linear", "exact", l1_alpha=alpha, subset=subset)
            fits[f"linear debiased, {part.name}"] = fit(
                job.cfg, "linear", "exact", l1_alpha=alpha, subset=subset, debias=True
            )
            fits[f"mlp, {part.name}"] = fit(
                job.cfg,
                "mlp",
                "proximal",
                l1_alpha=alpha,
                subset=subset,
                tokens=tokens,
                seed=job.cfg.experiment.seeds[0],
            )
        return fits

    def starts_from(self) -> list[Experiment]:
        return [PercentLinearExperiment()]

    def needs(self, job: Job) -> dict[str, str]:
        return {"pareto": ParetoExperiment().plan(job).key} if job.cfg.experiment.sparse_alpha == "elbow" else {}

    def make(self, job: Job, done: dict[str, Done]) -> Result:
        alpha = sparse_alpha(job)
        rows, edges_per_output = [], {}
        for label, result in done.items():
            per_output = fitted_connector(result.connector).edge_sums().edges
            edges_per_output[label] = per_output.tolist()
            name, part = label.split(", ")
            rows.append(
                {
                    "layer": job.cfg.layer,
                    "targets": part,
                    "connector": name,
                    "n_targets": result.metrics["n_targets"],
                    "mse": result.metrics["mse"],
                    "fvu": result.metrics["fvu"],
                    "l1": result.metrics["l1"],
                    "n_edges": result.metrics["n_edges"],
                    "edges_mean": per_output.double().mean().item(),
                    "edges_median": per_output.double().median().item(),
                }
            )
        lines = [f"  l1_alpha {alpha:g}; edges per output (mlp: from hidden units)."]
        if "linear debiased, linear" in done:
            circuits = done["linear debiased, linear"].evaluation.file("circuits.txt").read_text("utf-8").splitlines()
            lines += ["  Best predicted linear latents, debiased weights:", "", *(f"  {line}" for line in circuits)]

        def draw(figure: Any) -> None:
            axes = figure.subplots()
            for label in (label for label in ("linear, linear", "linear, rest") if label in edges_per_output):
                most = max(edges_per_output[label])
                axes.hist(edges_per_output[label], bins=range(0, most + 2, max(most // 60, 1)), alpha=0.6, label=label)
            axes.set(xlabel="edges into a target latent", ylabel="target latents", yscale="log")
            axes.set_title(f"Exact lasso at {alpha:g}, layer {job.cfg.layer}", fontsize=10)
            axes.legend(fontsize=8)

        return Result(rows, draw=draw, text="\n".join(lines))
