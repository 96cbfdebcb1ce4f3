"""Latents changed in the running model: which, where, to what; and what that does to all others."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import torch

from saelink.circuits.layers import LayerJobs
from saelink.circuits.nodes import Latent, latent_named, nodes_of
from saelink.circuits.opened import Acts, Change
from saelink.circuits.prompt import LayerParts, Prompt
from saelink.errors import SaelinkError
from saelink.saes.sae import SAE

FORM = re.compile(r"(?P<latent>[A-Za-z]+\d+(?:@L\d+)?)(?::(?P<at>\d+))?(?P<how>[=*])(?P<value>\S+)")


class Wanted(NamedTuple):
    """A latent's activation set to a value, or multiplied by it, where it is active."""

    latent: Latent
    position: int | None
    """Only there; None for wherever it is active."""
    times: bool
    value: float

    @property
    def text(self) -> str:
        at = "" if self.position is None else f":{self.position}"
        return f"{self.latent.name}{at}{'*' if self.times else '='}{self.value:g}"

    def new(self, activation: torch.Tensor) -> torch.Tensor:
        return activation * self.value if self.times else torch.full_like(activation, self.value)


def wanted_of(text: str, jobs: LayerJobs) -> Wanted:
    """The change that OF12@L3=0, IF7@L1*2 or OF12@L3:5=0 (at position 5) names. Raises SaelinkError for none."""
    found = FORM.fullmatch(text)
    what = f"intervene: {text}"
    if found is None:
        raise SaelinkError(f"{what}: give a change such as OF12@L3=0, IF7@L1*2, or OF12@L3:5=0 for position 5 alone")
    latent = latent_named(found["latent"], jobs, what)
    try:
        value = float(found["value"])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SaelinkError(f"{what}: {found['value']} is not a number")
    return Wanted(latent, None if found["at"] is None else int(found["at"]), found["how"] == "*", value)


def changed_nodes(prompt: Prompt, wanted: list[Wanted]) -> dict[int, float]:
    """By node how much its activation changes. Raises SaelinkError for a latent that is silent there."""
    found: dict[int, float] = {}
    for each in wanted:
        nodes = nodes_of(prompt, each.latent)
        where = prompt.position[nodes]
        if each.position is not None:
            nodes = nodes[where == each.position]
        if not len(nodes):
            active = ", ".join(str(int(p)) for p in where) or "nowhere"
            raise SaelinkError(f"intervene: {each.text}: {each.latent.name} is silent there (active at: {active})")
        before = prompt.activation[nodes]
        for node, change in zip(nodes.tolist(), (each.new(before) - before).tolist(), strict=True):
            found[node] = found.get(node, 0.0) + change
    return found


def model_changes(prompt: Prompt, wanted: list[Wanted]) -> dict[str, Change]:
    """By hook the same in the running model, for `OpenModel.run`; activations are read there as it runs."""
    found: dict[str, Change] = {}
    hooks = {"attn": "hook_attn_out", "mlp": "hook_mlp_out", "source": "mlp_in"}
    by_hook: dict[str, list[Wanted]] = {}
    for each in wanted:
        by_hook.setdefault(f"blocks.{each.latent.layer}.{hooks[each.latent.kind]}", []).append(each)
    for hook, mine in by_hook.items():
        sae = sae_of(prompt.parts, mine[0].latent)
        places = [
            prompt.position[nodes_of(prompt, each.latent)] if each.position is None else torch.tensor([each.position])
            for each in mine
        ]
        found[hook] = _change(sae, mine, places)
    return found


def sae_of(parts: dict[int, LayerParts], latent: Latent) -> SAE:
    """The SAE that a latent is of."""
    here = parts[latent.layer]
    sae = {"source": here.source, "mlp": here.target, "attn": here.attn}[latent.kind]
    assert sae is not None
    return sae


def _change(sae: SAE, wanted: list[Wanted], places: list[torch.Tensor]) -> Change:
    def change(acts: torch.Tensor) -> torch.Tensor:
        new = acts.clone()
        for each, where in zip(wanted, places, strict=True):
            x = acts[:, where].flatten(0, 1)
            value = sae.encode(x)[:, each.latent.number]
            added = (each.new(value) - value)[:, None] * sae.W_dec[each.latent.number]
            units = sae.units(x)
            added = added if units is None else added * units.scale
            new[:, where] += added.view(len(acts), len(where), -1)
        return new

    return change


def taken_out(sae: SAE, latents: list[tuple[int, torch.Tensor]]) -> Change:
    """Row r of the activations without latent latents[r][0] at positions latents[r][1]: many ablations in one run."""

    def change(acts: torch.Tensor) -> torch.Tensor:
        new = acts.clone()
        for row, (number, where) in enumerate(latents):
            x = acts[row, where]
            value = sae.encode(x)[:, number]
            units = sae.units(x)
            taken = value[:, None] * sae.W_dec[number]
            new[row, where] -= taken if units is None else taken * units.scale
        return new

    return change


def true_changes(prompt: Prompt, acts: dict[int, Acts]) -> torch.Tensor:
    """[size] what the activations of latents that are active on the prompt gain where the model holds `acts` instead.

    Which are active is held: a latent is read as its pre-activation, or 0 below it, whatever others do in a TopK.
    """
    found = torch.zeros(prompt.size)
    for layer, parts in prompt.parts.items():
        held = acts[layer]
        rows, first = prompt.sources[layer], prompt.source_begin[layer]
        found[first : first + len(rows.values)] = _gain(
            parts.source, held.mlp_in(prompt.model.parallel), rows.row_of, rows.indices, rows.values
        )
        for part, sae, out in (("attn", parts.attn, held.attn_out), ("mlp", parts.target, held.mlp_out)):
            if sae is not None:
                latents, nodes = prompt.writers.pieces[layer, part].latents, prompt.writers.latents_of((layer, part))
                found[nodes.start : nodes.stop] = _gain(sae, out, latents.row_of, latents.indices, latents.values)
    return found


def units_of(prompt: Prompt) -> torch.Tensor:
    """[size] of each latent the mean activation of its hook's active latents on the prompt; 1 of other nodes."""
    found = torch.ones(prompt.size)
    spans = [prompt.writers.latents_of(place) for place in prompt.writers.begin]
    spans += [range(first, first + len(prompt.sources[layer].values)) for layer, first in prompt.source_begin.items()]
    for span in spans:
        if len(span):
            found[span.start : span.stop] = prompt.activation[span.start : span.stop].mean()
    return found


def _gain(
    sae: SAE, acts: torch.Tensor, row: torch.Tensor, latent: torch.Tensor, before: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    return sae.pre_acts(acts)[row, latent].clamp(min=0) - before
