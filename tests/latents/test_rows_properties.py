"""Sparse rows against dense matrices, for whatever rows there can be.

Values and weights are small multiples of 1/8, so that sums are exact in float32 in whatever order they are taken, and
what is compared is equal to the last bit.
"""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from saelink.latents.rows import Rows, column_sums, offsets_of, pack, sparse_linear, sparse_transposed, unpack
from saelink.latents.split import Split, Tokens

EIGHTHS = st.integers(-64, 64).map(lambda i: i / 8)

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def rows_from(ids: list[list[int]], values: list[float], d: int) -> Rows:
    """Rows with these latents each, and the values of all pairs."""
    offsets = torch.tensor([0, *itertools.accumulate(map(len, ids))])
    indices = torch.tensor([latent for row in ids for latent in row], dtype=torch.int64)
    return Rows(offsets, indices, torch.tensor(values, dtype=torch.float32), d)


@st.composite
def sparse(
    draw: st.DrawFn,
    n: int | None = None,
    d: int | None = None,
    values: st.SearchStrategy[float] = EIGHTHS,
) -> Rows:
    """Rows in which a row may be empty, a latent may never fire and a value may be zero; no latent twice in a row."""
    n = draw(st.integers(0, 5)) if n is None else n
    d = draw(st.integers(1, 6)) if d is None else d
    some = st.sets(st.integers(0, d - 1), max_size=4)
    ids = [sorted(draw(some)) for _ in range(n)]
    count = sum(map(len, ids))
    return rows_from(ids, draw(st.lists(values, min_size=count, max_size=count)), d)


@st.composite
def matrix(draw: st.DrawFn, n: int, m: int) -> torch.Tensor:
    numbers = draw(st.lists(EIGHTHS, min_size=n * m, max_size=n * m))
    return torch.tensor(numbers, dtype=torch.float32).reshape(n, m)


def by_hand(rows: Rows) -> torch.Tensor:
    """The dense matrix, pair by pair."""
    out = torch.zeros(len(rows), rows.d)
    for row in range(len(rows)):
        for pair in range(int(rows.offsets[row]), int(rows.offsets[row + 1])):
            out[row, rows.indices[pair]] = rows.values[pair]
    return out


def check(rows: Rows, expected: torch.Tensor) -> None:
    """That these are well-formed rows, and what they hold."""
    starts = rows.offsets.tolist()
    assert starts[0] == 0 and starts == sorted(starts) and starts[-1] == len(rows.indices) == len(rows.values)
    for first, last in itertools.pairwise(starts):
        ids = rows.indices[first:last].tolist()
        assert ids == sorted(set(ids)) and all(0 <= latent < rows.d for latent in ids)
    assert rows.offsets.dtype == rows.indices.dtype == torch.int64 and rows.values.dtype == torch.float32
    assert rows.row_of.tolist() == [r for r, (a, b) in enumerate(itertools.pairwise(starts)) for _ in range(b - a)]
    assert by_hand(rows).shape == expected.shape and torch.equal(by_hand(rows), expected)
    assert torch.equal(rows.dense(), expected)


@given(sparse())
def test_pairs_and_dense_matrices_make_the_same_rows(rows: Rows) -> None:
    """Each row's pairs, zeros among the values too; from the dense matrix the same without them."""
    dense = by_hand(rows)
    row = torch.tensor([r for r in range(len(rows)) for _ in range(int(rows.offsets[r + 1] - rows.offsets[r]))]).long()
    paired = Rows.from_pairs(row, rows.indices, rows.values, n=len(rows), d=rows.d)
    check(paired, dense)
    assert torch.equal(paired.offsets, rows.offsets)
    assert paired.indices is rows.indices and paired.values is rows.values, "no copy"
    check(Rows.from_dense(dense), dense)
    assert bool((Rows.from_dense(dense).values != 0).all())


def test_a_pair_past_the_last_row_is_refused() -> None:
    with pytest.raises(AssertionError, match="past the last row"):
        Rows.from_pairs(torch.tensor([0, 2]), torch.tensor([0, 0]), torch.ones(2), n=2, d=1)


