"""Whether an SAE belongs to these activations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.saes.choice import published
from saelink.saes.sae import SAE

if TYPE_CHECKING:
    import torch


WORSE = 0.2
"""An SAE is refused when its FVU here is this much above the published one, ..."""

OTHER = 2.5
"""... or when it has that many times as many active latents, or as few."""

LOOKED_AT = 8192
"""Tokens that this is judged by."""


def check_sae(cfg: Config, hook_name: str, sae: SAE, acts: torch.Tensor, massive: float = 3.0) -> None:
    """Stop in one line when an SAE does not belong to these acts [n, d_in] (whole sequences of the text).

    Wrong tokenizers, missing BOS tokens and other normalisation show in FVU and l0 and nowhere else. Without published
    figures an SAE is refused that reconstructs no better than the mean. Rows of more than `massive` median norms are
    left out where that is kinder. Raises SaelinkError also for an SAE of another width.
    """
    import torch

    if sae.d_in != acts.shape[1]:
        raise SaelinkError(
            f"sae.name={cfg.sae.name}: the SAE for {hook_name} has d_in {sae.d_in}, the activations have "
            f"{acts.shape[1]}; it belongs to another model (sae=train trains one for this model)"
        )
    if not cfg.sae.check:
        return
    position = torch.arange(len(acts)) % cfg.data.context_size
    x = acts[position >= max(cfg.data.drop_positions, 1)][:LOOKED_AT].float()
    sae = sae.to("cpu", torch.float32)
    errors, active = [], 0
    for part in x.split(256):  # dense latents, of SAEs that may have hundreds of thousands
        latents = sae.encode(part)
        errors.append((sae.decode(latents, sae.units(part)) - part).square().sum(1))
        active += int((latents != 0).sum())
    error = torch.cat(errors)
    typical = x.norm(dim=1) <= massive * x.norm(dim=1).median()

    def fvu(rows: torch.Tensor) -> float:
        return (error[rows].sum() / (x[rows] - x[rows].mean(0)).square().sum()).item()

    found = min(fvu(torch.ones_like(typical)), fvu(typical))
    l0 = active / len(x)
    wanted = published(cfg, hook_name)
    bad = not found <= wanted.get("fvu", 0.8) + WORSE  # also where it is no number
    bad |= "l0" in wanted and not wanted["l0"] / OTHER <= l0 <= wanted["l0"] * OTHER
    if bad:
        told = ", ".join(f"{name} {value:.3g}" for name, value in wanted.items()) or "a useful one is well below FVU 1"
        here = {"prepend_bos": cfg.data.prepend_bos, "context_size": cfg.data.context_size}
        there = {name: sae.metadata[name] for name in here if sae.metadata.get(name) is not None}
        other = [f"data.{name}={value}" for name, value in there.items() if value != here[name]]
        hint = f"its file says {', '.join(other)}; " if other else ""
        raise SaelinkError(
            f"sae.name={cfg.sae.name}: the SAE for {hook_name} has FVU {found:.3g} and {l0:.3g} active latents on the "
            f"first {len(x):,} tokens here ({'published: ' if wanted else ''}{told}): {hint}check the model, tokenizer,"
            " data.prepend_bos and model.center_writing_weights, or go on with sae.check=false"
        )
