"""The oracle, the true computation between the SAEs: the stage `oracle`."""

from __future__ import annotations

from typing import Any, TypedDict

import torch

from saelink import memory
from saelink.config.schema import Config
from saelink.interventions.splice import decoded, first_latents, first_units, put, spliced_tokens
from saelink.job import Job, JobStage
from saelink.latents.link import load_split
from saelink.latents.metrics import ErrorSums, in_steps
from saelink.latents.rows import Rows, pack
from saelink.model.load import load_bridge
from saelink.runtime import torch_dtype
from saelink.saes.load import pull_sae
from saelink.store.draft import Draft
from saelink.store.stage import Need


class OracleFacts(TypedDict):
    n_tokens: int
    mse: float
    """Per target latent, in scaled units,"""
    fvu: float
    """over all target latents."""


def spliced_recipe(cfg: Config) -> dict[str, Any]:
    """The settings that what is spliced into the model depends on."""
    return {
        "drop_positions": cfg.data.drop_positions,
        "max_norm_ratio": cfg.data.max_norm_ratio,
        "latent_scale": cfg.latent_scale.name,
        "model_dtype": cfg.model.dtype.name,
    }


class OracleStage(JobStage[OracleFacts]):
    """The oracle: the true computation between the SAEs, on all test or validation tokens.

    The model runs with its source hooks replaced by what the source SAEs make of them, and the target SAE encodes
    what arrives at the target hook. Files: `latents.safetensors` (packed rows, all positions), `errors.safetensors`
    (by target latent, in scaled units: `mse`, and `mse_typical` without massive tokens).
    """

    name = "oracle"
    version = 1

    def __init__(self, job: Job, split: str = "test"):
        super().__init__(job)
        self.split = split

    def recipe(self) -> dict[str, Any]:
        return spliced_recipe(self.job.cfg) | ({} if self.split == "test" else {"split": self.split})

    def inputs(self) -> dict[str, str]:
        return {**self.latents_inputs(), "model": self.job.model.artifact.key}

    def about(self) -> str:
        return self.job.about

    def need(self) -> Need:
        job = self.job
        facts, step = job.sides.target.facts, job.cfg.runtime.forward_tokens
        n = facts["sequences"][self.split] * facts["context_size"]
        needed = memory.oracle(job.size, *job.sides.sizes, n, step, facts["context_size"])
        return Need(needed, "use a smaller runtime.forward_tokens, or less text (data.max_tokens)")

    def make(self, draft: Draft) -> OracleFacts:
        job = self.job
        info, link, sides, device = job.model, job.link, job.sides, job.device
        bridge = load_bridge(job.cfg, info, device)
        tokens = spliced_tokens(job, split=self.split)
        saes = [pull_sae(job.cfg, job.store, hook) for hook in link.sources]
        target_sae = pull_sae(job.cfg, job.store, link.target).to(device, torch_dtype(job.cfg.sae.dtype))
        n = len(tokens.ids)
        rebuilt = [
            decoded(
                sae.to("cpu", torch.float32),
                first_latents(side, n, self.split),
                first_units(side, n, self.split),
                tokens.ids.shape,
            )
            for sae, side in zip(saes, job.encoded.sources, strict=True)
        ]
        rows = max(job.cfg.runtime.forward_tokens // tokens.ids.shape[1], 1)
        stop = max(int(hook.split(".")[1]) for hook in [*link.sources, link.target]) + 1
        parts: list[Rows] = []

        def keep(acts: torch.Tensor, **_: object) -> torch.Tensor:
            row, latent, value = target_sae.encode_sparse(acts.reshape(-1, target_sae.d_in))  # heads side by side
            n_tokens = acts.shape[0] * acts.shape[1]
            parts.append(Rows.from_pairs(row, latent, value.float(), n=n_tokens, d=target_sae.d_sae).to("cpu"))
            return acts

        with job.observer.progress("oracle", tokens.ids.numel()) as bar, torch.inference_mode():
            for first in range(0, len(tokens.ids), rows):
                part = slice(first, first + rows)
                where = tokens.counts[part].to(device)
                hooks = [
                    (hook, put(new[part].to(device), where)) for hook, new in zip(link.sources, rebuilt, strict=True)
                ]
                bridge.run_with_hooks(
                    tokens.ids[part].to(device), fwd_hooks=[*hooks, (link.target, keep)], stop_at_layer=stop
                )
                bar.advance(tokens.ids[part].numel())
        latents = Rows.stack(parts)
        draft.save_tensors("latents.safetensors", pack(latents))
        counted = load_split(job.cfg, sides, self.split)
        ours = latents.select(counted.row).scaled(1 / sides.scales[-1])
        sums = {True: ErrorSums(sides.d_target), False: ErrorSums(sides.d_target)}
        for typical, part in sums.items():
            rows_here = (counted.typical == typical).nonzero().squeeze(1)
            predicted, true = ours.select(rows_here), counted.target.select(rows_here)
            for mine, theirs in in_steps(predicted, true):
                part.add(mine.dense(), theirs)
        both = sums[True] + sums[False]
        errors = {"mse": both.squared_error / both.n, "mse_typical": sums[True].squared_error / max(sums[True].n, 1)}
        draft.save_tensors("errors.safetensors", errors)
        return {"n_tokens": both.n, "mse": both.mse(), "fvu": both.fvu()}