@given(st.lists(st.integers(0, 9)))
def test_offsets_are_where_each_run_begins(lengths: list[int]) -> None:
    assert offsets_of(torch.tensor(lengths, dtype=torch.int64)).tolist() == list(
        itertools.accumulate(lengths, initial=0)
    )


@given(sparse())
def test_transposed_has_a_row_for_each_latent(rows: Rows) -> None:
    check(rows.transposed(), by_hand(rows).T)
    check(rows.transposed().transposed(), by_hand(rows))


@given(st.data())
def test_select_takes_rows_in_any_order(data: st.DataObject) -> None:
    rows = data.draw(sparse())
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8)) if len(rows) else []
    ids = torch.tensor(chosen, dtype=torch.int64)
    check(rows.select(ids), by_hand(rows)[ids])
    check(rows, by_hand(rows))


@given(st.data())
def test_columns_keeps_and_renumbers(data: st.DataObject) -> None:
    rows = data.draw(sparse())
    chosen = sorted(data.draw(st.sets(st.integers(0, rows.d - 1))))
    ids = torch.tensor(chosen, dtype=torch.int64)
    check(rows.columns(ids), by_hand(rows)[:, ids])


@given(st.data())
def test_stack_puts_rows_under_one_another(data: st.DataObject) -> None:
    d = data.draw(st.integers(1, 7))
    parts = data.draw(st.lists(sparse(d=d), min_size=1, max_size=3))
    check(Rows.stack(parts), torch.cat([by_hand(part) for part in parts]))


@given(st.data())
def test_beside_puts_latents_side_by_side(data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 6))
    parts = data.draw(st.lists(sparse(n=n), min_size=1, max_size=3))
    both = Rows.beside(parts)
    check(both, torch.cat([by_hand(part) for part in parts], 1))
    first = 0
    for part in parts:  # and columns() gives each part back
        check(both.columns(torch.arange(first, first + part.d)), by_hand(part))
        first += part.d


@given(sparse(), EIGHTHS)
def test_scaled_and_column_sums(rows: Rows, factor: float) -> None:
    before = by_hand(rows)
    check(rows.scaled(factor), before * factor)
    check(rows, before)
    assert torch.equal(column_sums(rows), before.sum(0)) and column_sums(rows).dtype == torch.float32


@given(st.data())
def test_the_products_are_those_of_the_dense_matrix(data: st.DataObject) -> None:
    """Forward, backward and transposed, for rows that are empty and latents that never fire too."""
    rows = data.draw(sparse())
    m = data.draw(st.integers(1, 3))
    weight = data.draw(matrix(rows.d, m)).requires_grad_()
    upstream = data.draw(matrix(len(rows), m))
    dense = by_hand(rows)
    out = sparse_linear(rows, weight)
    assert out.shape == (len(rows), m) and torch.equal(out, dense @ weight)
    (out * upstream).sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, dense.T @ upstream)
    assert torch.equal(sparse_transposed(rows, upstream), dense.T @ upstream)


# --------------------------------------------------------------------------- shards


def to_bfloat16(values: torch.Tensor) -> torch.Tensor:
    """The nearest bfloat16, of two as near the one whose last bit is 0; by the bits of a float32."""
    bits = values.numpy().view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return torch.from_numpy(rounded.astype(np.uint32).view(np.float32))


WIDTHS = st.integers(1, 20) | st.sampled_from([2**16 - 1, 2**16, 2**16 + 1, 70_000, 2**31 - 1, 2**31])


@st.composite
def shards(draw: st.DrawFn) -> Rows:
    """Rows of few or many latents, the first and the last of them likely, with any finite float32."""
    d = draw(WIDTHS)
    ids = st.integers(0, d - 1) | st.sampled_from([0, d - 1, min(d - 1, 2**15), min(d - 1, 2**16 - 1)])
    rows = draw(st.lists(st.lists(ids, unique=True, max_size=5).map(sorted), max_size=6))
    count = sum(map(len, rows))
    return rows_from(rows, draw(st.lists(FLOATS, min_size=count, max_size=count)), d)


