"""Products of source and target latents over the training tokens: the stage `gram`.

Everything a linear connector's squared error depends on, in one pass over the text; shared by every penalty and
every choice of targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from saelink.config import Config
from saelink.kernels import in_parts
from saelink.latents import Rows, Split, Tokens
from saelink.link import Sides, pull_sides, split_of
from saelink.progress import Progress
from saelink.store import Artifact, Draft, Plan, SaelinkError, Store, gigabytes, memory_available

VERSION = 1

TENSORS_FILE = "gram.safetensors"

STEP = 131_072
"""Tokens of one piece: all of the products are read and written once for each."""


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


def gram_of(pieces: Iterable[Tokens], advance: Any = lambda n: None) -> Gram:
    """The products of all pieces' source and target rows, accumulated in float64."""
    from saelink.kernels.products import add_products

    n = 0
    xx, xy, yy, x, y = (np.zeros(0), np.zeros(0), torch.zeros(0), torch.zeros(0), torch.zeros(0))
    for source, target in _together(pieces):
        d_source, d_target = source.d, target.d
        if n == 0:
            xx, xy = np.zeros((d_source, d_source)), np.zeros((d_source, d_target))
            yy, x, y = (torch.zeros(d, dtype=torch.float64) for d in (d_target, d_source, d_target))
        order = torch.sort(source.indices, stable=True).indices
        starts = torch.zeros(d_source + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(source.indices, minlength=d_source), 0, out=starts[1:])
        pairs = (order, source.row_of, *_pairs(source), starts, *_pairs(target))
        arrays = [*(tensor.numpy() for tensor in pairs), xx, xy]
        in_parts(d_source, 16, lambda first, last: add_products(first, last, *arrays))  # noqa: B023 (used at once)
        yy += torch.bincount(target.indices, target.values.double().square(), minlength=d_target)
        x += torch.bincount(source.indices, source.values.double(), minlength=d_source)
        y += torch.bincount(target.indices, target.values.double(), minlength=d_target)
        n += len(source)
        advance(len(source))
    upper = torch.from_numpy(xx)
    full = upper + upper.triu(1).T
    return Gram(full / n, torch.from_numpy(xy) / n, yy / n, x / n, y / n)


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


def gram_plan(cfg: Config, sides: Sides) -> Plan:
    """Plan of a link's products."""
    recipe = {
        "latent_scale": cfg.latent_scale.name,
        "drop_positions": cfg.data.drop_positions,
        "max_norm_ratio": cfg.data.max_norm_ratio,
    }
    inputs = {f"source{i}": source.key for i, source in enumerate(sides.sources)} | {"target": sides.target.key}
    return Plan("gram", VERSION, recipe, inputs, f"{cfg.model.label} layer {cfg.layer} {cfg.link.name}")


def need_memory(d_source: int, d_target: int) -> None:
    """Raise SaelinkError unless products, path and weights of that many latents fit into memory."""
    need, free = 12 * d_source**2 + 56 * d_source * d_target, memory_available()
    if free is not None and need > free:
        raise SaelinkError(
            f"solver=exact: {d_source:,} source and {d_target:,} target latents need {gigabytes(need)} of memory, "
            f"{gigabytes(free)} are free; use a link or an SAE with fewer latents, or solver=proximal"
        )


def gram(cfg: Config, store: Store, tokens: Split | None = None) -> Artifact:
    """Pull the products of all target latents; `tokens` is the training split if it is open already."""
    sides = pull_sides(cfg, store)
    plan = gram_plan(cfg, sides)
    found = store.up_to_date(plan)
    if found is not None:
        return found

    def make(draft: Draft) -> dict[str, Any]:
        training = tokens if tokens is not None else split_of(cfg, sides, "train")
        need_memory(sides.d_source, sides.d_target)
        size = 8 * sides.d_source * (sides.d_source + sides.d_target)
        what = f"gram: {sides.d_source:,} x {sides.d_target:,} latents over {len(training):,} tokens"
        store.say(f"{what}, {gigabytes(size)} to write")
        store.need_space(what, size)
        with Progress("gram", len(training)) as bar:
            products = gram_of(training, bar.advance)
        draft.save_tensors(TENSORS_FILE, products._asdict())
        return {"n_tokens": len(training)}

    return store.build(plan, make)


def load_gram(artifact: Artifact) -> Gram:
    """The products of a gram artifact."""
    return Gram(**artifact.tensors(TENSORS_FILE))
