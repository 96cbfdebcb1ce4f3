"""Sparse rows against dense matrices."""

from __future__ import annotations

import itertools

import pytest
import torch

from saelink.latents import Rows, pack, sparse_linear, unpack


def random_rows(n: int, d: int, seed: int = 0, density: float = 0.2) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(n, d, generator=generator) * (torch.rand(n, d, generator=generator) < density)
    dense[n // 2] = 0  # a token without any active latent
    return rows_of(dense)


def rows_of(dense: torch.Tensor) -> Rows:
    row, latent = dense.nonzero(as_tuple=True)
    offsets = torch.zeros(len(dense) + 1, dtype=torch.int64)
    offsets[1:] = torch.bincount(row, minlength=len(dense)).cumsum(0)
    return Rows(offsets, latent, dense[row, latent], dense.shape[1])


def test_dense_and_back() -> None:
    rows = random_rows(20, 11)
    assert torch.equal(rows_of(rows.dense()).dense(), rows.dense())
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
