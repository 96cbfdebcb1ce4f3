"""Products of wide dictionaries, of which only the pairs of latents that ever meet are kept: the stage `products`.

Latents are sparse, and so is everything between them: at most tokens x active sources x active targets pairs are ever
active together, whatever the width. Sums are in float64; what is kept of them is float32.
"""

# torch leaves arguments of some of its methods without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch

from saelink.fit.products.dense import GRAM_VERSION, TrainingStage
from saelink.kernels import in_parts
from saelink.latents.rows import Rows
from saelink.latents.split import Tokens
from saelink.runtime import need_memory
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft

PRODUCTS_FILE = "products.safetensors"

WIDE = 2 * 6144**2
"""Entries of X'X and X'Y together, above which the products are sparse: 600 MB of them."""

PART_TOKENS = 2**20
"""Tokens whose products are summed at a time; the sums of several parts are added."""

EDGE_BYTES = 64 * 100
"""Memory for the edges of a target latent: what a hundred of them take, which is more than a sparse fit has."""

SAMPLED = 64
"""Latents whose pairs are counted to tell how much memory all take."""

BLOCK = 256
"""Latents of one piece of work."""


def is_wide(d_source: int, d_target: int) -> bool:
    """Whether the products of so many latents are kept sparse."""
    return d_source * (d_source + d_target) > WIDE


class SparseMatrix(NamedTuple):
    """A matrix by its rows, columns ascending in each."""

    offsets: torch.Tensor
    """[n + 1] int64"""
    indices: torch.Tensor
    """[pairs] int32"""
    values: torch.Tensor
    """[pairs] float32"""

    def arrays(self) -> tuple[Any, Any, Any]:
        return self.offsets.numpy(), self.indices.numpy(), self.values.numpy()

    def rows(self, ids: torch.Tensor) -> SparseMatrix:
        """The rows `ids`, in this order."""
        picked = Rows(self.offsets, self.indices, self.values, 0).select(ids)
        return SparseMatrix(picked.offsets, picked.indices, picked.values)

    def dense(self, d: int) -> torch.Tensor:
        """[n, d] float64."""
        return Rows(self.offsets, self.indices.long(), self.values.double(), d).dense()


class SparseGram(NamedTuple):
    """Means over the N training tokens, in the units the connector sees."""

    xx: SparseMatrix
    """By source latent its products with all source latents [d_source, d_source]"""
    yx: SparseMatrix
    """and by target latent with all source latents [d_target, d_source]."""
    yy: torch.Tensor
    """[d_target] float64, of y^2"""
    x: torch.Tensor
    """[d_source] float64"""
    y: torch.Tensor
    """[d_target] float64"""

    def explain(self, target_ids: torch.Tensor) -> SparseGram:
        """Only these target latents, in this order."""
        return self._replace(yx=self.yx.rows(target_ids), yy=self.yy[target_ids], y=self.y[target_ids])

    def tensors(self) -> dict[str, torch.Tensor]:
        both = {"xx": self.xx, "yx": self.yx}
        parts = {f"{name}.{part}": tensor for name, matrix in both.items() for part, tensor in matrix._asdict().items()}
        return {**parts, "yy": self.yy, "x": self.x, "y": self.y}

    @staticmethod
    def of_tensors(tensors: dict[str, torch.Tensor]) -> SparseGram:
        xx, yx = (SparseMatrix(*(tensors[f"{name}.{part}"] for part in SparseMatrix._fields)) for name in ("xx", "yx"))
        return SparseGram(xx, yx, tensors["yy"], tensors["x"], tensors["y"])


def _by_blocks(n: int, work: Callable[[int, int], tuple[Any, Any, Any]]) -> SparseMatrix:
    """A matrix of n rows whose blocks `work` makes, in parallel."""
    parts: dict[int, tuple[Any, Any, Any]] = {}

    def keep(first: int, last: int) -> None:
        parts[first] = work(first, last)

    in_parts(n, BLOCK, keep)
    counts, indices, values = (
        np.concatenate(list(each)) for each in zip(*(parts[i] for i in sorted(parts)), strict=True)
    )
    offsets = np.concatenate([np.zeros(1, np.int64), counts]).cumsum()
    return SparseMatrix(torch.from_numpy(offsets), torch.from_numpy(indices), torch.from_numpy(values))


def _compact(rows: Rows) -> tuple[Any, Any, Any]:
    return rows.offsets.numpy(), rows.indices.int().numpy(), rows.values.numpy()


