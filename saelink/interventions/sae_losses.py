"""What an SAE costs the model: cross-entropies with its reconstruction at its hook, the stage `sae_losses`."""

from __future__ import annotations

from typing import Any, TypedDict, cast

import torch

from saelink.activations.cache import CacheStage
from saelink.interventions.oracle import spliced_recipe
from saelink.interventions.splice import Splice, losses_need, mean_acts, spliced_tokens
from saelink.job import JobStage
from saelink.store.draft import Draft
from saelink.store.stage import Need


class SAELossesFacts(TypedDict):
    """Mean losses in nats, by what is in the hook's place."""

    tokens: int
    clean: float
    sae: float
    mean: float
    zero: float


class SAELossesStage(JobStage[SAELossesFacts]):
    """The next-token losses with an SAE's reconstruction in its hook's place, on eval.ce_tokens test tokens.

    The hook is the job's target. File `losses.safetensors`, each [sequences, context_size - 1] in nats: `clean`, `sae`,
    `mean` (the training mean of the acts) and `zero`. At hook_resid_mid the whole stream is replaced, not only what the
    MLP reads.
    """

    name = "sae_losses"
    version = 1

    def recipe(self) -> dict[str, Any]:
        cfg = self.job.cfg
        return {**spliced_recipe(cfg), "hook_name": self.job.link.target, "tokens": cfg.eval.ce_tokens}

    def inputs(self) -> dict[str, str]:
        job = self.job
        acts = CacheStage(job.cfg, job.store, job.link.target).key
        return {"target": self.latents_inputs()["target"], "acts": acts, "model": job.model.artifact.key}

    def about(self) -> str:
        cfg = self.job.cfg
        return f"{cfg.model.label} {self.job.link.target}, SAE {cfg.sae.name} of {cfg.sae.d_sae} latents"

    def need(self) -> Need:
        return losses_need(self.job, "use fewer tokens (eval.ce_tokens)")

    def make(self, draft: Draft) -> SAELossesFacts:
        job, hook = self.job, self.job.link.target
        test = spliced_tokens(job, job.cfg.eval.ce_tokens)
        with Splice(job, test, 4) as splice:
            losses = splice.losses_of_stream if hook.endswith(".hook_resid_mid") else splice.losses
            zero = torch.zeros(*test.ids.shape, splice.sae.d_in)
            found = {
                "clean": splice.losses(),
                "sae": losses(splice.decode(splice.true_latents())),
                "mean": losses(zero + mean_acts(job, hook)),
                "zero": losses(zero),
            }
        draft.save_tensors("losses.safetensors", found)
        means = {name: loss.double().mean().item() for name, loss in found.items()}
        return cast("SAELossesFacts", {"tokens": test.ids.numel(), **means})
