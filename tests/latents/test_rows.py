"""Sparse rows against dense matrices."""

from __future__ import annotations

import itertools

import pytest
import torch

from saelink.latents.rows import Rows, pack, sparse_linear, unpack
from saelink.latents.split import Split, Tokens

from helpers.rows import random_rows, split_of


def test_dense_and_back() -> None:
    rows = random_rows(20, 11)
    assert torch.equal(Rows.from_dense(rows.dense()).dense(), rows.dense())
    assert len(rows) == 20 and rows.dense()[10].sum() == 0


@pytest.mark.parametrize("chosen", [[3, 0, 10, 3], [], [19]])
def test_select(chosen: list[int]) -> None:
    rows = random_rows(20, 11)
    ids = torch.tensor(chosen, dtype=torch.int64)
    assert torch.equal(rows.select(ids).dense(), rows.dense()[ids])


def test_stack_and_beside() -> None:
    one, two = random_rows(20, 11, seed=1), random_rows(20, 7, seed=2)
    assert torch.equal(Rows.stack([one, one.select(torch.tensor([1]))]).dense()[:20], one.dense())
    both = Rows.beside([one, two])
    assert torch.equal(both.dense(), torch.cat([one.dense(), two.dense()], 1))
    assert both.d == 18
    starts = both.offsets.tolist()
    for first, last in itertools.pairwise(starts):
        ids = both.indices[first:last].tolist()
        assert ids == sorted(ids)


@pytest.mark.parametrize("d", [11, 70_000])
def test_shards_keep_ids_and_round_values_to_bfloat16(d: int) -> None:
    rows = Rows(torch.tensor([0, 2, 2, 3]), torch.tensor([0, d - 1, 5]), torch.tensor([1.0, 2.5, 0.333]), d)
    back = unpack(pack(rows), d)
    assert torch.equal(back.offsets, rows.offsets) and torch.equal(back.indices, rows.indices)
    assert torch.equal(back.values, rows.values.bfloat16().float())


def test_sparse_linear_and_its_gradient_against_float64() -> None:
    rows = random_rows(30, 13)
    weight = torch.randn(13, 9, requires_grad=True)
    upstream = torch.randn(30, 9)
    out = sparse_linear(rows, weight)
    (out * upstream).sum().backward()
    dense = rows.dense().double()
    assert torch.allclose(out.double(), dense @ weight.double(), atol=1e-5)
    assert weight.grad is not None
    assert torch.allclose(weight.grad.double(), dense.T @ upstream.double(), atol=1e-5)


def test_sparse_linear_passes_gradcheck() -> None:
    rows = random_rows(6, 5)
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: sparse_linear(rows, w), [weight])


# --------------------------------------------------------------------------- splits


def in_pieces(monkeypatch: pytest.MonkeyPatch) -> tuple[Split, Split]:
    """The same 100 tokens in memory and as 7 pieces of which two are in memory at a time."""
    source, target = random_rows(100, 11, seed=1, density=0.6), random_rows(100, 6, seed=2)
    kept = split_of(source, target)
    assert len(kept) == 100
    monkeypatch.setattr(Split, "IN_MEMORY", 50)
    monkeypatch.setattr(Split, "POOL", 2)
    return kept, split_of(source, target, pieces=7)


def test_a_split_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, pieces = in_pieces(monkeypatch)
    assert len(list(pieces)) == 7 and len(list(kept)) == 1
    assert torch.equal(kept.whole().source.dense(), pieces.whole().source.dense())
    target = kept.whole().target.dense()
    for split in (kept, pieces):
        assert len(split) == 100
        assert torch.equal(split.counts.fired, (target > 0).sum(0))
        assert torch.allclose(split.counts.energy, target.double().square().sum(0))
        some = split.explain(torch.tensor([1, 4]))
        assert torch.equal(some.whole().target.dense(), target[:, [1, 4]])
        assert torch.equal(some.counts.fired, split.counts.fired[[1, 4]])
        spread = Tokens.stack(split.spread(9))
        assert spread.row.tolist() == torch.linspace(0, 99, 9).long().tolist()


@pytest.mark.parametrize("size", [7, 30, 250])
def test_a_shuffled_pass_meets_every_token_once(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Whatever the size that is asked for: passes follow one another without a gap, source and target together."""
    for split in in_pieces(monkeypatch):
        pairs = {tuple(torch.cat([x, y]).tolist()): i for i, (x, y) in enumerate(
            zip(split.whole().source.dense(), split.whole().target.dense(), strict=True)
        )}  # fmt: skip
        assert len(pairs) == 100
        order: list[int] = []
        for source, target in split.shuffled(size, torch.Generator().manual_seed(0)):
            assert len(source) == len(target) == size
            order += [pairs[tuple(row.tolist())] for row in torch.cat([source.dense(), target.dense()], 1)]
            if len(order) >= 300:
                break
        passes = [order[i : i + 100] for i in range(0, 300, 100)]
        assert all(sorted(one) == list(range(100)) for one in passes)
        assert passes[0] != passes[1] and passes[0] != sorted(passes[0])
        again = [rows for rows, _ in itertools.islice(split.shuffled(size, torch.Generator().manual_seed(0)), 2)]
        other = [rows for rows, _ in itertools.islice(split.shuffled(size, torch.Generator().manual_seed(1)), 2)]
        first = [
            pairs_of for pairs_of, _ in itertools.islice(split.shuffled(size, torch.Generator().manual_seed(0)), 2)
        ]
        assert all(torch.equal(a.dense(), b.dense()) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first[0].dense(), other[0].dense())


def test_a_pool_is_shuffled_across_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    _, pieces = in_pieces(monkeypatch)
    whole = pieces.whole().source.dense().tolist()
    source, _ = next(pieces.shuffled(12, torch.Generator().manual_seed(0)))
    numbers = [whole.index(row) for row in source.dense().tolist()]
    assert len({number * 7 // 100 for number in numbers}) == 2, "tokens of two pieces"
