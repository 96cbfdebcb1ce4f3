"""Prompts in random models of two layers, opened with random SAEs at both."""

from __future__ import annotations

from pathlib import Path

import torch

from saelink.circuits.inside import ByGradient
from saelink.circuits.opened import OpenModel
from saelink.circuits.prompt import LayerParts, Prompt
from saelink.job import Job
from saelink.store.store import Store

from helpers.attention import some_sae
from helpers.families import FAMILIES, VOCABULARY, write_family
from helpers.world import World

CONTEXT = 12


def open_family(name: str, world: World, store: Store, folder: Path) -> OpenModel:
    """A random model of a family, written into `folder`/model."""
    path = write_family(FAMILIES[name], folder / "model")
    return OpenModel(Job(world.config(store.root, f"model.path={path}"), store))


def some_parts(model: OpenModel, layer: int, norm: str = "none") -> LayerParts:
    """Random SAEs of one layer; edges inside the MLP are gradients."""
    source, target, attn = (some_sae(10 * layer + i, norm=norm) for i in range(3))
    return LayerParts(source, target, attn, ByGradient(model.mlp(layer), source, target))


def some_ids(seed: int = 3) -> torch.Tensor:
    return torch.randint(VOCABULARY, (CONTEXT,), generator=torch.Generator().manual_seed(seed))


def some_prompt(model: OpenModel, layers: tuple[int, ...] = (0, 1), norm: str = "none") -> Prompt:
    """A prompt with everything that its graph is made of."""
    ids = some_ids()
    parts = {layer: some_parts(model, layer, norm) for layer in layers}
    run = model.run(ids[None], max(layers) + 1)
    model.check_sum(run)
    acts = {layer: type(held)(*(part[0] for part in held)) for layer, held in run.acts.items()}
    gradients = model.gradients(ids, max(layers), lambda chances: chances.topk(3).indices.tolist())
    return Prompt(model, parts, ids, acts, 1, gradients)