@given(shards())
@example(rows_from([[2**16 - 1]], [1.00390625], 2**16))  # halfway between two bfloat16
@example(rows_from([[2**31 - 1]], [3.4028234663852886e38], 2**31))  # larger than any bfloat16
def test_a_shard_keeps_ids_and_rounds_values_once(rows: Rows) -> None:
    packed = pack(rows)
    assert packed["indices"].dtype == (torch.uint16 if rows.d <= 2**16 else torch.int32)
    assert packed["values"].dtype == torch.bfloat16 and packed["lengths"].dtype == torch.int32
    back = unpack(packed, rows.d)
    assert torch.equal(back.offsets, rows.offsets) and torch.equal(back.indices, rows.indices) and back.d == rows.d
    assert torch.equal(back.values.view(torch.int32), to_bfloat16(rows.values).view(torch.int32))
    again = pack(back)  # what bfloat16 can hold comes back to the last bit
    assert torch.equal(unpack(again, rows.d).values.view(torch.int32), back.values.view(torch.int32))
    assert all(again[name].equal(packed[name]) for name in packed)


# --------------------------------------------------------------------------- splits


class Small(Split):
    """A split too large to be kept, two pieces in memory at a time."""

    IN_MEMORY, POOL = 0, 2


def numbered(n: int) -> Tokens:
    """n tokens: the source latent that is active says which, the target's value does too."""
    tokens = torch.arange(n)
    offsets = torch.arange(n + 1)
    target = Rows(offsets, torch.zeros(n, dtype=torch.int64), (tokens + 1).float(), 1)
    return Tokens(Rows(offsets, tokens, torch.ones(n), n), target, tokens, torch.ones(n, dtype=torch.bool))


@st.composite
def splits(draw: st.DrawFn) -> Split:
    """A split of numbered tokens in pieces, some of them empty; kept in memory or not."""
    n = draw(st.integers(1, 20))
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=6)))
    tokens = numbered(n)
    pieces = [partial(tokens.select, torch.arange(a, b)) for a, b in itertools.pairwise([0, *cuts, n])]
    return draw(st.sampled_from([Split, Small]))(pieces)


@given(splits(), st.integers(1, 9), st.booleans())
def test_the_parts_of_a_split_are_the_split(split: Split, of: int, counted: bool) -> None:
    n = split.counts.tokens if counted else None
    pieces = [piece for number in range(of) for piece in split.part(number, of)]
    rows = torch.cat([piece.row for piece in pieces]).tolist()
    assert rows == list(range(len(rows))) and n in (None, len(rows))
    assert torch.equal(Tokens.stack(pieces).source.dense(), torch.eye(len(rows)))


@given(splits(), st.integers(1, 45), st.integers(0, 2**32 - 1))
def test_every_shuffled_pass_meets_every_token_once(split: Split, size: int, seed: int) -> None:
    n = len(split)
    order: list[int] = []
    for source, target in split.shuffled(size, torch.Generator().manual_seed(seed)):
        assert len(source) == len(target) == size
        assert torch.equal(source.indices + 1, target.values.long()), "source and target of one token"
        order += source.indices.tolist()
        if len(order) >= 3 * n:
            break
    for first in range(0, 3 * n, n):
        assert sorted(order[first : first + n]) == list(range(n))


@given(st.data())
def test_single_values_are_those_of_the_dense_matrix(data: st.DataObject) -> None:
    rows = data.draw(sparse(n=data.draw(st.integers(1, 5))))
    places = st.tuples(st.integers(0, len(rows) - 1), st.integers(0, rows.d - 1))
    asked = torch.tensor(data.draw(st.lists(places, max_size=8)), dtype=torch.int64).reshape(-1, 2)
    assert torch.equal(rows.at(asked[:, 0], asked[:, 1]), by_hand(rows)[asked[:, 0], asked[:, 1]])