def check_memory(tokens: Tokens, n_tokens: int) -> None:
    """Raise SaelinkError where the products of n_tokens like these don't fit, by a sample of the latents.

    Pairs are new for fewer and fewer tokens, so that this is more than is needed, not less.
    """
    from saelink.kernels.sparse_products import product_rows

    source = tokens.source
    x, pairs = _compact(source), 0.0
    for rows in (source, tokens.target):
        by_latent = _compact(rows.transposed())
        step = max(rows.d // SAMPLED, 1)
        counts = [product_rows(j, j + 1, *by_latent, *x, source.d, 1.0)[0][0] for j in range(0, rows.d, step)]
        more = max(n_tokens / len(tokens), 1.0)
        pairs += rows.d * min(float(np.mean(counts)) * more, float(source.d))
    d_source, d_target = source.d, tokens.target.d
    what = f"solver=exact: {d_source:,} source and {d_target:,} target latents, of which {pairs:,.0f} pairs meet,"
    # Pairs twice while they are put together; the connector's edges; the tokens of a part by row and by latent.
    needed = 2 * 8 * pairs + EDGE_BYTES * d_target + 32 * (len(source.indices) + len(tokens.target.indices))
    need_memory(what, needed, "use SAEs with fewer latents, fewer tokens (data.max_tokens), or solver=proximal")


def _part(tokens: Tokens) -> SparseGram:
    """The means over these tokens."""
    from saelink.kernels.sparse_products import product_rows

    x, n = _compact(tokens.source), len(tokens)

    def products(rows: Rows) -> SparseMatrix:
        by_latent = _compact(rows.transposed())
        return _by_blocks(rows.d, lambda first, last: product_rows(first, last, *by_latent, *x, tokens.source.d, 1 / n))

    def sums(rows: Rows, power: int) -> torch.Tensor:
        return torch.bincount(rows.indices, rows.values.double() ** power, minlength=rows.d) / n

    source, target = tokens.source, tokens.target
    return SparseGram(products(source), products(target), sums(target, 2), sums(source, 1), sums(target, 1))


def _mixed(a: SparseGram, share_a: float, b: SparseGram, share_b: float) -> SparseGram:
    from saelink.kernels.sparse_products import add_rows

    def both(mine: SparseMatrix, theirs: SparseMatrix) -> SparseMatrix:
        arrays = (*mine.arrays(), share_a, *theirs.arrays(), share_b)
        return _by_blocks(len(mine.offsets) - 1, lambda first, last: add_rows(first, last, *arrays))

    means = (share_a * mine + share_b * theirs for mine, theirs in zip(a[2:], b[2:], strict=True))
    return SparseGram(both(a.xx, b.xx), both(a.yx, b.yx), *means)


def sparse_gram_of(
    pieces: Iterable[Tokens], advance: Callable[[int], object] = lambda n: None, n_tokens: int | None = None
) -> SparseGram:
    """The products of all pieces' source and target rows, as means; PART_TOKENS of them are in memory at a time.

    With `n_tokens`, how many they are, it raises SaelinkError at once where they won't fit.
    """
    total: SparseGram | None = None
    n = 0
    for tokens in _in_parts_of(pieces):
        if total is None and n_tokens is not None:
            check_memory(tokens, n_tokens)
        part, m = _part(tokens), len(tokens)
        total = part if total is None else _mixed(total, n / (n + m), part, m / (n + m))
        n += m
        advance(m)
    assert total is not None
    return total


def _in_parts_of(pieces: Iterable[Tokens]) -> Iterator[Tokens]:
    waiting: list[Tokens] = []
    for piece in pieces:
        if waiting and sum(map(len, waiting)) + len(piece) > PART_TOKENS:
            yield Tokens.stack(waiting)
            waiting = []
        waiting.append(piece)
    if waiting:
        yield Tokens.stack(waiting)


class ProductsFacts(TypedDict):
    n_tokens: int
    pairs: int
    """Pairs of latents that ever meet, on the source side and across."""


class ProductsStage(TrainingStage[ProductsFacts]):
    """The products of a link's latents where they are many. File `products.safetensors`: see `SparseGram`."""

    name = "products"
    version = GRAM_VERSION

    @property
    def device(self) -> str:
        return "cpu"

    def make(self, draft: Draft) -> ProductsFacts:
        job, training = self.job, self._open()
        with job.observer.progress("products", len(training)) as bar:
            found = sparse_gram_of(training, bar.advance, len(training))
        tensors = found.tensors()
        job.store.need_space("products", sum(tensor.nbytes for tensor in tensors.values()))
        draft.save_tensors(PRODUCTS_FILE, tensors)
        return {"n_tokens": len(training), "pairs": len(found.xx.indices) + len(found.yx.indices)}


def load_products(artifact: Artifact[ProductsFacts]) -> SparseGram:
    return SparseGram.of_tensors(artifact.tensors(PRODUCTS_FILE))
