"""The four connectors without a penalty, beside what bounds them: exact optimum, mean predictor, oracle."""

from __future__ import annotations

from typing import Any

import torch

from saelink.config.schema import Config
from saelink.evidence.baselines import mean_predictor, variance
from saelink.experiments.base import Done, Experiment, Result
from saelink.experiments.fits import fit
from saelink.experiments.tables import Row
from saelink.fit.train import HISTORY_FILE, TrainStage
from saelink.interventions.oracle import OracleStage
from saelink.job import Job
from saelink.latents.link import load_split

KINDS = ("linear", "nonlinear", "mlp", "two_nonlinear")


def dense_fit(job: Job, kind: str, bias: bool = False, seed: int = 0) -> Config:
    """One of the four connectors by Adam at l1_alpha 0.

    Those with a relu on their output start from the fitted map without it: nonlinear from the exact linear one,
    two_nonlinear from the mlp. From a random start many of their outputs die.
    """
    tokens = job.cfg.experiment.tokens
    starts = {
        "nonlinear": lambda: fit(job.cfg, "linear", "exact", bias=bias),
        "two_nonlinear": lambda: dense_fit(job, "mlp", bias, seed),
    }
    if kind in starts:
        start = TrainStage(job.at(starts[kind]())).key
        return fit(job.cfg, kind, bias=bias, seed=seed, tokens=tokens, init=start)
    return fit(job.cfg, kind, bias=bias, seed=seed, tokens=tokens)


class DenseExperiment(Experiment):
    title = "Dense connectors: error on test documents beside the exact optimum, the mean and the oracle"

    def fits(self, job: Job) -> dict[str, Config]:
        fits: dict[str, Config] = {}
        for bias in (False, True):
            suffix = " + bias" if bias else ""
            fits[f"exact linear{suffix}"] = fit(job.cfg, "linear", "exact", bias=bias)
            for seed in job.cfg.experiment.seeds:
                for kind in KINDS:
                    fits[f"{kind}{suffix}, seed {seed}"] = dense_fit(job, kind, bias, seed)
        return fits

    def needs(self, job: Job) -> dict[str, str]:
        return {"oracle": OracleStage(job).key}

    def make(self, job: Job, done: dict[str, Done]) -> Result:
        rows = []
        for label, result in done.items():
            found = result.metrics
            rows.append(
                {
                    "layer": job.cfg.layer,
                    "connector": label.split(",")[0],
                    "seed": result.cfg.seed if "seed" in label else None,
                    "mse": found["mse"],
                    "fvu": found["fvu"],
                    "fvu_typical": found["fvu_typical"],
                    "fvu_median": found["fvu_median_latent"],
                    "predicted": found["fraction_predicted"],
                    "dead_outputs": found.get("dead_outputs"),
                }
            )
        rows += self._bounds(job, done)
        curves = {
            label: result.connector.json(HISTORY_FILE)
            for label, result in done.items()
            if label.endswith(f"seed {job.cfg.experiment.seeds[0]}") and "bias" not in label
        }
        lines = {row["connector"]: row["mse"] for row in rows if row["connector"] in ("exact linear", "mean", "oracle")}

        def draw(figure: Any) -> None:
            axes = figure.subplots()
            for label, curve in curves.items():
                name = label.split(",")[0]
                axes.plot([p["tokens"] for p in curve], [p["validation_mse"] for p in curve], "o-", ms=3, label=name)
            for (name, mse), style in zip(lines.items(), ("--", ":", "-."), strict=False):
                axes.axhline(mse, color="black", lw=1, ls=style, label=f"{name} (test)")
            axes.set(xlabel="training tokens", ylabel="MSE, validation documents", yscale="log")
            axes.set_title(f"Dense connectors, layer {job.cfg.layer}, {job.cfg.link.name}", fontsize=10)
            axes.legend(fontsize=8)

        text = (
            "  fvu_typical leaves out massive activations; predicted: share of target latents with FVU < .5."
            "\n  nonlinear goes on from exact linear, two_nonlinear from the mlp."
        )
        return Result(rows, draw=draw, text=text)

    def _bounds(self, job: Job, done: dict[str, Done]) -> list[Row]:
        """Mean predictor and oracle on the same tokens and the same target latents."""
        sides = job.sides
        ids = next(iter(done.values())).connector.tensors("connector.safetensors")["target_ids"]
        training, test = load_split(job.cfg, sides, "train", ids), load_split(job.cfg, sides, "test", ids)
        typical = test.subset(test.typical)
        made = OracleStage(job).pull().tensors("errors.safetensors")
        errors = {
            "mean": (mean_predictor([training], test), mean_predictor([training], typical)),
            "oracle": (made["mse"][ids], made["mse_typical"][ids]),
        }
        rows = []
        for name, (mse, mse_typical) in errors.items():
            total = variance(test)
            by_latent = (mse / total)[total > 0]
            rows.append(
                {
                    "layer": job.cfg.layer,
                    "connector": name,
                    "seed": None,
                    "mse": mse.mean().item(),
                    "fvu": (mse.sum() / total.sum()).item(),
                    "fvu_typical": (mse_typical.sum() / variance(typical).sum()).item(),
                    "fvu_median": by_latent.median().item(),
                    "predicted": (by_latent < 0.5).double().mean().item(),
                    "dead_outputs": None,
                }
            )
        assert torch.isfinite(torch.tensor([row["fvu"] for row in rows])).all()
        return rows
