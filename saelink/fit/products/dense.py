"""Products of source and target latents over the training tokens, dense: the stage `gram`.

Everything a linear connector's squared error depends on, in one pass over the text; shared by every penalty and
every choice of targets.
"""

# torch leaves arguments of some of its methods without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch

from saelink import memory
from saelink.config.schema import Config
from saelink.config.size import gigabytes
from saelink.engine.work import Work
from saelink.job import Job, JobStage
from saelink.kernels import in_parts
from saelink.latents.link import counted_split, pull_sides
from saelink.latents.rows import Rows, offsets_of
from saelink.latents.split import Split, Tokens
from saelink.runtime import need_memory
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft, Part, Parts
from saelink.store.stage import Facts, Need
from saelink.store.store import Store

GRAM_VERSION = 1
"""Of dense and of sparse products: part of the keys of what is fitted from them."""

GRAM_FILE = "gram.safetensors"

STEP = 131_072
"""Tokens of one piece: all of the products are read and written once for each."""

PART_TOKENS, PARTS = 2**22, 16
"""Products of so many tokens, and no more parts than that, are a task each. The order of the sum, and so its last bit,
does not depend on how many workers there are."""


class Gram(NamedTuple):
    """Means over the N training tokens, float64, in the units the connector sees."""

    xx: torch.Tensor
    """[d_source, d_source]"""
    xy: torch.Tensor
    """[d_source, d_target]"""
    yy: torch.Tensor
    """[d_target] of y^2"""
    x: torch.Tensor
    """[d_source]"""
    y: torch.Tensor
    """[d_target]"""

    def explain(self, target_ids: torch.Tensor) -> Gram:
        """Only these target latents, in this order."""
        return self._replace(xy=self.xy[:, target_ids], yy=self.yy[target_ids], y=self.y[target_ids])

    def to(self, device: str) -> Gram:
        return Gram(*(tensor.to(device) for tensor in self))

    def centred(self) -> Gram:
        """Around the means: what is left to explain beside a bias."""
        return self._replace(
            xx=self.xx - torch.outer(self.x, self.x),
            xy=self.xy - torch.outer(self.x, self.y),
            yy=self.yy - self.y.square(),
        )


class ProductSums(NamedTuple):
    """The products of some tokens before they are divided by anything, float64; of xx only the upper half counts."""

    n: int
    xx: np.ndarray[Any, Any]
    xy: np.ndarray[Any, Any]
    yy: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor

    @staticmethod
    def zero(d_source: int, d_target: int) -> ProductSums:
        yy, x, y = (torch.zeros(d, dtype=torch.float64) for d in (d_target, d_source, d_target))
        return ProductSums(0, np.zeros((d_source, d_source)), np.zeros((d_source, d_target)), yy, x, y)

    def tensors(self) -> dict[str, torch.Tensor]:
        arrays = {"xx": torch.from_numpy(self.xx), "xy": torch.from_numpy(self.xy)}
        return {"n": torch.tensor(self.n), **arrays, "yy": self.yy, "x": self.x, "y": self.y}

    def plus(self, tensors: dict[str, torch.Tensor]) -> ProductSums:
        """With another part's added, in place."""
        self.xx.__iadd__(tensors["xx"].numpy())
        self.xy.__iadd__(tensors["xy"].numpy())
        for mine, theirs in ((self.yy, "yy"), (self.x, "x"), (self.y, "y")):
            mine += tensors[theirs]
        return self._replace(n=self.n + int(tensors["n"]))

    def means(self) -> Gram:
        upper, n = torch.from_numpy(self.xx), self.n
        full = upper + upper.triu(1).T
        return Gram(full / n, torch.from_numpy(self.xy) / n, self.yy / n, self.x / n, self.y / n)


def sums_of(
    pieces: Iterable[Tokens], d_source: int, d_target: int, advance: Callable[[int], object] = lambda n: None
) -> ProductSums:
    """The products of all pieces' source and target rows, accumulated in float64."""
    from saelink.kernels.products import add_products

    sums = ProductSums.zero(d_source, d_target)
    n = 0
    for source, target in _together(pieces):
        order = torch.sort(source.indices, stable=True).indices
        starts = offsets_of(torch.bincount(source.indices, minlength=d_source))
        pairs = (order, source.row_of, *_pairs(source), starts, *_pairs(target))
        arrays = [*(tensor.numpy() for tensor in pairs), sums.xx, sums.xy]
        in_parts(d_source, 16, lambda first, last: add_products(first, last, *arrays))  # noqa: B023 (used at once)
        sums.yy.add_(torch.bincount(target.indices, target.values.double().square(), minlength=d_target))
        sums.x.add_(torch.bincount(source.indices, source.values.double(), minlength=d_source))
        sums.y.add_(torch.bincount(target.indices, target.values.double(), minlength=d_target))
        n += len(source)
        advance(len(source))
    return sums._replace(n=n)


def gram_of(pieces: Iterable[Tokens], advance: Callable[[int], object] = lambda n: None) -> Gram:
    """The products of all pieces' source and target rows, as means."""
    pieces = iter(pieces)
    first = next(pieces)
    return sums_of(itertools.chain([first], pieces), first.source.d, first.target.d, advance).means()


def _together(pieces: Iterable[Tokens]) -> Iterator[tuple[Rows, Rows]]:
    """Source and target rows of at most STEP tokens, or of one piece that is larger than that, at a time."""
    waiting: list[Tokens] = []
    for piece in pieces:
        if waiting and sum(map(len, waiting)) + len(piece) > STEP:
            together = Tokens.stack(waiting)
            yield together.source, together.target
            waiting = []
        waiting.append(piece)
    if waiting:
        together = Tokens.stack(waiting)
        yield together.source, together.target


