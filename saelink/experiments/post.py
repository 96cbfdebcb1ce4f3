"""The original post's figures beside ours, in its own units.

The original's figures are those that its text and notebooks print ("Finding Sparse Linear Connections between Features
in LLMs", L. Riggs Smith, 2023), for layers 1 to 5 of pythia-70m-deduped. They were measured on training text; ours
are on held-out documents.
"""

from __future__ import annotations

from typing import Any

from saelink.activations.norms import NormsStage
from saelink.config.schema import Config, SubsetPart
from saelink.experiments.base import Done, Experiment, Result
from saelink.experiments.dense import dense_fit
from saelink.experiments.fits import fit, with_ce
from saelink.experiments.percent_linear import PercentLinearExperiment
from saelink.experiments.sparse_linear import sparse_alpha
from saelink.experiments.tables import Row, rows_of
from saelink.job import Job

ORIGINAL: dict[str, list[float]] = {
    "norm of resid_pre": [7.156, 9.030, 13.163, 15.099, 16.408],
    "norm of mlp_out": [4.255, 6.874, 9.667, 13.134, 54.193],
    "alive target latents": [1081, 772, 1319, 1606, 804],
    "percent linear": [78, 96, 97, 98, 99.1],
    "dense linear, MSE": [0.00169, 0.00651, 0.00351, 0.00483, 0.461],
    "dense mlp, MSE": [0.00081, 0.00186, 0.00309, 0.00312, 0.0340],
    "sparse linear, MSE / c": [0.00073, 0.00055, 0.00058, 0.00044, 0.00013],
    "sparse linear, L1": [0.623, 0.726, 0.639, 0.545, 0.388],
    "sparse mlp, MSE / c": [0.00277, 0.0170, 0.00816, 0.00599, 0.0192],
    "sparse mlp, L1": [1.79, 8.51, 2.98, 2.68, 7.56],
    "SAE connector, MSE / c": [0.0053, 0.0146, 0.0076, 0.0059, 0.0205],
    "SAE connector, L1": [1.78, 11.8, 4.3, 4.2, 10.6],
    "SAE connector, hidden L1": [0.81, 7.6, 4.9, 6.7, 43.3],
    "SAE connector, hidden L0": [33, 34, 16.5, 16.7, 35],
    "CE, model": [4.97, 4.97, 4.97, 4.97, 4.97],
    "CE, SAE": [5.20, 5.21, 5.24, 5.25, 5.34],
    "CE, dense mlp connector": [5.35, 5.40, 5.5, 5.43, 6.1],
    "CE, zero ablation": [5.76, 5.56, 5.84, 5.97, 8.34],
}
"""Figure -> layers 1 to 5."""

SAE_ALPHA = 4e-4


class PostExperiment(Experiment):
    title = "Our figures beside the original post's"
    version = 2

    def fits(self, job: Job) -> dict[str, Config]:
        seed, alpha = job.cfg.experiment.seeds[0], sparse_alpha(job)
        fits = {
            "exact linear": fit(job.cfg, "linear", "exact"),
            "dense linear": dense_fit(job, "linear", seed=seed),
            "dense mlp": with_ce(dense_fit(job, "mlp", seed=seed)),
            "SAE connector": fit(job.cfg, "sae", l1_alpha=SAE_ALPHA, seed=seed),
        }
        for part, subset in PercentLinearExperiment().parts(job).items():
            if part is SubsetPart.linear:
                fits["sparse linear"] = fit(job.cfg, "linear", l1_alpha=alpha, seed=seed, subset=subset)
                fits["sparse linear, exact"] = fit(job.cfg, "linear", "exact", l1_alpha=alpha, subset=subset)
            else:
                fits["sparse mlp"] = fit(job.cfg, "mlp", l1_alpha=alpha, seed=seed, subset=subset)
        return fits

    def starts_from(self) -> list[Experiment]:
        return [PercentLinearExperiment()]

    def needs(self, job: Job) -> dict[str, str]:
        return {"norms": NormsStage(job.cfg, job.store).key}

    def make(self, job: Job, done: dict[str, Done]) -> Result:
        ours: dict[str, float] = {}
        for row in NormsStage(job.cfg, job.store).pull().json("norms.json"):
            if row["layer"] == job.cfg.layer:
                ours[f"norm of {row['hook'].removeprefix('hook_')}"] = row["mean_norm"]
        ours["alive target latents"] = done["exact linear"].metrics["n_targets"]
        for row in rows_of(PercentLinearExperiment().run(job)):
            if row["rich"] == "mlp" and row["divided by"] == "post":
                ours["percent linear" if row["simple"] == "linear" else "percent linear, exact"] = row["percent"]
        for label, result in done.items():
            found, c = result.metrics, result.connector.facts["c"]
            if label in ("exact linear", "dense linear", "dense mlp"):
                ours[f"{label}, MSE"] = found["mse"]
            else:
                ours[f"{label}, MSE / c"] = found["mse"] / c
                ours[f"{label}, L1"] = found["l1"]
            if "hidden_l0" in found and label == "SAE connector":
                ours[f"{label}, hidden L1"], ours[f"{label}, hidden L0"] = found["hidden_l1"], found["hidden_l0"]
        ce = done["dense mlp"].metrics
        names = {"model": "clean", "SAE": "sae", "dense mlp connector": "connector", "zero ablation": "zero"}
        ours |= {f"CE, {name}": ce[f"ce_{entry}"] for name, entry in names.items()}
        ours["CE, oracle"] = ce["ce_oracle"]
        rows: list[Row] = []
        for figure in [*ORIGINAL, *(name for name in ours if name not in ORIGINAL)]:
            theirs = ORIGINAL.get(figure)
            original = theirs[job.cfg.layer - 1] if theirs is not None and 1 <= job.cfg.layer <= len(theirs) else None
            rows.append({"layer": job.cfg.layer, "figure": figure, "ours": ours.get(figure), "original": original})

        def draw(figure: Any) -> None:
            axes = figure.subplots()
            both = [row for row in rows if row["original"] and row["ours"] is not None]
            axes.barh([row["figure"] for row in both], [row["ours"] / row["original"] for row in both])
            axes.invert_yaxis()
            axes.axvline(1, color="black", lw=1)
            axes.set(xlabel="ours / the original's", xscale="log", title=f"Layer {job.cfg.layer}")
            axes.tick_params(axis="y", labelsize=7)

        text = (
            "  The original measured on training text, ours are on held-out documents. Its sparse linear and mlp\n"
            "  are on the linear latents and on the rest; percent linear divides by c_L."
        )
        for part, name in (("sparse linear", "linear"), ("sparse mlp", "not linear")):
            if part not in done:
                text += f"\n  No target latent is {name} by percent_linear, so the lines of {part} are empty."
        return Result(rows, draw=draw, text=text)
