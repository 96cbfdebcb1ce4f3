"""Products of wide dictionaries, of which only the pairs of latents that ever meet are kept: the stage `products`.

Latents are sparse, and so is everything between them: at most tokens x active sources x active targets pairs are ever
active together, whatever the width. Sums are in float64; what is kept of them is float32.
"""

# torch leaves arguments of some of its methods without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch

from saelink.config.schema import Config
from saelink.engine.work import Work
from saelink.fit.products.dense import GRAM_VERSION, TrainingStage, training_split
from saelink.fit.products.matrix import SparseGram, SparseMatrix
from saelink.fit.products.paired import paired_products
from saelink.kernels import in_parts
from saelink.latents.rows import Rows
from saelink.latents.split import Split, Tokens
from saelink.runtime import need_memory
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft, Part, Parts

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
"""Latents that one thread takes at a time,"""

TASK_LATENTS = 2048
"""and one worker: seconds of work."""


def is_wide(d_source: int, d_target: int) -> bool:
    """Whether the products of so many latents are kept sparse."""
    return d_source * (d_source + d_target) > WIDE


def _by_blocks(n: int, work: Callable[[int, int], tuple[Any, Any, Any]]) -> SparseMatrix:
    """A matrix of n rows whose blocks `work` makes, in parallel."""
    parts: dict[int, tuple[Any, Any, Any]] = {}

    def keep(first: int, last: int) -> None:
        parts[first] = work(first, last)

    in_parts(n, BLOCK, keep)
    return _joined([parts[first] for first in sorted(parts)])


def _joined(blocks: list[tuple[Any, Any, Any]]) -> SparseMatrix:
    """One matrix from blocks of its rows: how many pairs each row has, then columns and values of them all."""
    counts, indices, values = (np.concatenate(list(each)) for each in zip(*blocks, strict=True))
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


class _Turned(NamedTuple):
    """Tokens as products are taken of them."""

    n: int
    d: dict[str, int]
    """Latents of `xx`, the source's, and of `yx`, the target's;"""
    by_latent: dict[str, tuple[Any, Any, Any]]
    """where each is active; and by token the active sources."""
    x: tuple[Any, Any, Any]

    @staticmethod
    def of(tokens: Tokens) -> _Turned:
        sides = {"xx": tokens.source, "yx": tokens.target}
        by_latent = {name: _compact(rows.transposed()) for name, rows in sides.items()}
        return _Turned(len(tokens), {name: rows.d for name, rows in sides.items()}, by_latent, _compact(tokens.source))

    def products(self, matrix: str, start: int, end: int) -> SparseMatrix:
        """The means over these tokens for the latents `start` to `end` of one side with all sources."""
        from saelink.kernels.sparse_products import product_rows

        given = (*self.by_latent[matrix], *self.x, self.d["xx"], 1 / self.n)
        return _by_blocks(end - start, lambda first, last: product_rows(start + first, start + last, *given))


class _Sums(NamedTuple):
    """Means of single latents."""

    yy: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor

    @staticmethod
    def of(tokens: Tokens) -> _Sums:
        def sums(rows: Rows, power: int) -> torch.Tensor:
            return torch.bincount(rows.indices, rows.values.double() ** power, minlength=rows.d) / len(tokens)

        return _Sums(sums(tokens.target, 2), sums(tokens.source, 1), sums(tokens.target, 1))

    def mixed(self, mine: float, other: _Sums, theirs: float) -> _Sums:
        return _Sums(*(mine * a + theirs * b for a, b in zip(self, other, strict=True)))


def _mixed(a: SparseMatrix, share_a: float, b: SparseMatrix, share_b: float) -> SparseMatrix:
    from saelink.kernels.sparse_products import add_rows

    arrays = (*a.arrays(), share_a, *b.arrays(), share_b)
    return _by_blocks(len(a.offsets) - 1, lambda first, last: add_rows(first, last, *arrays))


def _products(tokens: Tokens, device: str) -> tuple[SparseMatrix, SparseMatrix]:
    """The means of X'X and Y'X over these tokens."""
    if device != "cpu":
        source, target = tokens.source, tokens.target
        return paired_products(source, source, device), paired_products(target, source, device)
    turned = _Turned.of(tokens)
    xx, yx = (turned.products(matrix, 0, d) for matrix, d in turned.d.items())
    return xx, yx


def sparse_gram_of(
    pieces: Iterable[Tokens],
    advance: Callable[[int], object] = lambda n: None,
    n_tokens: int | None = None,
    device: str = "cpu",
) -> SparseGram:
    """The products of all pieces' source and target rows, as means; PART_TOKENS of them are in memory at a time.

    With `n_tokens`, how many they are, it raises SaelinkError at once where they won't fit. On a GPU, `device`, pairs
    are sorted, see `paired`.
    """
    total: tuple[SparseMatrix, SparseMatrix, _Sums] | None = None
    n = 0
    for tokens in _in_parts_of(pieces):
        if total is None and n_tokens is not None:
            check_memory(tokens, n_tokens)
        m = len(tokens)
        xx, yx = _products(tokens, device)
        part = xx, yx, _Sums.of(tokens)
        if total is not None:
            old, new = n / (n + m), m / (n + m)
            xx, yx = (_mixed(a, old, b, new) for a, b in zip(total[:2], part[:2], strict=True))
            part = xx, yx, total[2].mixed(old, part[2], new)
        total = part
        n += m
        advance(m)
    assert total is not None
    return SparseGram(total[0], total[1], *total[2])


