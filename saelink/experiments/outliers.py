"""The latents that carry the gap between linear and mlp: what they fire on, and how the mlp writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from saelink.config.schema import Config
from saelink.evidence.names import Names
from saelink.experiments.base import Done, Experiment, Result
from saelink.experiments.dense import dense_fit
from saelink.experiments.percent_linear import PercentLinearExperiment
from saelink.experiments.tables import Row
from saelink.fit.train import fitted_connector
from saelink.job import Job
from saelink.latents.encode import TYPICAL_NORM_RATIO
from saelink.latents.outliers import FIRST_POSITIONS, carried, outlier_places
from saelink.latents.rows import Rows
from saelink.latents.split import latent_shards

QUANTILES = (0.5, 0.9, 0.99, 1.0)

MOST_WEIGHTS = 5
"""Latents whose large W2 weights are counted, those with the largest differences."""


@dataclass
class OutliersSettings:
    """Settings of the experiment outliers."""

    listed: int = 20
    """Latents listed, those with the largest loss differences."""


class OutliersExperiment(Experiment):
    Settings = OutliersSettings
    version = 3
    title = "Latents with the largest loss differences: where they fire, and the mlp's large weights into them"
    settings = ("listed",)

    def recipe(self, cfg: Config) -> dict[str, Any]:
        return {"outlier_shares": cfg.outliers.shares, "weight_threshold": cfg.outliers.weight_threshold}

    def check(self, settings: OutliersSettings) -> None:
        if settings.listed < 1:
            raise self.mistake(settings, "listed", "must be at least 1")

    def starts_from(self) -> list[Experiment]:
        return [PercentLinearExperiment()]

    def fits(self, job: Job) -> dict[str, Config]:
        return {"mlp": dense_fit(job, "mlp", seed=job.cfg.experiment.seeds[0])}

    def make(self, job: Job, done: dict[str, Done]) -> Result:
        found = PercentLinearExperiment().run(job).tensors("linear.safetensors")
        sides = job.sides
        shards = list(latent_shards(sides.target, ["test"]))
        # All positions: an outlier may fire on just those that fitting leaves out.
        rows_of = Rows.stack([rows for _, rows, _ in shards]).scaled(1 / sides.scales[-1])
        massive = torch.cat([norm for _, _, norm in shards]) > TYPICAL_NORM_RATIO * sides.target.facts["median_norm"]
        ids = job.tokens.tensors("test.safetensors")["ids"].long()
        places = outlier_places(ids, massive, job.vocabulary)
        shares = carried(rows_of, places)
        connector = fitted_connector(done["mlp"].connector)
        weights = connector.output_weight()
        difference = torch.where(found["difference"].isnan(), -torch.inf, found["difference"])
        most = min(self.own(job.cfg).listed, int(difference.isfinite().sum()))
        largest = difference.argsort(descending=True)[:most]
        total = found["difference"].nan_to_num().clamp(min=0).sum()
        names, hook = Names(job), sides.target.facts["hook_name"]
        owner = rows_of.row_of
        limits = job.cfg.outliers.shares
        rows: list[Row] = []
        for latent in largest.tolist():
            mine = rows_of.indices == latent
            values, where = rows_of.values[mine].double(), owner[mine]
            carries = {name: share[latent].item() for name, share in shares.items()}
            fires = {f"fires_{name}": mask[where].double().mean().item() for name, mask in places.items()}
            token = names.token_id(hook, latent)
            on_top = (ids.flatten()[where] == token).double().mean().item() if len(values) else 0.0
            column = weights[:, connector.column(latent)]
            quantiles = values.quantile(torch.tensor(QUANTILES).double()).tolist() if len(values) else [0.0] * 4
            rows.append(
                {
                    "layer": job.cfg.layer,
                    "latent": sides.target_name(latent),
                    "difference": difference[latent].item(),
                    "share_of_gap": (difference[latent] / total).item(),
                    "over_variance": (difference[latent] / found["variance"][latent]).item(),
                    "active": len(values),
                    **{f"q{int(q * 100)}": value for q, value in zip(QUANTILES, quantiles, strict=True)},
                    **{name: share if len(values) else 0.0 for name, share in (carries | fires).items()},
                    "top_token": ascii(names.text(token)) if token is not None else "",
                    "on_top_token": on_top,
                    "outlier": any(carries[name] >= limits[name] for name in places),
                    "w2_above": int((column > job.cfg.outliers.weight_threshold).sum()),
                    "w2_below": int((column < -job.cfg.outliers.weight_threshold).sum()),
                }
            )
        limit = job.cfg.outliers.weight_threshold
        above, below = (weights > limit).sum(0).double(), (weights < -limit).sum(0).double()
        top_weights = ", ".join(f"{row['w2_above']}/{row['w2_below']}" for row in rows[:MOST_WEIGHTS])
        text = (
            f"  {sum(row['outlier'] for row in rows)} of {len(rows)} are flagged: positions 0-{FIRST_POSITIONS - 1} "
            f"carry at least {limits['first_positions']:.0%} of their activation, the sequences' first delimiters "
            f"{limits['first_delimiter']:.0%}, or massive acts {limits['massive']:.0%}.\n"
            f"  W2 weights above {limit:g} / below -{limit:g}, the first {MOST_WEIGHTS}: {top_weights}; median over "
            f"all targets {above.median():.0f}/{below.median():.0f}.\n"
            "  Shares of the latent's activation on test documents, all positions; q50 and q100 of its active values. "
            "The CSV has the shares of the tokens it fires on too."
        )

        def draw(figure: Any) -> None:
            left, right = figure.subplots(1, 2)
            labels = [row["latent"] for row in rows]
            colours = ["tab:red" if row["outlier"] else "tab:blue" for row in rows]
            left.barh(labels, [row["difference"] for row in rows], color=colours)
            left.invert_yaxis()
            left.tick_params(axis="y", labelsize=7)
            left.set(xlabel="loss difference (red: outlier)")
            right.hist(above.tolist(), bins=range(0, int(above.max()) + 2, max(int(above.max()) // 40, 1)))
            right.set(xlabel=f"W2 weights above {limit:g} into a target latent", ylabel="target latents", yscale="log")
            figure.suptitle(f"Outlier latents, layer {job.cfg.layer}", fontsize=10)

        shown = ["latent", "difference", "share_of_gap", "active", "q50", "q100", "first_positions", "massive"]
        return Result(rows, [*shown, "top_token", "outlier"], draw, text)
