"""The oracle, the true computation between the SAEs: the stage `oracle`."""

from __future__ import annotations

from typing import Any

import torch

from saelink.config.schema import Config
from saelink.interventions.splice import decoded, put, spliced_tokens, test_latents, test_units
from saelink.latents.encode import encode_plan
from saelink.latents.link import Sides, link_of, load_split, pull_sides
from saelink.latents.metrics import ErrorSums, in_steps
from saelink.latents.rows import Rows, pack
from saelink.model.describe import model_info
from saelink.model.load import load_bridge
from saelink.progress import Progress
from saelink.runtime import device_of, torch_dtype
from saelink.saes.load import pull_sae
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.recipe import Plan
from saelink.store.store import Store

VERSION = 1


def link_inputs(cfg: Config, store: Store) -> dict[str, str]:
    link = link_of(cfg, store)
    inputs = {f"source{i}": encode_plan(cfg, store, hook).key for i, hook in enumerate(link.sources)}
    inputs["target"] = encode_plan(cfg, store, link.target).key
    return inputs | {"model": model_info(cfg, store).artifact.key}


def about_link(cfg: Config) -> str:
    return f"{cfg.model.label} layer {cfg.layer} {cfg.link.name}"


def spliced_recipe(cfg: Config) -> dict[str, Any]:
    return {
        "drop_positions": cfg.data.drop_positions,
        "max_norm_ratio": cfg.data.max_norm_ratio,
        "latent_scale": cfg.latent_scale.name,
        "model_dtype": cfg.model.dtype.name,
    }


def oracle_plan(cfg: Config, store: Store) -> Plan:
    """Plan of the oracle's latents."""
    return Plan("oracle", VERSION, spliced_recipe(cfg), link_inputs(cfg, store), about_link(cfg))


def oracle(cfg: Config, store: Store) -> Artifact:
    """Pull the oracle: the true computation between the SAEs, on all test tokens.

    The model runs with its source hooks replaced by what the source SAEs make of them, and the target SAE encodes
    what arrives at the target hook. Files: `latents.safetensors` (packed rows, all positions), `errors.safetensors`
    (by target latent, in scaled units: `mse`, and `mse_typical` without massive tokens). Facts: mse, fvu over all.
    """
    plan = oracle_plan(cfg, store)
    found = store.up_to_date(plan)
    if found is not None:
        return found
    sides = pull_sides(cfg, store)
    return store.build(plan, lambda draft: _oracle(cfg, store, sides, draft), device_of(cfg))


def _oracle(cfg: Config, store: Store, sides: Sides, draft: Draft) -> dict[str, Any]:
    device = device_of(cfg)
    info, link = model_info(cfg, store), link_of(cfg, store)
    bridge = load_bridge(cfg, info, device)
    test = spliced_tokens(cfg, store, sides)
    saes = [pull_sae(cfg, store, hook) for hook in link.sources]
    target_sae = pull_sae(cfg, store, link.target).to(device, torch_dtype(cfg.sae.dtype))
    n = len(test.ids)
    rebuilt = [
        decoded(sae.to("cpu", torch.float32), test_latents(side, n), test_units(side, n), test.ids.shape)
        for sae, side in zip(saes, sides.sources, strict=True)
    ]
    rows = max(cfg.runtime.forward_tokens // test.ids.shape[1], 1)
    stop = max(int(hook.split(".")[1]) for hook in [*link.sources, link.target]) + 1
    parts: list[Rows] = []

    def keep(acts: torch.Tensor, hook: Any = None) -> torch.Tensor:
        row, latent, value = target_sae.encode_sparse(acts.reshape(-1, target_sae.d_in))  # heads side by side
        lengths = torch.bincount(row, minlength=acts.shape[0] * acts.shape[1])
        offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        parts.append(Rows(offsets, latent, value.float(), target_sae.d_sae).to("cpu"))
        return acts

    with Progress("oracle", test.ids.numel()) as bar, torch.inference_mode():
        for first in range(0, len(test.ids), rows):
            part = slice(first, first + rows)
            where = test.counts[part].to(device)
            hooks = [(hook, put(new[part].to(device), where)) for hook, new in zip(link.sources, rebuilt, strict=True)]
            bridge.run_with_hooks(
                test.ids[part].to(device), fwd_hooks=[*hooks, (link.target, keep)], stop_at_layer=stop
            )
            bar.advance(test.ids[part].numel())
    latents = Rows.stack(parts)
    draft.save_tensors("latents.safetensors", pack(latents))
    counted = load_split(cfg, sides, "test")
    ours = latents.select(counted.row).scaled(1 / sides.scales[-1])
    sums = {True: ErrorSums(sides.d_target), False: ErrorSums(sides.d_target)}
    for typical, part in sums.items():
        rows_here = (counted.typical == typical).nonzero().squeeze(1)
        predicted, true = ours.select(rows_here), counted.target.select(rows_here)
        for mine, theirs in zip(in_steps(predicted), in_steps(true), strict=True):
            part.add(mine.dense(), theirs)
    both = sums[True] + sums[False]
    errors = {"mse": both.squared_error / both.n, "mse_typical": sums[True].squared_error / max(sums[True].n, 1)}
    draft.save_tensors("errors.safetensors", errors)
    return {"n_tokens": both.n, "mse": both.mse(), "fvu": both.fvu()}
