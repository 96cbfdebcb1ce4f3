"""Cross-entropies that a connector's is compared with: the stage `ce`; shares recovered, with intervals."""

from __future__ import annotations

from typing import Any, TypedDict, cast

import torch

from saelink.interventions.oracle import OracleStage, spliced_recipe
from saelink.interventions.predictions import (
    CLEAN,
    Predictions,
    Replaced,
    by_documents,
    compared,
    prediction_figures,
)
from saelink.interventions.splice import Splice, first_latents, losses_need, mean_acts, spliced_tokens
from saelink.job import JobStage
from saelink.latents.rows import unpack
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.stage import Need

BASELINES = (CLEAN, "sae", "oracle", "mean", "zero", "oracle_with_error")

LOSSES_FILE, BESIDE_FILE = "losses.safetensors", "beside.safetensors"


class BaselinesFacts(TypedDict):
    """Mean losses in nats, by what is in the target hook's place."""

    tokens: int
    clean: float
    sae: float
    oracle: float
    mean: float
    zero: float
    oracle_with_error: float


class BaselinesStage(JobStage[BaselinesFacts]):
    """The next-token losses of everything a connector is compared with, on eval.ce_tokens test tokens.

    File `losses.safetensors`, each [sequences, context_size - 1] in nats: `clean`; at the target hook `sae` (its
    reconstruction), `oracle`, `mean` (the training mean of the acts) and `zero`; `oracle_with_error` has the SAE's
    own error added back. File `beside.safetensors`, of the same names and shape: `kl_<name>` and `top1_<name>`, the
    divergence from the clean prediction and whether the likeliest token is the clean one's.
    """

    name = "ce"
    version = 2

    def recipe(self) -> dict[str, Any]:
        return {**spliced_recipe(self.job.cfg), "tokens": self.job.cfg.eval.ce_tokens}

    def inputs(self) -> dict[str, str]:
        model = self.job.model.artifact.key
        return {**self.latents_inputs(), "model": model, "oracle": OracleStage(self.job).key}

    def about(self) -> str:
        return f"{self.job.about}, baselines"

    def need(self) -> Need:
        return losses_need(self.job, "use fewer tokens (eval.ce_tokens), or eval.ce=false")

    def make(self, draft: Draft) -> BaselinesFacts:
        job, sides = self.job, self.job.sides
        oracle = OracleStage(job).pull().tensors("latents.safetensors")
        test = spliced_tokens(job, job.cfg.eval.ce_tokens)
        with Splice(job, test, len(BASELINES)) as splice:
            true = first_latents(sides.target, len(test.ids))
            oracle_rows = unpack(oracle, sides.d_target).select(torch.arange(test.ids.numel()))
            shape = (*test.ids.shape, splice.sae.d_in)
            sae, oracle_acts = splice.decode(true), splice.decode(oracle_rows)
            found = compared(
                splice,
                {
                    "sae": Replaced(sae),
                    "oracle": Replaced(oracle_acts),
                    "mean": Replaced(mean_acts(job, splice.hook).expand(shape)),
                    "zero": Replaced(torch.zeros(1).expand(shape)),
                    "oracle_with_error": Replaced(oracle_acts - sae, added=True),
                },
            )
        assert set(found) == set(BASELINES)
        losses = {name: each.loss for name, each in found.items()}
        draft.save_tensors(LOSSES_FILE, losses)
        draft.save_tensors(
            BESIDE_FILE,
            {f"{called}_{name}": each[at] for name, each in found.items() for at, called in ((1, "kl"), (2, "top1"))},
        )
        means = {name: loss.double().mean().item() for name, loss in losses.items()}
        return cast("BaselinesFacts", {"tokens": test.ids.numel(), **means})


def baseline_predictions(artifact: Artifact[BaselinesFacts]) -> dict[str, Predictions]:
    """What the stage measured, by name."""
    losses, beside = artifact.tensors(LOSSES_FILE), artifact.tensors(BESIDE_FILE)
    return {name: Predictions(loss, beside[f"kl_{name}"], beside[f"top1_{name}"]) for name, loss in losses.items()}


def compared_figures(
    predictions: dict[str, Predictions], document: torch.Tensor, resamples: int
) -> dict[str, dict[str, float]]:
    """What ce_figures and prediction_figures say of each entry."""
    figures = ce_figures({name: found.loss for name, found in predictions.items()}, document, resamples)
    beside = prediction_figures(predictions, document, resamples)
    return {name: entry | beside[name] for name, entry in figures.items()}


def ce_figures(losses: dict[str, torch.Tensor], document: torch.Tensor, resamples: int) -> dict[str, dict[str, float]]:
    """Mean loss and ce_loss_recovered of every entry, with 95% intervals.

    recovered = (CE_zero - CE) / (CE_zero - CE_clean), recovered_mean the same from mean ablation. The intervals are
    from a paired bootstrap over documents: one resample of the documents is used for all entries. `losses` has at
    least clean, mean and zero, each [sequences, context_size - 1]; `document` is [sequences, context_size].
    """
    weights, mean = by_documents(document, resamples)

    def resampled(name: str) -> torch.Tensor:
        return mean(weights, losses[name])

    figures = {}
    for name, loss in losses.items():
        entry = {"ce": loss.double().mean().item()}
        for key, ablated in (("recovered", "zero"), ("recovered_mean", "mean")):
            gap = losses[ablated].double().mean() - losses["clean"].double().mean()
            entry[key] = ((losses[ablated].double().mean() - loss.double().mean()) / gap).item()
            draws = (resampled(ablated) - resampled(name)) / (resampled(ablated) - resampled("clean"))
            entry[f"{key}_low"], entry[f"{key}_high"] = draws.quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        cost = resampled(name) - resampled("clean")
        entry["cost"] = entry["ce"] - losses["clean"].double().mean().item()
        entry["cost_low"], entry["cost_high"] = cost.quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        figures[name] = entry
    return figures
