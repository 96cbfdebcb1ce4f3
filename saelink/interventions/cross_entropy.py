"""Cross-entropies that a connector's is compared with: the stage `ce`; shares recovered, with intervals."""

from __future__ import annotations

from typing import Any

import torch

from saelink.config.schema import Config
from saelink.interventions.oracle import VERSION, about_link, link_inputs, oracle, oracle_plan, spliced_recipe
from saelink.interventions.splice import Splice, mean_acts, spliced_tokens, test_latents
from saelink.latents.link import pull_sides
from saelink.latents.rows import unpack
from saelink.runtime import device_of
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.recipe import Plan
from saelink.store.store import Store

BASELINES = ("clean", "sae", "oracle", "mean", "zero", "oracle_with_error")


def ce_plan(cfg: Config, store: Store) -> Plan:
    """Plan of the losses that a connector's are compared with, on eval.ce_tokens test tokens."""
    inputs = {**link_inputs(cfg, store), "oracle": oracle_plan(cfg, store).key}
    return Plan(
        "ce", VERSION, {**spliced_recipe(cfg), "tokens": cfg.eval.ce_tokens}, inputs, about_link(cfg) + ", baselines"
    )


def ce_baselines(cfg: Config, store: Store) -> Artifact:
    """Pull the next-token losses of everything a connector is compared with, on eval.ce_tokens test tokens.

    File `losses.safetensors`, each [sequences, context_size - 1] in nats: `clean`; at the target hook `sae` (its
    reconstruction), `oracle`, `mean` (the training mean of the acts) and `zero`; `oracle_with_error` has the SAE's
    own error added back.
    """
    plan = ce_plan(cfg, store)
    found = store.up_to_date(plan)
    if found is not None:
        return found
    sides = pull_sides(cfg, store)
    made = oracle(cfg, store)

    def make(draft: Draft) -> dict[str, Any]:
        test = spliced_tokens(cfg, store, sides, cfg.eval.ce_tokens)
        with Splice(cfg, store, sides, test, len(BASELINES)) as splice:
            true = test_latents(sides.target, len(test.ids))
            d_sae = sides.d_target
            oracle_rows = unpack(made.tensors("latents.safetensors"), d_sae).select(torch.arange(test.ids.numel()))
            zero = torch.zeros(*test.ids.shape, splice.sae.d_in)
            losses = {
                "clean": splice.losses(),
                "sae": splice.losses(splice.decode(true)),
                "oracle": splice.losses(splice.decode(oracle_rows)),
                "mean": splice.losses(zero + mean_acts(cfg, store, splice.hook)),
                "zero": splice.losses(zero),
                "oracle_with_error": splice.losses_of_change(splice.decode(oracle_rows) - splice.decode(true)),
            }
        assert set(losses) == set(BASELINES)
        draft.save_tensors("losses.safetensors", losses)
        return {"tokens": test.ids.numel(), **{name: loss.double().mean().item() for name, loss in losses.items()}}

    return store.build(plan, make, device_of(cfg))


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
