"""What moves beside a graph's latents: nothing free is the graph, everything free the model to first order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saelink.circuits.changes import true_changes
from saelink.circuits.explained import first_of_run
from saelink.circuits.opened import Change
from saelink.circuits.predicted import predicted
from saelink.circuits.prompt import Prompt
from saelink.circuits.unheld import ERRORS, EVERYTHING, Free, unheld
from saelink.saes.sae import SAE
from saelink.store.store import Store

from helpers.circuits import open_family, some_prompt
from helpers.world import World

FOUR = ("gpt2", "llama", "gemma3", "neox")

HOOKS = {"attn": "hook_attn_out", "mlp": "hook_mlp_out", "source": "mlp_in"}


def nodes(prompt: Prompt) -> dict[str, int]:
    """One latent of each kind in the first layer."""
    attn, mlp = (prompt.writers.latents_of((0, part)).start for part in ("attn", "mlp"))
    return {"attn": attn + 7, "source": prompt.source_begin[0] + 3, "mlp": mlp}


@pytest.mark.parametrize("norm", ["none", "layer_norm"])
@pytest.mark.parametrize("name", FOUR)
def test_nothing_free_is_the_graph(name: str, norm: str, world: World, store: Store, tmp_path: Path) -> None:
    prompt = some_prompt(open_family(name, world, store, tmp_path), norm=norm)
    for node in nodes(prompt).values():
        gone = {node: -float(prompt.activation[node])}
        graph = predicted(prompt, gone, clamped=False).change
        assert graph.norm() > 0
        assert (unheld(prompt, gone, Free()) - graph).norm() <= 1e-4 * graph.norm()


def added(sae: SAE, number: int, position: int, amount: float) -> Change:
    """A hook's activations with so much more of a latent at a position."""

    def change(acts: torch.Tensor) -> torch.Tensor:
        new = acts.clone()
        new[:, position] += amount * sae.W_dec[number]
        return new

    return change


@pytest.mark.parametrize("name", FOUR)
def test_everything_free_is_the_model(name: str, world: World, store: Store, tmp_path: Path) -> None:
    """To first order: against central differences in float64."""
    model = open_family(name, world, store, tmp_path)
    prompt, small = some_prompt(model), 1e-3
    parts = prompt.parts[0]
    saes = {"attn": parts.attn, "source": parts.source, "mlp": parts.target}
    given = {kind: unheld(prompt, {node: 1.0}, EVERYTHING) for kind, node in nodes(prompt).items()}
    errors = {kind: unheld(prompt, {node: 1.0}, ERRORS) for kind, node in nodes(prompt).items()}
    model.hf_model.double()
    exact = {
        layer: held._replace(
            source=held.source.to("cpu", torch.float64),
            target=held.target.to("cpu", torch.float64),
            attn=held.attn.to("cpu", torch.float64) if held.attn is not None else None,
        )
        for layer, held in prompt.parts.items()
    }
    prompt.parts = exact
    active = prompt.activation > 0
    for kind, node in nodes(prompt).items():
        sae, position = saes[kind], int(prompt.position[node])
        assert sae is not None
        rows = prompt.sources[0] if kind == "source" else prompt.writers.pieces[0, kind].latents
        first = prompt.source_begin[0] if kind == "source" else prompt.writers.begin[0, kind]
        number = int(rows.indices[node - first])
        ends = []
        for amount in (small, -small):
            change = added(sae.to("cpu", torch.float64), number, position, amount)
            run = model.run(prompt.ids[None], 2, {f"blocks.0.{HOOKS[kind]}": change}, to_logits=False)
            ends.append(true_changes(prompt, first_of_run(run)))
        slope = (ends[0] - ends[1]) / 2 / small
        slope[[node]] = given[kind][[node]] = errors[kind][[node]] = 0.0
        same = active & (slope.abs() < 50)
        for other in saes:  # the changed hook's own latents: all of them gain by an addition, none by a graph's change
            if other == kind:
                same[first : first + len(rows.values)] = False
        distance = (given[kind] - slope)[same].norm() / slope[same].norm()
        assert distance <= 2e-3
        assert distance < (errors[kind] - slope)[same].norm() / slope[same].norm()
