"""Moved latents: what a target's pre-activation is made of sums to it, in every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saelink.attention.moved import PARTS, Moves, moved_most, only_moved, rows_of
from saelink.latents.rows import Rows
from saelink.latents.shards import encode_rows
from saelink.store.store import Store

from helpers.attention import OPENED, opened, some_sae
from helpers.families import VOCABULARY
from helpers.world import World


@pytest.mark.parametrize("name", OPENED)
def test_all_parts_sum_to_the_pre_activation(name: str, world: World, store: Store, tmp_path: Path) -> None:
    attention = opened(name, world, store, tmp_path)
    ids = torch.randint(VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(3))
    source, target = some_sae(1, norm="layer_norm" if name == "llama" else "none"), some_sae(2)
    moves = Moves(attention.heads, source, target, drop=1)
    with torch.inference_mode():
        seen = attention.look(ids)
        latents = encode_rows(source, seen.x.flatten(0, 1))
        for sequence in range(2):
            x, rows = seen.x[sequence], rows_of(latents, 40, sequence)
            units = source.units(x)
            parts = moves.parts(seen, sequence, rows, units)
            assert tuple(parts) == PARTS
            true = target.pre_acts(seen.out[sequence])
            off = (sum(parts.values()) - true).norm() / true.norm()
            assert off <= 1e-5
            # none of them is nothing, where the model has it
            for part in ("latents", "b_dec", "error", "dropped"):
                assert parts[part].norm() > 0.01 * true.norm()
            # pairs of head and latent are the latents' part
            pairs = moves.pairs(seen, sequence, moves.sizes(rows, x, units), torch.arange(40))
            by_pair = sum(
                pairs.amount[:, head] @ moves.weight(head)[pairs.latents] for head in range(attention.heads.n_heads)
            )
            assert (by_pair - parts["latents"]).norm() <= 1e-5 * true.norm()
    weights = torch.stack([moves.weight(head) for head in range(attention.heads.n_heads)])
    assert torch.allclose(moves.reach(), weights.norm(dim=2), rtol=1e-3)


def test_what_counts_as_moved() -> None:
    """The latents of most weight over heads, and their columns."""
    dense = torch.tensor([[1.0, 0, 2, 0, 3, 0], [0, 0, 0, 0, 0, 4], [0.0] * 6, [5, 1, 1, 1, 1, 1]])
    reach = torch.tensor([[1.0, 2.0, 1.0], [1.0, 1.0, 3.0]])
    columns = Rows.from_dense(dense)
    moved = moved_most(columns, reach, 1)
    # weights by latent: [1, 3, 2], [0, 0, 12], nothing, [6, 3, 4]
    assert torch.equal(moved.dense(), torch.tensor([[0.0, 3, 0], [0, 0, 12], [0, 0, 0], [6, 0, 0]]))
    kept = torch.tensor([[0.0, 0, 0, 0, 3, 0], [0, 0, 0, 0, 0, 4], [0.0] * 6, [5, 0, 0, 1, 0, 0]])
    assert torch.equal(only_moved(columns, moved).dense(), kept)
    everything = moved_most(columns, reach, 3)
    assert torch.equal(everything.dense(), (dense.view(4, 2, 3) * reach).sum(1))
    summed = Rows.from_dense(dense.view(4, 2, 3).sum(1))
    assert torch.equal(moved_most(summed, reach, 1).dense()[3], torch.tensor([6.0, 0, 0]))
