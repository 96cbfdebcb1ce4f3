"""Influence over layers and what a graph predicts, against the same from the graph's whole matrix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saelink.circuits.influence import influence_of, kept_of, rows_down
from saelink.circuits.predicted import predicted
from saelink.circuits.prompt import Prompt
from saelink.store.store import Store

from helpers.circuits import open_family, some_prompt
from helpers.world import World


def whole(prompt: Prompt) -> torch.Tensor:
    """[size, size] every link: what each source adds to each target."""
    matrix = torch.zeros(prompt.size, prompt.size, dtype=torch.float64)
    for links in rows_down(prompt):
        matrix[links.targets[:, None], links.sources] = links.weights.double()
        if links.rest is not None:
            matrix[links.targets, links.rest_node] = links.rest.double()
    return matrix


@pytest.mark.parametrize("name", ["llama", "gemma3", "neox"])
def test_influence_is_that_of_the_matrix(name: str, world: World, store: Store, tmp_path: Path) -> None:
    prompt = some_prompt(open_family(name, world, store, tmp_path))
    matrix = whole(prompt).abs()
    shares = matrix / matrix.sum(1, keepdim=True).clamp(min=1e-30)
    assert prompt.gradients is not None
    start = torch.zeros(prompt.size, dtype=torch.float64)
    start[prompt.logit_begin :] = torch.tensor(prompt.gradients.probabilities, dtype=torch.float64)
    start /= start.sum()
    expected = torch.linalg.solve(torch.eye(prompt.size, dtype=torch.float64) - shares.T, start)
    found = influence_of(prompt)
    assert torch.allclose(found.value, expected, rtol=1e-4, atol=1e-8)
    leaves = matrix.sum(1) == 0
    assert found.value[leaves].sum().item() == pytest.approx(1.0, rel=1e-4)
    wrong = shares[:, prompt.is_error].sum(1)
    assert torch.allclose(found.error, wrong, atol=1e-5)
    tokens, errors = expected[: prompt.writers.context].sum(), expected[prompt.is_error].sum()
    assert found.scores.replacement == pytest.approx((tokens / (tokens + errors)).item(), rel=1e-4)
    complete = (expected * (1 - wrong))[~leaves].sum() / expected[~leaves].sum()
    assert found.scores.completeness == pytest.approx(complete.item(), rel=1e-4)
    assert 0 < found.scores.completeness < found.scores.completeness_all < 1


def test_what_is_kept_are_links_of_the_matrix(world: World, store: Store, tmp_path: Path) -> None:
    prompt = some_prompt(open_family("llama", world, store, tmp_path))
    matrix, influence = whole(prompt), influence_of(prompt)
    kept = kept_of(prompt, influence, 0.6, 0.95, 500)
    assert torch.equal(matrix[kept.target, kept.source].float(), kept.weight)
    nodes = set(kept.nodes.tolist())
    assert set(kept.source.tolist()) | set(kept.target.tolist()) <= nodes
    assert set(range(prompt.writers.context)) <= nodes
    leads = set(kept.source.tolist())
    assert all(t in leads or t >= prompt.logit_begin for t in kept.target.tolist())
    everything = kept_of(prompt, influence, 1.0, 1.0, prompt.size)
    assert everything.share == pytest.approx(1.0) and kept.share < 1
    influential = (matrix != 0).sum(1)[influence.value > 1e-9].sum()
    assert 0.9 * influential <= len(everything.weight) <= int((matrix != 0).sum())
    few = kept_of(prompt, influence, 0.6, 0.95, 5)
    assert len(few.so_far) == 5 and set(few.so_far) <= set(everything.nodes.tolist())


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "neox"])
def test_a_prediction_is_the_sum_over_all_paths(name: str, world: World, store: Store, tmp_path: Path) -> None:
    prompt = some_prompt(open_family(name, world, store, tmp_path))
    activation = prompt.activation.double()
    slopes = torch.where(activation > 0, whole(prompt) / activation.clamp(min=1e-30), 0.0)
    paths = torch.linalg.inv(torch.eye(prompt.size, dtype=torch.float64) - slopes)
    first = prompt.writers.latents_of((0, "mlp")).start
    for node in (first + 5, prompt.writers.latents_of((0, "attn")).start + 7, prompt.source_begin[0] + 3):
        value = -activation[node].item()
        expected = paths[:, node] * value
        found = predicted(prompt, {node: value}, clamped=False)
        assert (found.change[activation > 0] - expected[activation > 0]).norm() <= 1e-4 * expected.norm()
        assert (found.logits - expected[prompt.logit_begin :]).norm() <= 1e-4 * expected[prompt.logit_begin :].norm()
    clamped = predicted(prompt, {first + 5: -activation[first + 5].item()})
    assert bool((clamped.change >= -prompt.activation - 1e-5).all())