def _pairs(rows: Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return rows.offsets, rows.indices, rows.values


class GramFacts(TypedDict):
    n_tokens: int


class TrainingStage(JobStage[Facts]):
    """Something computed from the training tokens alone, in the units the connector sees.

    `training` is the training split if it is open already.
    """

    def __init__(self, job: Job, training: Split | None = None):
        super().__init__(job)
        self._training = training

    def recipe(self) -> dict[str, Any]:
        cfg = self.job.cfg
        return {
            "latent_scale": cfg.latent_scale.name,
            "drop_positions": cfg.data.drop_positions,
            "max_norm_ratio": cfg.data.max_norm_ratio,
        }

    def inputs(self) -> dict[str, str]:
        return self.latents_inputs()

    def about(self) -> str:
        return self.job.about

    def _open(self) -> Split:
        if self._training is not None:
            return self._training
        return counted_split(self.job.cfg, self.job.sides, "train")


@dataclass(frozen=True)
class GramWork(Work[Split, int, Part]):
    """The sums of one part of the training tokens, by its number."""

    cfg: Config
    draft: Parts
    n_parts: int
    d_source: int
    d_target: int

    def memory(self) -> int:
        return 8 * self.d_source * (self.d_source + self.d_target)

    def open(self) -> Split:
        return training_split(self.cfg)

    def run(self, state: Split, task: int) -> Part:
        sums = sums_of(state.part(task, self.n_parts), self.d_source, self.d_target)
        return self.draft.save_tensors(part_name(task), sums.tensors())


def training_split(cfg: Config) -> Split:
    """The training tokens of a job, opened by a worker."""
    return counted_split(cfg, pull_sides(cfg, Store(cfg.runtime.outputs)), "train")


def part_name(number: int) -> str:
    return f"part-{number:02d}.safetensors"


class GramStage(TrainingStage[GramFacts]):
    """The products of all target latents of a link. File `gram.safetensors`: see `Gram`.

    Raises SaelinkError where they don't fit into memory.
    """

    name = "gram"
    version = GRAM_VERSION

    def need(self) -> Need:
        sides = self.job.sides
        tokens = sides.target.facts["sequences"]["train"] * sides.target.facts["context_size"]
        needed = memory.gram(sides.d_source, sides.d_target, sides.active, tokens) + sides.split_bytes("train")
        return Need(needed, "use a link or an SAE with fewer latents, or solver=proximal")

    def make(self, draft: Draft) -> GramFacts:
        training = self._open()
        return self._sum_up(draft, training, self._parts(training))

    def pull(self) -> Artifact[GramFacts]:
        """The products; parts of them that an earlier try summed are taken over."""
        job = self.job
        found = self.store.up_to_date(self.plan)
        if found is not None:
            return found
        training, sides = self._open(), job.sides
        need_dense_memory(sides.d_source, sides.d_target, job.cfg.solver.name)
        self.promise()
        parts = self._parts(training)
        size = 8 * sides.d_source * (sides.d_source + sides.d_target) * (1 if parts == 1 else parts + 1)
        what = f"gram: {sides.d_source:,} x {sides.d_target:,} latents over {len(training):,} tokens"
        job.observer.say(f"{what}, {gigabytes(size)} to write")
        self.store.need_space(what, size)
        with self.store.drafts([self.plan], resumable=True) as drafts:
            for draft in drafts:
                return self.store.commit(draft, self._sum_up(draft, training, parts), self.device)
        artifact = self.find()
        assert artifact is not None
        return artifact

    def _parts(self, training: Split) -> int:
        return min(PARTS, max(len(training) // PART_TOKENS, 1))

    def _sum_up(self, draft: Draft, training: Split, n_parts: int) -> GramFacts:
        """The parts' sums, added in their order."""
        job, (d_source, d_target) = self.job, (self.job.sides.d_source, self.job.sides.d_target)
        missing = [number for number in range(n_parts) if part_name(number) not in draft]
        total = ProductSums.zero(d_source, d_target)
        with job.observer.progress("gram", len(training)) as bar:
            if n_parts == 1:  # nobody else asks for it: no need to write and read it
                total = sums_of(training, d_source, d_target, bar.advance)
            elif job.engine.several:
                work = GramWork(job.engine.of_worker(job.cfg), draft.parts, n_parts, d_source, d_target)

                def done(_: int, part: Part) -> None:
                    draft.take(part)
                    bar.advance(len(training) // n_parts)

                job.engine.run("gram", work, missing, done)
            else:
                for number in missing:
                    sums = sums_of(training.part(number, n_parts), d_source, d_target, bar.advance)
                    draft.save_tensors(part_name(number), sums.tensors())
        names = [part_name(number) for number in range(n_parts)] if n_parts > 1 else []
        for name in names:
            total = total.plus(draft.tensors(name))
        draft.save_tensors(GRAM_FILE, total.means()._asdict())
        draft.drop(names)
        return {"n_tokens": len(training)}


def need_dense_memory(d_source: int, d_target: int, solver: str = "exact") -> None:
    """Raise SaelinkError unless products, path and weights of that many latents fit into memory."""
    need_memory(
        f"solver={solver}: {d_source:,} source and {d_target:,} target latents",
        memory.exact(d_source, d_target),
        "use a link or an SAE with fewer latents, or solver=proximal",
    )


def load_gram(artifact: Artifact[GramFacts]) -> Gram:
    """The products of a gram artifact."""
    return Gram(**artifact.tensors(GRAM_FILE))
