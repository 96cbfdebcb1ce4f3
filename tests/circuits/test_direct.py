"""Links of one latent, forward and back: both are those of the graph's rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saelink.circuits.direct import Sums, direct_links, sums_into
from saelink.circuits.influence import rows_down
from saelink.circuits.nodes import SHORT, Latent, node_of, nodes_of
from saelink.circuits.prompt import Prompt
from saelink.store.store import Store

from helpers.circuits import open_family, some_prompt
from helpers.world import World


def matrix(prompt: Prompt) -> torch.Tensor:
    found = torch.zeros(prompt.size, prompt.size)
    for links in rows_down(prompt):
        found[links.targets[:, None], links.sources] = links.weights
    return found


def latent_of(prompt: Prompt, index: int) -> Latent | None:
    node = node_of(prompt, index)
    return Latent(node.kind, node.layer, node.number) if node.kind in SHORT else None


@pytest.mark.parametrize("name", ["llama", "gemma3", "neox"])
def test_both_ways_are_the_graphs_rows(name: str, world: World, store: Store, tmp_path: Path) -> None:
    prompt = some_prompt(open_family(name, world, store, tmp_path))
    whole = matrix(prompt)
    some = [prompt.writers.begin[0, "mlp"] + 4, prompt.source_begin[1] + 9, prompt.writers.begin[1, "attn"] + 20]
    some += [prompt.writers.begin[0, "attn"] + 8, prompt.source_begin[0] + 5, prompt.writers.begin[1, "mlp"] + 2]
    for index in some:
        latent = latent_of(prompt, index)
        assert latent is not None and index in nodes_of(prompt, latent)
        nodes = nodes_of(prompt, latent)
        sums = Sums()
        sums_into(prompt, latent, sums)
        assert sums.places == len(nodes)
        assert sums.activation == pytest.approx(float(prompt.activation[nodes].sum()), rel=1e-5)
        forward: dict[Latent, tuple[float, float]] = {}
        direct_links(prompt, latent, forward)
        into, out = whole[nodes].sum(0), whole[:, nodes].sum(1)
        expected: dict[str, dict[Latent, float]] = {"into": {}, "out": {}}
        for way, values in (("into", into), ("out", out)):
            for i in values.nonzero().flatten().tolist():
                other = latent_of(prompt, i)
                if other is not None:
                    expected[way][other] = expected[way].get(other, 0.0) + float(values[i])
        tolerance = 1e-4 * max(float(into.abs().max()), float(out.abs().max()))
        for other, value in expected["into"].items():
            assert sums.latents.get(other, 0.0) == pytest.approx(value, rel=1e-3, abs=tolerance)
        for other, value in expected["out"].items():
            assert forward.get(other, (0.0, 0.0))[0] == pytest.approx(value, rel=1e-3, abs=tolerance)
        assert set(sums.latents) == set(expected["into"])
        assert set(forward) <= set(expected["out"])
