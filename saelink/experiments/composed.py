"""Maps of single blocks put one behind the other: residual latents from those of several blocks before.

Each block's connector (link=block, the lasso) gives residual latents from the residual latents in front, and from what
attention and MLP add. Put behind one another, a block reads what the one before predicted, and the true latents of what
its own attention and MLP add. The same with a part left out, its weights as they are, says what it carries: nothing is
fitted again.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from saelink import memory
from saelink.config.schema import Config
from saelink.connectors.base import Connector
from saelink.connectors.linear import LinearConnector
from saelink.errors import SaelinkError
from saelink.experiments.base import Done, Experiment, Result
from saelink.experiments.fits import fit, link_named
from saelink.experiments.tables import Row, paragraph
from saelink.fit.train import fitted_connector, shape_of
from saelink.job import Job
from saelink.latents.link import load_split, pull_sides
from saelink.latents.metrics import ErrorSums
from saelink.latents.rows import Rows

PARTS = ("resid_pre", "attn_out", "mlp_out")

WAYS: dict[str, tuple[str, ...]] = {
    "one block": PARTS,
    "composed": PARTS,
    "composed, relu between": PARTS,
    "without attention": ("resid_pre", "mlp_out"),
    "without mlp": ("resid_pre", "attn_out"),
    "pass-through alone": ("resid_pre",),
    "without the first residual": ("attn_out", "mlp_out"),
}
"""Which parts each way of composing reads; the last leaves out the residual latents in front of the first block."""


@dataclass
class ComposedSettings:
    """Settings of the experiment composed."""

    layers: list[int] = field(default_factory=lambda: [1, 2, 3])
    """The blocks whose maps are put one behind the other, without a gap."""


class ComposedExperiment(Experiment):
    Settings = ComposedSettings
    title = "Residual latents from the composed maps of several blocks, by part"
    settings = ("layers",)
    by_evaluation = False
    by_layer = False

    def configured(self, cfg: Config) -> Config:
        return replace(cfg, link=link_named("block"), layer=min(self.own(cfg).layers, default=cfg.layer))

    def jobs(self, cfg: Config) -> list[Config]:
        return [replace(self.configured(cfg), layer=layer) for layer in self.own(cfg).layers]

    def fits(self, job: Job) -> dict[str, Config]:
        layers = self.own(job.cfg).layers
        if len(layers) < 2 or layers != list(range(layers[0], layers[0] + len(layers))):
            raise SaelinkError(
                f"experiment.composed.layers={layers}: give at least two layers that follow "
                "one another, such as [1,2,3]"
            )
        alpha = 8e-4 if job.cfg.experiment.sparse_alpha == "elbow" else float(job.cfg.experiment.sparse_alpha)
        return {
            f"layer {layer}": fit(replace(job.cfg, layer=layer), "linear", "exact", l1_alpha=alpha) for layer in layers
        }

    def memory(self, job: Job) -> float:
        """The maps of all layers at once, and a step carried through them."""
        shapes = [shape_of(job.at(cfg)) for cfg in self.fits(job).values()]
        widest = max(shape.d_target for shape in shapes)
        step = (6 * 4.0 + 36 * any(not shape.weights for shape in shapes)) * _tokens_of_step(widest) * widest
        tests = sum(job.at(cfg).sides.split_bytes("test") for cfg in self.jobs(job.cfg))
        maps = sum(8.0 * shape.weights + memory.EDGES_OF_TARGET * shape.d_target for shape in shapes)
        return memory.COMPILED + maps + step + 2 * tests

    def make(self, job: Job, done: dict[str, Done]) -> Result:
        layers = self.own(job.cfg).layers
        maps, sources, targets = [], [], []
        for layer, result in zip(layers, done.values(), strict=True):
            here = replace(job.cfg, layer=layer)
            sides = pull_sides(here, job.store)
            test = load_split(here, sides, "test")
            sizes = [side.facts["d_sae"] for side in sides.sources]
            maps.append(_Map(fitted_connector(result.connector), sizes))
            sources.append(_by_part(test.source, sizes))
            targets.append(test)
        if any(not torch.equal(test.row, targets[0].row) for test in targets):
            raise SaelinkError(
                "data.max_norm_ratio: the layers leave out different tokens, so their maps can't be put behind one "
                "another; use null"
            )
        sums = {
            (way, layer): ErrorSums(len(each.ids)) for way in WAYS for layer, each in zip(layers, maps, strict=True)
        }
        size = _tokens_of_step(max(test.target.d for test in targets))
        for first in range(0, len(targets[0]), size):
            step = torch.arange(first, min(first + size, len(targets[0])))
            for way, parts in WAYS.items():
                carried = sources[0][0].select(step).dense()
                if "resid_pre" not in parts:
                    carried.zero_()
                for place, layer in enumerate(layers):
                    here = maps[place]
                    if way == "one block":
                        carried = sources[place][0].select(step).dense()
                    predicted = here.of_carried(carried)
                    for number, part in enumerate(PARTS[1:], 1):
                        if part in parts:
                            predicted += here.of_part(number, sources[place][number].select(step))
                    true = targets[place].target.select(step).columns(here.ids)
                    sums[way, layer].add(predicted.clone(), true)
                    handed = predicted.relu() if way == "composed, relu between" else predicted
                    carried = torch.zeros(len(step), targets[place].target.d).index_copy_(1, here.ids, handed)
        rows = [_row(layers, layer, way, sums[way, layer]) for layer in layers for way in WAYS]
        n_edges = [each.connector.n_edges() for each in maps]
        text = paragraph(
            "Residual latents behind each block. 'one block' reads the true latents in front of it, the others what "
            f"was predicted there. Lasso edges by layer: {', '.join(f'{n:,}' for n in n_edges)}."
        )

        def draw(figure: Any) -> None:
            axes = figure.subplots()
            for way in WAYS:
                chosen = [row for row in rows if row["way"] == way]
                axes.plot([row["blocks"] for row in chosen], [row["fvu"] for row in chosen], "o-", label=way)
            axes.set(
                xlabel="blocks put behind one another", ylabel="FVU, test documents", xticks=range(1, len(layers) + 1)
            )
            axes.set_ylim(0, min(axes.get_ylim()[1], 2))
            axes.set_title(f"Composed maps from layer {layers[0]} on", fontsize=10)
            axes.legend(fontsize=8)

        return Result(rows, ["to", "blocks", "way", "fvu", "fvu_median"], draw, text)


class _Map:
    """One block's map, by part of what it reads."""

    def __init__(self, connector: Connector, sizes: list[int]):
        self.connector, self.ids = connector, connector.target_ids
        self._starts = list(itertools.accumulate(sizes, initial=0))
        dense = isinstance(connector, LinearConnector)
        self._first = connector.output_weight()[: sizes[0]] if dense else None

    def of_part(self, number: int, rows: Rows) -> torch.Tensor:
        """[n, d_target] what the latents of one part add, from sparse ones [n, d of the part]."""
        placed = Rows(rows.offsets, rows.indices + self._starts[number], rows.values, self.connector.d_source)
        with torch.no_grad():
            return self.connector(placed)

    def of_carried(self, latents: torch.Tensor) -> torch.Tensor:
        """[n, d_target] what the first part adds, from dense latents [n, d of the part]."""
        return self.of_part(0, Rows.from_dense(latents)) if self._first is None else latents @ self._first


def _tokens_of_step(widest: int) -> int:
    """Tokens that are carried through all blocks at once."""
    return max(min(2048, memory.STEP_ENTRIES // (4 * widest)), 1)


def _by_part(source: Rows, sizes: list[int]) -> list[Rows]:
    """Sources side by side taken apart again."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [source.columns(torch.arange(start, start + size)) for start, size in zip(starts, sizes, strict=True)]


def _row(layers: list[int], layer: int, way: str, errors: ErrorSums) -> Row:
    by_latent = errors.fvu_by_latent()
    return {
        "from layer": layers[0],
        "to": layer,
        "blocks": layers.index(layer) + 1,
        "way": way,
        "fvu": errors.fvu(),
        "fvu_median": by_latent[~by_latent.isnan()].median().item(),
    }
