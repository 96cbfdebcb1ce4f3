"""The block link: are the residual latents behind a block sparse combinations of all that is added up in front?

All sources together, and each left out in turn, by least squares; then the lasso, with its edges by source. The sources
of a residual stream add up to it exactly, so what is missing is the SAEs' own error and their nonlinearity.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import torch

from saelink import memory
from saelink.config.schema import Config
from saelink.experiments.base import Done, Experiment, Result
from saelink.experiments.fits import fit, link_named
from saelink.experiments.tables import Row
from saelink.fit.lasso.coordinate import LASSO_VERSION, Lasso
from saelink.fit.products.dense import GRAM_VERSION, Gram, GramStage, load_gram
from saelink.fit.train import fitted_connector
from saelink.job import Job
from saelink.latents.link import load_split
from saelink.latents.metrics import ErrorSums, in_steps
from saelink.latents.rows import sparse_linear
from saelink.latents.split import Tokens


class ClosureExperiment(Experiment):
    title = "Residual latents behind a block from the latents of all that is added up in front of it"

    def configured(self, cfg: Config) -> Config:
        return replace(cfg, link=link_named("block"))

    def fits(self, job: Job) -> dict[str, Config]:
        return {"lasso": fit(job.cfg, "linear", "exact", l1_alpha=self.alpha(job.cfg))}

    def alpha(self, cfg: Config) -> float:
        """experiment.sparse_alpha; the elbow of another link says nothing here, so for `elbow` it is the post's."""
        return 8e-4 if cfg.experiment.sparse_alpha == "elbow" else float(cfg.experiment.sparse_alpha)

    def recipe(self, cfg: Config) -> dict[str, Any]:
        return {"gram": GRAM_VERSION, "lasso": LASSO_VERSION}

    def memory(self, job: Job) -> float:
        """The products of all sources, least squares from some of them, and what that predicts."""
        sides = job.sides
        products = 8.0 * sides.d_source * (sides.d_source + sides.d_target)
        step = 4 * 4.0 * min(2048 * sides.d_target, memory.STEP_ENTRIES)
        return memory.COMPILED + 2 * products + memory.exact(sides.d_source, sides.d_target) + step

    def make(self, job: Job, done: dict[str, Done]) -> Result:
        sides = job.sides
        connector = fitted_connector(done["lasso"].connector)
        ids = connector.target_ids
        test = load_split(job.cfg, sides, "test", ids)
        products = load_gram(GramStage(job).pull()).explain(ids)
        names = [source.facts["hook_name"].split(".", 2)[2] for source in sides.sources]
        names[0] = "hook_resid_pre" if names[0] == "hook_resid_post" else names[0]
        sizes = [source.facts["d_sae"] for source in sides.sources]
        starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        subsets = [list(range(len(names)))]
        subsets += [[i for i in range(len(names)) if i != left_out] for left_out in range(len(names))]
        subsets += [[i] for i in range(len(names))]
        edges = connector.edges_by_target()
        rows: list[Row] = []
        for chosen in subsets:
            kept = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in chosen])
            sums = _least_squares(products, kept, test)
            rows.append(self._row(job.cfg, "least squares", " + ".join(names[i] for i in chosen), sums, None))
        found = done["lasso"].metrics
        row = dict.fromkeys(rows[0]) | {"layer": job.cfg.layer, "solver": f"lasso {self.alpha(job.cfg):g}"}
        rows.append(
            row
            | {"sources": " + ".join(names), "mse": found["mse"], "fvu": found["fvu"]}
            | {"fvu_median": found["fvu_median_latent"], "edges_per_output": len(edges.indices) / len(ids)}
        )
        by_source = [
            torch.bincount(edges.row_of[(edges.indices >= first) & (edges.indices < last)], minlength=len(ids)).double()
            for first, last in itertools.pairwise(starts)
        ]
        said = ", ".join(f"{name} {count.mean():.1f}" for name, count in zip(names, by_source, strict=True))
        circuits = done["lasso"].evaluation.file("circuits.txt").read_text("utf-8").splitlines()
        lines = [f"  Edges per output by source: {said}. In circuits IF0 is {names[0]}, and so on:", ""]
        lines += [f"  {line}" for line in circuits]

        def draw(figure: Any) -> None:
            left, right = figure.subplots(1, 2)
            left.barh([row["sources"].replace(" + ", " +\n") for row in rows[:-1]], [row["fvu"] for row in rows[:-1]])
            left.invert_yaxis()
            left.tick_params(axis="y", labelsize=6)
            left.set(xlabel="FVU, test documents", title="least squares from")
            right.boxplot([count.tolist() for count in by_source], showfliers=False)
            right.set_xticks(range(1, len(names) + 1), [name.removeprefix("hook_") for name in names], fontsize=8)
            right.set(ylabel="edges into a target latent", title=f"lasso at {self.alpha(job.cfg):g}")
            figure.suptitle(f"Block link, layer {job.cfg.layer}", fontsize=10)

        return Result(rows, draw=draw, text="\n".join(lines))

    def _row(self, cfg: Config, solver: str, sources: str, sums: ErrorSums, edges: float | None) -> Row:
        by_latent = sums.fvu_by_latent()
        return {
            "layer": cfg.layer,
            "solver": solver,
            "sources": sources,
            "mse": sums.mse(),
            "fvu": sums.fvu(),
            "fvu_median": by_latent[~by_latent.isnan()].median().item(),
            "edges_per_output": edges,
        }


def _least_squares(products: Gram, kept: torch.Tensor, test: Tokens) -> ErrorSums:
    """Errors on test tokens of the least-squares map from these source latents alone."""
    part = Lasso(products.xx[kept][:, kept], products.xy[kept], products.yy)
    W = torch.zeros(products.xy.shape)
    W[kept] = part.least_squares().float()
    sums = ErrorSums(test.target.d)
    for source, target in in_steps(test.source, test.target):
        sums.add(sparse_linear(source, W), target)
    return sums
