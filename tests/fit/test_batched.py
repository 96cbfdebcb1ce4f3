"""What a GPU does for wide dictionaries, on the CPU's tensors, against the CPU's own way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saelink.fit.lasso import batched
from saelink.fit.lasso.batched import BatchedLasso
from saelink.fit.lasso.sparse import SparseLasso, SparseSolution
from saelink.fit.products import paired
from saelink.fit.products.matrix import SparseGram
from saelink.fit.products.paired import paired_gram
from saelink.fit.products.sparse import sparse_gram_of
from saelink.latents.split import Tokens

from helpers.rows import linked_tokens


def gram(n: int, p: int, m: int, seed: int) -> SparseGram:
    return sparse_gram_of(linked_tokens(n, p, m, seed))


def objectives(products: SparseGram, solution: SparseSolution, lam: float, centred: bool) -> torch.Tensor:
    """[m] at these weights, from products laid out densely."""
    p = len(products.x)
    G, C, yy = products.xx.dense(p), products.yx.dense(p).T, products.yy
    if centred:
        G = G - products.x[:, None] * products.x
        C, yy = C - products.x[:, None] * products.y, yy - products.y.square()
    W = torch.zeros(p, len(products.y), dtype=torch.float64)
    W[solution.source, solution.target] = solution.weight
    return yy / 2 - (W * C).sum(0) + (W * (G @ W)).sum(0) / 2 + lam * W.abs().sum(0)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("lam", [1e-1, 1e-2, 1e-3])
def test_the_block_finds_the_same_optimum(
    lam: float, positive: bool, centred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    products = gram(600, 40, 12, seed=3)
    expected = SparseLasso(products, centred, positive).solve(lam, 1e-7, 20_000)
    monkeypatch.setattr(batched, "BLOCK_ENTRIES", 40 * 5)  # several blocks
    monkeypatch.setattr(batched, "JOINING", 3)  # several rounds
    monkeypatch.setattr(batched, "PAIRS", 50)
    finished: list[int] = []
    found = BatchedLasso(products, centred, positive).solve(lam, 1e-7, 20_000, done=finished.append)
    assert sum(finished) == 12
    lasso = SparseLasso(products, centred)
    assert bool((found.gaps <= 1.0001e-7 * lasso.yy / 2 + 1e-15).all())
    theirs, ours = (objectives(products, each, lam, centred) for each in (expected, found))
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-9)
    assert not positive or bool((found.weight > 0).all())
    errors = (objectives(products, found, 0.0, centred) * 2).clamp(min=0)
    assert torch.allclose(found.errors, errors, rtol=1e-5, atol=1e-8)
    for target in range(12):
        mine = found.source[found.offsets[target] : found.offsets[target + 1]]
        assert bool((mine.diff() > 0).all())


def test_debias_refits_the_support() -> None:
    products = gram(600, 40, 12, seed=3)
    expected = SparseLasso(products).solve(1e-2, 1e-8, 20_000, debias=True)
    found = BatchedLasso(products).solve(1e-2, 1e-8, 20_000, debias=True)
    assert torch.equal(found.source, expected.source) and torch.equal(found.offsets, expected.offsets)
    assert torch.allclose(found.weight, expected.weight, rtol=1e-4, atol=1e-6)
    assert torch.allclose(found.errors, expected.errors, rtol=1e-4, atol=1e-8)


def test_a_penalty_above_all_gradients_leaves_nothing() -> None:
    found = BatchedLasso(gram(100, 10, 4, seed=1)).solve(1e3, 1e-4, 100)
    assert not len(found.source) and found.offsets.tolist() == [0] * 5


def test_sweeps_that_run_out_leave_a_gap_that_says_so() -> None:
    products = gram(600, 40, 12, seed=3)
    found = BatchedLasso(products).solve(1e-4, 1e-12, 50)
    assert float((found.gaps / (products.yy / 2).clamp(min=1e-300)).max()) > 1e-12
    best = SparseLasso(products).solve(1e-4, 1e-10, 20_000)
    missing = objectives(products, found, 1e-4, False) - objectives(products, best, 1e-4, False)
    assert bool((missing <= found.gaps + 1e-9).all())


@given(st.integers(0, 1000), st.sampled_from([1, 7, 10**9]))
def test_paired_products_are_the_kernels(seed: int, portion: int) -> None:
    tokens = Tokens.stack(linked_tokens(60, 12, 5, seed))
    expected = sparse_gram_of([tokens])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paired, "PAIRS", portion)
        found = paired_gram(tokens, "cpu")
    for name, tensor in expected.tensors().items():
        mine = found.tensors()[name]
        assert mine.dtype == tensor.dtype and torch.allclose(mine.double(), tensor.double(), rtol=1e-6, atol=0), name
