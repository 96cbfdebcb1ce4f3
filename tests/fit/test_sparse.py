"""Sparse products and the lasso on them, against the dense ones and against scikit-learn."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saelink.config.schema import Config
from saelink.connectors import exported
from saelink.connectors.exported import WEIGHTS_FILE, packed_state, unpacked_state
from saelink.errors import SaelinkError
from saelink.fit.lasso.coordinate import Lasso
from saelink.fit.lasso.sparse import SparseLasso, SparseSolution
from saelink.fit.products import sparse
from saelink.fit.products.dense import Gram, gram_of
from saelink.fit.products.matrix import SparseGram
from saelink.fit.products.sparse import sparse_gram_of
from saelink.fit.train import TrainStage, fitted_connector
from saelink.job import Job
from saelink.latents.split import Tokens
from saelink.store.store import Store

from helpers.rows import linked_tokens, split_of


def dense_of(products: SparseGram) -> Gram:
    p = len(products.x)
    return Gram(products.xx.dense(p), products.yx.dense(p).T, products.yy, products.x, products.y)


def weights_of(solution: SparseSolution, p: int) -> torch.Tensor:
    W = torch.zeros(p, len(solution.gaps), dtype=torch.float64)
    W[solution.source, solution.target] = solution.weight
    return W


@pytest.mark.parametrize("part_tokens", [2**20, 100, 1])
def test_the_products_are_the_dense_ones(part_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "PART_TOKENS", part_tokens)
    monkeypatch.setattr(sparse, "BLOCK", 7)
    pieces = linked_tokens(600, 40, 12, seed=0)
    advanced: list[int] = []
    products, expected = sparse_gram_of(pieces, advanced.append), gram_of(pieces)
    assert sum(advanced) == 600
    for name, value in dense_of(products)._asdict().items():
        theirs = getattr(expected, name)
        assert torch.allclose(value, theirs, rtol=3e-7, atol=1e-12), name
        assert ((value == 0) == (theirs == 0)).all(), name
    offsets, indices, _ = products.xx
    for first, last in itertools.pairwise(offsets):
        assert (indices[first:last].diff() > 0).all()
    again = SparseGram.of_tensors(products.tensors())
    assert all(torch.equal(again.tensors()[name], tensor) for name, tensor in products.tensors().items())
    some = torch.tensor([3, 0, 7])
    assert torch.equal(products.explain(some).yx.dense(40), products.yx.dense(40)[some])


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("lam", [0.05, 1e-2, 1e-3, 1e-5])
def test_the_optimum_is_that_of_the_dense_lasso(lam: float, positive: bool, centred: bool) -> None:
    products = sparse_gram_of(linked_tokens(900, 60, 16, seed=1))
    dense = dense_of(products).centred() if centred else dense_of(products)
    solution = SparseLasso(products, centred, positive).solve(lam, 1e-7, 100_000)
    W = weights_of(solution, 60)
    primal, bound = Lasso(dense.xx, dense.xy, dense.yy, positive).certificate(W, lam)
    assert (primal - bound <= 1e-6 * dense.yy / 2 + 1e-15).all()  # proved by the other implementation
    assert (solution.gaps <= 1e-7 * dense.yy / 2 + 1e-15).all() and (solution.gaps >= 0).all()
    errors = dense.yy - 2 * (W * dense.xy).sum(0) + (W * (dense.xx @ W)).sum(0)
    assert torch.allclose(solution.errors, errors, rtol=1e-6, atol=1e-9)
    assert not positive or (solution.weight > 0).all()
    assert (W[59] == 0).all() and (W[:, 15] == 0).all()


def test_what_scikit_learn_finds() -> None:
    from sklearn.linear_model import Lasso as Reference

    pieces = linked_tokens(900, 60, 8, seed=2)
    everything = Tokens.stack(pieces)
    x, y = everything.source.dense().double().numpy(), everything.target.dense().double().numpy()
    for bias in (False, True):
        solution = SparseLasso(sparse_gram_of(pieces), bias).solve(2e-3, 1e-9, 100_000)
        theirs = Reference(alpha=2e-3, fit_intercept=bias, tol=1e-13, max_iter=500_000).fit(x, y)
        assert np.allclose(weights_of(solution, 60).numpy().T, theirs.coef_, atol=1e-4)


@given(st.integers(0, 2**31), st.integers(5, 40), st.floats(1e-4, 0.2))
def test_random_problems_reach_their_gap(seed: int, p: int, lam: float) -> None:
    products = sparse_gram_of(linked_tokens(120, p, 5, seed=seed))
    dense = dense_of(products)
    solution = SparseLasso(products).solve(lam, 1e-5, 100_000)
    primal, bound = Lasso(dense.xx, dense.xy, dense.yy).certificate(weights_of(solution, p), lam)
    assert (primal - bound <= 2e-5 * dense.yy / 2 + 1e-12).all()


@pytest.mark.parametrize("centred", [False, True])
def test_debias_is_least_squares_on_the_support(centred: bool) -> None:
    products = sparse_gram_of(linked_tokens(900, 60, 8, seed=3))
    dense = dense_of(products).centred() if centred else dense_of(products)
    lasso = SparseLasso(products, centred)
    plain, refitted = lasso.solve(1e-2, 1e-6, 100_000), lasso.solve(1e-2, 1e-6, 100_000, debias=True)
    assert torch.equal(plain.source, refitted.source) and torch.equal(plain.gaps, refitted.gaps)
    expected = Lasso(dense.xx, dense.xy, dense.yy).refit(weights_of(plain, 60))
    assert torch.allclose(weights_of(refitted, 60), expected, atol=1e-5)
    assert (refitted.errors <= plain.errors + 1e-12).all()


def test_threads_change_nothing() -> None:
    products = sparse_gram_of(linked_tokens(900, 60, 40, seed=4))
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            found.append(SparseLasso(products).solve(1e-3, 1e-5, 100_000))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_sweep_limit_leaves_a_true_gap() -> None:
    products = sparse_gram_of(linked_tokens(900, 60, 16, seed=5))
    dense = dense_of(products)
    solution = SparseLasso(products).solve(1e-5, 1e-9, 1)
    primal, bound = Lasso(dense.xx, dense.xy, dense.yy).certificate(weights_of(solution, 60), 1e-5)
    assert (solution.gaps >= primal - bound - 1e-9).all() and (solution.gaps > 1e-9 * dense.yy).any()


def test_split_of_is_the_same_as_pieces() -> None:
    pieces = linked_tokens(300, 30, 5, seed=6)
    everything = Tokens.stack(pieces)
    a, b = sparse_gram_of(pieces), sparse_gram_of(split_of(everything.source, everything.target))
    assert all(torch.equal(x, y) for x, y in zip(a.tensors().values(), b.tensors().values(), strict=True))


@pytest.mark.parametrize("extra", [[], ["connector.bias=true"], ["solver.positive=true"], ["solver.debias=true"]])
def test_a_wide_connector_is_the_narrow_one(
    config: Callable[..., Config], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str]
) -> None:
    cfg = config("solver=exact", "solver.tolerance=1e-7", "l1_alpha=5e-2", *extra)
    narrow = TrainStage(Job(cfg, store)).pull()
    monkeypatch.setattr(sparse, "WIDE", 0)
    monkeypatch.setattr(exported, "LARGE", 1)
    other = Store(tmp_path / "wide")
    wide = TrainStage(Job(config("solver=exact", "solver.tolerance=1e-7", "l1_alpha=5e-2", *extra), other)).pull()
    assert "W.indices" in wide.tensors(WEIGHTS_FILE)
    assert any(artifact.stage == "products" for artifact in other.artifacts())
    for name in ("validation_mse", "l1", "train_mse", "training_objective"):
        assert wide.facts[name] == pytest.approx(narrow.facts[name], rel=1e-4), name  # type: ignore[literal-required]
    assert wide.facts["worst_gap"] <= 1e-7  # type: ignore[typeddict-item]
    theirs, ours = (fitted_connector(artifact).state_dict() for artifact in (narrow, wide))
    assert theirs.keys() == ours.keys()
    assert all(torch.allclose(ours[name].float(), theirs[name].float(), atol=1e-2) for name in ours)
    again = config("solver=proximal", f"connector.init={wide.key}", "solver.tokens=256")
    assert TrainStage(Job(again, other)).pull().facts["n_edges"] > 0  # its file is read as a start too


def test_what_does_not_fit_is_refused_before_it_is_computed(
    config: Callable[..., Config], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse, "WIDE", 0)
    job = Job(config("solver=exact"), store)
    _ = job.sides
    monkeypatch.setattr("saelink.runtime.memory_available", lambda: 1000)
    with pytest.raises(SaelinkError, match=r"solver=exact: .* pairs meet, need .* of memory, .* use SAEs with fewer"):
        TrainStage(job).pull()
    assert not [artifact for artifact in store.artifacts() if artifact.stage in ("products", "train")]


@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 30), st.sampled_from([0.0, 0.1, 0.9]))
def test_packed_weights_are_the_weights(seed: int, n: int, m: int, density: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(n, m, generator=generator) * (torch.rand(n, m, generator=generator) < density)
    state = {"W": W, "b": torch.randn(m, generator=generator), "target_ids": torch.arange(m)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exported, "LARGE", 1)
        packed = packed_state(state)
    assert ("W" in packed) == (int(W.count_nonzero()) >= W.numel() // 4)
    again = unpacked_state(packed)
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)
    assert packed_state(state).keys() == state.keys()  # small ones stay as they are
