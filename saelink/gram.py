"""Products of source and target latents over the training tokens: the stage `gram`.

Everything a linear connector's squared error depends on, in one pass over the text; shared by every penalty and
every choice of targets.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from saelink.config import Config
from saelink.latents import Rows, Tokens
from saelink.link import Sides, load_split, pull_sides
from saelink.progress import Progress
from saelink.store import Artifact, Draft, Plan, Store, gigabytes

VERSION = 1

TENSORS_FILE = "gram.safetensors"

STEP = 65_536


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

    def centred(self) -> Gram:
        """Around the means: what is left to explain beside a bias."""
        return self._replace(
            xx=self.xx - torch.outer(self.x, self.x),
            xy=self.xy - torch.outer(self.x, self.y),
            yy=self.yy - self.y.square(),
        )


def gram_of(source: Rows, target: Rows, advance: Any = lambda tokens: None) -> Gram:
    """The products of sparse rows by sparse algebra, accumulated in float64."""
    from scipy.sparse import csr_matrix

    def matrix(rows: Rows) -> Any:
        values = rows.values.double().numpy()
        return csr_matrix((values, rows.indices.numpy(), rows.offsets.numpy()), shape=(len(rows), rows.d))

    n = len(source)
    xx, xy = np.zeros((source.d, source.d)), np.zeros((source.d, target.d))
    for first in range(0, n, STEP):
        chosen = torch.arange(first, min(first + STEP, n))
        x, y = matrix(source.select(chosen)), matrix(target.select(chosen))
        transposed = x.T.tocsr()
        xx += (transposed @ x).toarray()
        xy += (transposed @ y).toarray()
        advance(len(chosen))

    def sums(rows: Rows, power: int) -> torch.Tensor:
        return torch.bincount(rows.indices, rows.values.double().pow(power), minlength=rows.d) / n

    return Gram(torch.from_numpy(xx / n), torch.from_numpy(xy / n), sums(target, 2), sums(source, 1), sums(target, 1))


def gram_plan(cfg: Config, sides: Sides) -> Plan:
    """Plan of a link's products."""
    recipe = {
        "latent_scale": cfg.latent_scale.name,
        "drop_positions": cfg.data.drop_positions,
        "max_norm_ratio": cfg.data.max_norm_ratio,
    }
    inputs = {f"source{i}": source.key for i, source in enumerate(sides.sources)} | {"target": sides.target.key}
    return Plan("gram", VERSION, recipe, inputs, f"{cfg.model.label} layer {cfg.layer} {cfg.link.name}")


def gram(cfg: Config, store: Store, tokens: Tokens | None = None) -> Artifact:
    """Pull the products of all target latents; `tokens` is the training split if it is in memory already."""
    sides = pull_sides(cfg, store)
    plan = gram_plan(cfg, sides)
    found = store.up_to_date(plan)
    if found is not None:
        return found

    def make(draft: Draft) -> dict[str, Any]:
        training = tokens if tokens is not None else load_split(cfg, sides, "train")
        size = 8 * sides.d_source * (sides.d_source + sides.d_target)
        what = f"gram: {sides.d_source:,} x {sides.d_target:,} latents over {len(training):,} tokens"
        store.say(f"{what}, {gigabytes(size)} to write")
        store.need_space(what, size)
        with Progress("gram", len(training)) as bar:
            products = gram_of(training.source, training.target, bar.advance)
        draft.save_tensors(TENSORS_FILE, products._asdict())
        return {"n_tokens": len(training)}

    return store.build(plan, make)


def load_gram(artifact: Artifact) -> Gram:
    """The products of a gram artifact."""
    return Gram(**artifact.tensors(TENSORS_FILE))