def _in_parts_of(pieces: Iterable[Tokens]) -> Iterator[Tokens]:
    waiting: list[Tokens] = []
    for piece in pieces:
        if waiting and sum(map(len, waiting)) + len(piece) > PART_TOKENS:
            yield Tokens.stack(waiting)
            waiting = []
        waiting.append(piece)
    if waiting:
        yield Tokens.stack(waiting)


class LatentsBlock(NamedTuple):
    """A task: the products of some latents of one side, `xx` or `yx`, with all sources."""

    matrix: str
    first: int
    last: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.matrix}-{self.first:06d}-{self.last:06d}.safetensors"


class TrainingTokens:
    """A split, part by part; one that is a single part is turned once."""

    def __init__(self, split: Split):
        self._split = split
        self._kept: list[_Turned] | None = None

    def parts(self) -> Iterable[_Turned]:
        if self._kept is None and len(self._split) <= PART_TOKENS:
            self._kept = [_Turned.of(tokens) for tokens in _in_parts_of(self._split)]
        return map(_Turned.of, _in_parts_of(self._split)) if self._kept is None else self._kept


@dataclass(frozen=True)
class ProductsWork(Work[TrainingTokens, LatentsBlock, Part]):
    """The products of a block of latents, written as a file of the draft.

    A row of the products is the same whatever block it is in, so blocks are only a matter of work.
    """

    cfg: Config
    draft: Parts
    pairs: int
    """Of source and target rows of the training tokens."""

    def memory(self) -> int:
        return 48 * min(self.pairs, 2**26)  # as read, then by token and by latent

    def open(self) -> TrainingTokens:
        return TrainingTokens(training_split(self.cfg))

    def run(self, state: TrainingTokens, task: LatentsBlock) -> Part:
        total: SparseMatrix | None = None
        n = 0
        for turned in state.parts():
            part, m = turned.products(*task), turned.n
            total = part if total is None else _mixed(total, n / (n + m), part, m / (n + m))
            n += m
        assert total is not None
        return self.draft.save_tensors(task.name, total._asdict())


class ProductsFacts(TypedDict):
    n_tokens: int
    pairs: int
    """Pairs of latents that ever meet, on the source side and across."""


class ProductsStage(TrainingStage[ProductsFacts]):
    """The products of a link's latents where they are many. File `products.safetensors`: see `SparseGram`."""

    name = "products"
    version = GRAM_VERSION

    def make(self, draft: Draft) -> ProductsFacts:
        job, training = self.job, self._open()
        if job.engine.several and job.device == "cpu":
            found = self._by_workers(draft, training)
        else:
            with job.observer.progress("products", len(training)) as bar:
                found = sparse_gram_of(training, bar.advance, len(training), job.device)
        tensors = found.tensors()
        job.store.need_space("products", sum(tensor.nbytes for tensor in tensors.values()))
        draft.save_tensors(PRODUCTS_FILE, tensors)
        return {"n_tokens": len(training), "pairs": len(found.xx.indices) + len(found.yx.indices)}

    def _by_workers(self, draft: Draft, training: Split) -> SparseGram:
        """The same products, blocks of latents by whoever is free."""
        job = self.job
        sums: _Sums | None = None
        n, pairs = 0, 0
        for tokens in _in_parts_of(training):
            if sums is None:
                check_memory(tokens, len(training))
            part, m = _Sums.of(tokens), len(tokens)
            sums = part if sums is None else sums.mixed(n / (n + m), part, m / (n + m))
            n += m
            pairs += len(tokens.source.indices) + len(tokens.target.indices)
        assert sums is not None
        sides = {"xx": job.sides.d_source, "yx": job.sides.d_target}
        blocks = [
            LatentsBlock(matrix, first, min(first + TASK_LATENTS, d))
            for matrix, d in sides.items()
            for first in range(0, d, TASK_LATENTS)
        ]
        with job.observer.progress("products", sum(sides.values()), "latents") as bar:

            def done(block: LatentsBlock, part: Part) -> None:
                draft.take(part)
                bar.advance(block.last - block.first)

            job.engine.run("products", ProductsWork(job.engine.of_worker(job.cfg), draft.parts, pairs), blocks, done)

        def joined(matrix: str) -> SparseMatrix:
            read = (draft.tensors(block.name) for block in blocks if block.matrix == matrix)
            return _joined([(part["offsets"].diff(), part["indices"], part["values"]) for part in read])

        found = SparseGram(joined("xx"), joined("yx"), *sums)
        draft.drop([block.name for block in blocks])
        return found


def load_products(artifact: Artifact[ProductsFacts]) -> SparseGram:
    return SparseGram.of_tensors(artifact.tensors(PRODUCTS_FILE))
