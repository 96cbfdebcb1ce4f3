"""Cross-entropies that a connector's is compared with: the stage `ce`; shares recovered, with intervals."""

from __future__ import annotations

from typing import Any, TypedDict, cast

import torch

from saelink import memory
from saelink.interventions.oracle import OracleStage, spliced_recipe
from saelink.interventions.splice import LOGITS_TOKENS, Splice, first_latents, mean_acts, spliced_tokens
from saelink.job import JobStage
from saelink.latents.rows import unpack
from saelink.model.dimensions import size_of
from saelink.store.draft import Draft
from saelink.store.stage import Need

BASELINES = ("clean", "sae", "oracle", "mean", "zero", "oracle_with_error")


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
    own error added back.
    """

    name = "ce"
    version = 1

    def recipe(self) -> dict[str, Any]:
        return {**spliced_recipe(self.job.cfg), "tokens": self.job.cfg.eval.ce_tokens}

    def inputs(self) -> dict[str, str]:
        model = self.job.model.artifact.key
        return {**self.latents_inputs(), "model": model, "oracle": OracleStage(self.job).key}

    def about(self) -> str:
        return f"{self.job.about}, baselines"

    def need(self) -> Need:
        job, context = self.job, self.job.cfg.data.context_size
        size, target = size_of(job.cfg.model, job.model.artifact), job.sides.sizes[1]
        needed = memory.losses(size, target, job.cfg.eval.ce_tokens, max(LOGITS_TOKENS, context), context)
        return Need(needed, "use fewer tokens (eval.ce_tokens), or eval.ce=false")

    def make(self, draft: Draft) -> BaselinesFacts:
        job, sides = self.job, self.job.sides
        oracle = OracleStage(job).pull().tensors("latents.safetensors")
        test = spliced_tokens(job, job.cfg.eval.ce_tokens)
        with Splice(job, test, len(BASELINES)) as splice:
            true = first_latents(sides.target, len(test.ids))
            oracle_rows = unpack(oracle, sides.d_target).select(torch.arange(test.ids.numel()))
            zero = torch.zeros(*test.ids.shape, splice.sae.d_in)
            losses = {
                "clean": splice.losses(),
                "sae": splice.losses(splice.decode(true)),
                "oracle": splice.losses(splice.decode(oracle_rows)),
                "mean": splice.losses(zero + mean_acts(job, splice.hook)),
                "zero": splice.losses(zero),
                "oracle_with_error": splice.losses_of_change(splice.decode(oracle_rows) - splice.decode(true)),
            }
        assert set(losses) == set(BASELINES)
        draft.save_tensors("losses.safetensors", losses)
        means = {name: loss.double().mean().item() for name, loss in losses.items()}
        return cast("BaselinesFacts", {"tokens": test.ids.numel(), **means})


def ce_figures(losses: dict[str, torch.Tensor], document: torch.Tensor, resamples: int) -> dict[str, dict[str, float]]:
    """Mean loss and ce_loss_recovered of every entry, with 95% intervals.

    recovered = (CE_zero - CE) / (CE_zero - CE_clean), recovered_mean the same from mean ablation. The intervals are
    from a paired bootstrap over documents: one resample of the documents is used for all entries. `losses` has at
    least clean, mean and zero, each [sequences, context_size - 1]; `document` is [sequences, context_size].
    """
    owner = document[:, 1:].flatten().unique(return_inverse=True)[1]
    n = int(owner.max()) + 1
    by_document = {
        name: torch.zeros(n, dtype=torch.float64).index_add_(0, owner, loss.flatten().double())
        for name, loss in losses.items()
    }
    size = torch.bincount(owner, minlength=n).double()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(n, (resamples, n), generator=generator)
    weights = torch.stack([torch.bincount(row, minlength=n) for row in drawn]).double()

    def resampled(name: str) -> torch.Tensor:
        return (weights @ by_document[name]) / (weights @ size)

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
