"""The lasso of many targets by blocks of them, each a task of the engine and a file of the draft."""

# torch leaves arguments of some of its methods without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import torch

from saelink.engine.tasks import Engine
from saelink.engine.work import Work
from saelink.fit.lasso.sparse import SparseLasso, SparseSolution
from saelink.fit.products.matrix import SparseGram
from saelink.fit.products.sparse import ProductsFacts, load_products
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft, Part, Parts

TARGETS = 512
"""Of one task: seconds to minutes of work."""


class TargetsBlock(NamedTuple):
    """A task: targets `first` to `last` of a fit, which are these latents of the target SAE."""

    first: int
    last: int
    latents: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of its file."""
        return f"targets-{self.first:06d}-{self.last:06d}.safetensors"


class LassoSettings(NamedTuple):
    """What `SparseLasso` and its `solve` are told."""

    centred: bool
    positive: bool
    lam: float
    tolerance: float
    max_sweeps: int
    debias: bool


@dataclass(frozen=True)
class TargetsWork(Work[SparseGram, TargetsBlock, Part]):
    """The fits of a block of targets. The solution of a target is the same whatever block it is in."""

    products: str
    """Folder of the products' artifact. Workers of one machine share its pages: the file is mapped, not copied."""
    draft: Parts
    settings: LassoSettings

    def memory(self) -> int:
        return 2**30  # the products are shared

    def open(self) -> SparseGram:
        artifact: Artifact[ProductsFacts] = Artifact(Path(self.products))
        return load_products(artifact)

    def run(self, state: SparseGram, task: TargetsBlock) -> Part:
        how = self.settings
        lasso = SparseLasso(state.explain(torch.tensor(task.latents)), how.centred, how.positive)
        solution = lasso.solve(how.lam, how.tolerance, how.max_sweeps, how.debias)
        return self.draft.save_tensors(task.name, solution._asdict())


class TargetBlocks(NamedTuple):
    """Who solves a wide fit's targets, and where the blocks go that are solved; those that are there are kept."""

    engine: Engine
    draft: Draft
    products: Artifact[ProductsFacts]
    target_ids: torch.Tensor

    def solve(self, settings: LassoSettings, done: Callable[[int], object]) -> SparseSolution:
        """As `SparseLasso.solve`."""
        draft, ids = self.draft, cast("list[int]", self.target_ids.tolist())
        bounds = [(first, min(first + TARGETS, len(ids))) for first in range(0, len(ids), TARGETS)]
        blocks = [TargetsBlock(first, last, tuple(ids[first:last])) for first, last in bounds]
        missing = [block for block in blocks if block.name not in draft]
        if len(missing) < len(blocks):
            done(len(ids) - sum(len(block.latents) for block in missing))

        def take(block: TargetsBlock, part: Part) -> None:
            draft.take(part)
            done(len(block.latents))

        work = TargetsWork(str(self.products.path.resolve()), draft.parts, settings)
        opened = load_products(self.products)  # here it is known whole; damage gets its line before workers begin
        self.engine.run("train", work, missing, take, opened)
        solution = joined([SparseSolution(**draft.tensors(block.name)) for block in blocks])
        draft.drop([block.name for block in blocks])
        return solution


def joined(blocks: list[SparseSolution]) -> SparseSolution:
    """One solution of targets that follow one another."""
    lengths = torch.cat([torch.zeros(1, dtype=torch.int64), *(block.offsets.diff() for block in blocks)])
    others = (torch.cat(list(each)) for each in zip(*(block[1:] for block in blocks), strict=True))
    return SparseSolution(lengths.cumsum(0), *others)
