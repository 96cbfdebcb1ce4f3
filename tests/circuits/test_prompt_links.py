"""Links of a prompt's graph over layers: they sum to what the model's own activations give each latent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saelink.circuits.prompt import Links, Prompt
from saelink.errors import SaelinkError
from saelink.store.store import Store

from helpers.circuits import open_family, some_ids, some_prompt
from helpers.world import World

FOUR = ("gpt2", "llama", "gemma3", "neox")


def off(links: Links, pre: torch.Tensor) -> torch.Tensor:
    """What the links and the constant miss of pre-activations, as a share of their size."""
    total = links.weights.sum(1) + links.constant
    return (total - pre).norm() / pre.norm()


@pytest.mark.parametrize("norm", ["none", "layer_norm"])
@pytest.mark.parametrize("name", FOUR)
def test_links_close(name: str, norm: str, world: World, store: Store, tmp_path: Path) -> None:
    prompt = some_prompt(open_family(name, world, store, tmp_path), norm=norm)
    for layer in prompt.layers:
        x, parts = prompt.here(layer).x, prompt.parts[layer]
        pre = parts.source.pre_acts(x)
        seen = 0
        for links in prompt.into_sources(layer):
            p = int(prompt.position[links.targets[0]])
            latent = prompt.sources[layer].indices[links.targets - prompt.source_begin[layer]]
            assert off(links, pre[p, latent]) <= 1e-4
            assert torch.equal(prompt.position[links.sources].unique(), torch.tensor([p]))
            seen += len(latent)
        assert seen == len(prompt.sources[layer].values) > 20
        assert parts.attn is not None
        pre, seen = parts.attn.pre_acts(prompt.acts[layer].attn_out), 0
        for links in prompt.into_attention(layer):
            q = int(prompt.position[links.targets[0]])
            latent = prompt.writers.number[links.targets]
            assert off(links, pre[q, latent]) <= 1e-4
            assert int(prompt.position[links.sources].max()) <= q
            seen += len(latent)
        assert seen == len(prompt.writers.pieces[layer, "attn"].latents.values) > 20
        for links in prompt.into_mlp(layer):
            assert links.rest is not None
            total = links.weights.sum(1) + links.rest
            assert torch.allclose(total, prompt.activation[links.targets], rtol=1e-4, atol=1e-5)


def test_a_layer_without_saes_is_an_error_as_a_whole(world: World, store: Store, tmp_path: Path) -> None:
    """The links of the layer above still close."""
    prompt = some_prompt(open_family("llama", world, store, tmp_path), layers=(1,))
    pre = prompt.parts[1].source.pre_acts(prompt.here(1).x)
    for links in prompt.into_sources(1):
        p = int(prompt.position[links.targets[0]])
        latent = prompt.sources[1].indices[links.targets - prompt.source_begin[1]]
        assert off(links, pre[p, latent]) <= 1e-4
        unexplained = links.sources[links.sources < prompt.writers.begin[1, "attn"]]
        assert bool(prompt.is_error[unexplained[1:]].all()) and not bool(prompt.is_error[unexplained[0]])


@pytest.mark.parametrize("name", FOUR)
def test_gradient_edges_are_small_changes(name: str, world: World, store: Store, tmp_path: Path) -> None:
    """What a source adds to a target by its gradient is what a little of it, taken away, does through the MLP."""
    prompt = some_prompt(open_family(name, world, store, tmp_path))
    layer, small = 1, 1e-4
    here, parts = prompt.here(layer), prompt.parts[layer]
    for links in prompt.into_mlp(layer):
        p = int(prompt.position[links.targets[0]])
        target = prompt.writers.number[links.targets]
        for column, node in enumerate(links.sources.tolist()[:2]):
            latent = prompt.sources[layer].indices[node - prompt.source_begin[layer]]
            taken = small * prompt.activation[node] * parts.source.W_dec[latent]
            mlp = prompt.model.mlp(layer).double()
            up, down = (mlp((here.x[p] + sign * taken).double()[None]) for sign in (1, -1))
            slope = ((up - down) / 2 / small)[0] @ parts.target.W_enc.double()[:, target]
            mlp.float()
            assert (slope - links.weights[:, column]).norm() <= 1e-3 * slope.norm()


def test_nodes_are_numbered_once(world: World, store: Store, tmp_path: Path) -> None:
    prompt: Prompt = some_prompt(open_family("llama", world, store, tmp_path))
    assert len(prompt.position) == len(prompt.activation) == len(prompt.is_error) == prompt.size
    targets = [links.targets for layer in prompt.layers for links in prompt.into_sources(layer)]
    targets += [links.targets for layer in prompt.layers for links in prompt.into_attention(layer)]
    targets += [links.targets for layer in prompt.layers for links in prompt.into_mlp(layer)]
    found = torch.cat([*targets, prompt.into_logits().targets])
    assert len(found.unique()) == len(found)
    latents = (prompt.activation > 0).nonzero().flatten()
    assert set(latents.tolist()) <= set(found.tolist())


def test_a_stream_that_is_no_plain_sum_is_refused(world: World, store: Store, tmp_path: Path) -> None:
    """Granite multiplies what it adds."""
    model = open_family("granite", world, store, tmp_path)
    with pytest.raises(SaelinkError, match=r"layers: blocks|does not add attention and MLP"):
        model.check_sum(model.run(some_ids()[None], 2))
