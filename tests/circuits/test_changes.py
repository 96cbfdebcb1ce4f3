"""Latents changed in the model: what is changed, what is not, and where the graph must be exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saelink.circuits.changes import Wanted, changed_nodes, model_changes, taken_out, true_changes
from saelink.circuits.explained import first_of_run
from saelink.circuits.nodes import Latent, node_of, nodes_of
from saelink.circuits.predicted import predicted
from saelink.circuits.prompt import Prompt
from saelink.errors import SaelinkError
from saelink.store.store import Store

from helpers.circuits import open_family, some_prompt
from helpers.world import World


def active(prompt: Prompt, kind: str, layer: int) -> Latent:
    """The latent of a kind that is active at the last position."""
    nodes = [node_of(prompt, i) for i in (prompt.activation > 0).nonzero().flatten().tolist()]
    mine = [node for node in nodes if (node.kind, node.layer) == (kind, layer)]
    return Latent(kind, layer, mine[-1].number)


def changed(prompt: Prompt, wanted: list[Wanted]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """True changes of latents, the next token's logits, and the graph's changes."""
    run = prompt.model.run(prompt.ids[None], 2, model_changes(prompt, wanted))
    says = predicted(prompt, changed_nodes(prompt, wanted))
    return true_changes(prompt, first_of_run(run)), run.logits[0], says.change


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3"])
def test_attention_to_the_mlps_input_is_exact(name: str, world: World, store: Store, tmp_path: Path) -> None:
    """Between attn_out and what the MLP reads there is nothing but a sum, however large the change."""
    prompt = some_prompt(open_family(name, world, store, tmp_path))
    true, _, says = changed(prompt, [Wanted(active(prompt, "attn", 1), None, False, 0.0)])
    part = slice(prompt.source_begin[1], prompt.source_begin[1] + len(prompt.sources[1].values))
    assert true[part].norm() > 0.01 * prompt.activation[part].norm()
    assert (true[part] - says[part]).norm() <= 1e-3 * true[part].norm()
    below = slice(0, prompt.writers.begin[1, "attn"])
    assert true[below].abs().max() <= 1e-4 * prompt.activation.max()


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "neox"])
def test_a_small_change_moves_logits_as_the_graph_has_it(name: str, world: World, store: Store, tmp_path: Path) -> None:
    prompt = some_prompt(open_family(name, world, store, tmp_path))
    assert prompt.gradients is not None
    latent, moved = active(prompt, "mlp", 1), list[torch.Tensor]()
    for factor in (1.01, 0.99):
        run = prompt.model.run(prompt.ids[None], 2, model_changes(prompt, [Wanted(latent, None, True, factor)]))
        moved.append((run.logits[0] - run.logits[0].mean())[prompt.gradients.tokens])
    slope = (moved[0] - moved[1]) / 2
    says = predicted(prompt, changed_nodes(prompt, [Wanted(latent, None, True, 1.01)])).logits
    assert (slope - says).norm() <= 0.01 * slope.norm()


@pytest.mark.parametrize("name", ["llama", "gemma3", "neox"])
def test_a_changed_input_changes_that_mlp_alone(name: str, world: World, store: Store, tmp_path: Path) -> None:
    prompt = some_prompt(open_family(name, world, store, tmp_path))
    latent = active(prompt, "source", 0)
    wanted = [Wanted(latent, None, False, 0.0)]
    run = prompt.model.run(prompt.ids[None], 2, model_changes(prompt, wanted))
    acts, before = first_of_run(run), prompt.acts
    assert torch.allclose(acts[0].resid_pre, before[0].resid_pre) and torch.allclose(
        acts[0].attn_out, before[0].attn_out
    )
    sae, here = prompt.parts[0].source, prompt.here(0)
    value = sae.encode(here.x)[:, latent.number]
    value[: prompt.drop] = 0
    expected = prompt.model.mlp(0)(here.x - value[:, None] * sae.W_dec[latent.number])
    assert torch.allclose(acts[0].mlp_out, expected, atol=1e-4)
    assert (acts[0].mlp_out - before[0].mlp_out).norm() > 1e-3
    after = acts[0].resid_pre + acts[0].attn_out + acts[0].mlp_out
    assert torch.allclose(acts[1].resid_pre, after, atol=1e-4)


def test_input_and_output_of_one_mlp_changed_at_once(world: World, store: Store, tmp_path: Path) -> None:
    """The output is what the changed MLP gives, less a latent that is read there; each change is made once."""
    prompt = some_prompt(open_family("llama", world, store, tmp_path))
    inner, outer = active(prompt, "source", 0), active(prompt, "mlp", 0)
    one = prompt.model.run(prompt.ids[None], 2, model_changes(prompt, [Wanted(inner, None, True, 2.0)]))
    both = prompt.model.run(
        prompt.ids[None], 2,
        model_changes(prompt, [Wanted(outer, None, True, 3.0), Wanted(inner, None, True, 2.0)]),
    )  # fmt: skip
    sae, middle = prompt.parts[0].target, one.acts[0].mlp_out[0]
    p = len(prompt.ids) - 1
    value = sae.encode(middle)[p, outer.number]
    assert torch.allclose(both.acts[0].mlp_out[0, p], middle[p] + 2 * value * sae.W_dec[outer.number], atol=1e-4)


def test_many_ablations_in_one_run(world: World, store: Store, tmp_path: Path) -> None:
    prompt = some_prompt(open_family("llama", world, store, tmp_path))
    one, two = active(prompt, "mlp", 0), Latent("mlp", 0, int(prompt.writers.pieces[0, "mlp"].latents.indices[3]))
    sae = prompt.parts[0].target
    where = [prompt.position[nodes_of(prompt, latent)] for latent in (one, two)]
    together = taken_out(sae, [(one.number, where[0]), (two.number, where[1])])
    run = prompt.model.run(prompt.ids.expand(2, -1), 2, {"blocks.0.hook_mlp_out": together}, to_logits=False)
    for row, latent in enumerate((one, two)):
        alone = prompt.model.run(prompt.ids[None], 2, model_changes(prompt, [Wanted(latent, None, False, 0.0)]))
        assert torch.allclose(first_of_run(run, row)[1].mlp_out, first_of_run(alone)[1].mlp_out, atol=1e-4)


def test_a_silent_latent_gets_one_line(world: World, store: Store, tmp_path: Path) -> None:
    prompt = some_prompt(open_family("llama", world, store, tmp_path))
    latent = active(prompt, "mlp", 1)
    with pytest.raises(SaelinkError, match=rf"intervene: {latent.name}:0=0: {latent.name} is silent there \(active at"):
        changed_nodes(prompt, [Wanted(latent, 0, False, 0.0)])
