"""Whether an SAE belongs to these activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.saes.choice import published, same_stream
from saelink.saes.sae import SAE
from saelink.store.store import Store

if TYPE_CHECKING:
    import torch


def check_place(cfg: Config, store: Store, hook_name: str, sae: SAE, where: str) -> None:
    """Say in a line each what the SAE's file names otherwise than this job: hook, model, context, begin-of-text token.

    Raises SaelinkError for the first with sae.strict.
    """
    for line in mismatches(cfg, hook_name, sae.metadata):
        if cfg.sae.strict:
            raise SaelinkError(
                f"{where}: its file says {line}; take the SAE that was trained there, or sae.strict=false"
            )
        store.observer.say(f"warning: {where}: its file says {line}")


def mismatches(cfg: Config, hook_name: str, metadata: Mapping[str, Any]) -> list[str]:
    """What an SAE's file says of where it belongs, if this job has it elsewhere; what it does not say fits."""
    found: list[str] = []
    hook = metadata.get("hook_name")
    if hook and hook not in same_stream(hook_name):
        found.append(f"hook_name={hook}, and it is to read {hook_name}")
    layers = {name.split(".")[1] for name in same_stream(hook_name)}
    if metadata.get("layer") is not None and str(metadata["layer"]) not in layers:
        found.append(f"layer={metadata['layer']}, and it is to read {hook_name}")
    model = metadata.get("model_name")
    if model and _plain(str(model)).isdisjoint(_plain(cfg.model.name) | _plain(cfg.model.path)):
        found.append(f"model_name={model}, and the model is model.name={cfg.model.name}")
    context = metadata.get("context_size")
    if context and context != cfg.data.context_size:
        found.append(f"context_size={context}, and here it is data.context_size={cfg.data.context_size}")
    bos = metadata.get("prepend_bos")
    if bos is not None and bool(bos) != cfg.data.prepend_bos:
        here = str(cfg.data.prepend_bos).lower()
        found.append(f"prepend_bos={str(bool(bos)).lower()}, and here it is data.prepend_bos={here}")
    return found


def _plain(model: str) -> set[str]:
    """A model's name without its owner, and the other names that TransformerLens has for it: gpt2-small is gpt2."""
    from transformer_lens.supported_models import MODEL_ALIASES

    def plain(name: str) -> str:
        return name.rstrip("/").split("/")[-1].lower()

    found = {plain(model)}
    for official, aliases in MODEL_ALIASES.items():
        names = {plain(name) for name in (official, *aliases)}
        if found & names:
            return found | names
    return found


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
