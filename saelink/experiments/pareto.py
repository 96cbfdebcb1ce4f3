"""Error against sparsity: linear, nonlinear and mlp over penalties, on the same targets.

The linear connector is solved exactly; the others by proximal Adam, whose zeros are zeros too. Because the linear
subset and the rest differ in how hard they are, every figure is also given on each of them alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from saelink.config.schema import Config
from saelink.evidence.frontier import kneedle
from saelink.experiments.base import Done, Experiment, Result
from saelink.experiments.fits import fit, with_ce
from saelink.experiments.percent_linear import PercentLinearExperiment
from saelink.experiments.tables import Row
from saelink.fit.train import TrainStage, fitted_connector
from saelink.job import Job

SOLVED_BY = {"linear": "exact", "nonlinear": "proximal", "mlp": "proximal"}


@dataclass
class ParetoSettings:
    """Settings of the experiment pareto."""

    l1_alphas: list[float] = field(default_factory=lambda: [1e-7, 1e-5, 1e-3, 0.1, 10.0, 100.0])
    """The post's penalties."""
    ce_at: list[str] = field(default_factory=lambda: ["elbow"])
    """Where cross-entropy is measured, `elbow` or `all`."""
    refit_parts: bool = False
    """Also fit the mlp on the linear subset and on the rest alone, not only measure it there."""


class ParetoExperiment(Experiment):
    Settings = ParetoSettings
    title = "Error against L1, edges and cross-entropy over penalties"
    settings = ("ce_at", "refit_parts")

    def check(self, settings: ParetoSettings) -> None:
        if not settings.l1_alphas:
            raise self.mistake(settings, "l1_alphas", "give at least one")
        if any(alpha < 0 for alpha in settings.l1_alphas):
            raise self.mistake(settings, "l1_alphas", "penalties are numbers >= 0")
        if set(settings.ce_at) - {"elbow", "all"}:
            raise self.mistake(settings, "ce_at", "elbow or all, or [] for none")

    def alphas(self, cfg: Config) -> list[float]:
        """The post's penalties and the grid between them."""
        return sorted({*self.own(cfg).l1_alphas, *cfg.experiment.l1_grid})

    def fits(self, job: Job) -> dict[str, Config]:
        fits: dict[str, Config] = {}
        settings: dict[str, Any] = {"tokens": job.cfg.experiment.sweep_tokens, "seed": job.cfg.experiment.seeds[0]}
        for alpha in self.alphas(job.cfg):
            fits[f"linear {alpha:g}"] = exact = fit(job.cfg, "linear", "exact", l1_alpha=alpha)
            start = TrainStage(job.at(exact)).key  # from a random start outputs die under the penalty
            fits[f"nonlinear {alpha:g}"] = fit(job.cfg, "nonlinear", "proximal", l1_alpha=alpha, init=start, **settings)
            fits[f"mlp {alpha:g}"] = fit(job.cfg, "mlp", "proximal", l1_alpha=alpha, **settings)
        if self.own(job.cfg).refit_parts:
            for part, subset in PercentLinearExperiment().parts(job).items():
                for alpha in self.alphas(job.cfg):
                    label = f"mlp {alpha:g} on {part.name}"
                    fits[label] = fit(job.cfg, "mlp", "proximal", l1_alpha=alpha, subset=subset, **settings)
        return fits

    def starts_from(self) -> list[Experiment]:
        return [PercentLinearExperiment()]

    def recipe(self, cfg: Config) -> dict[str, Any]:
        return {"ce_tokens": cfg.eval.ce_tokens, "bootstrap": cfg.eval.bootstrap}

    def make(self, job: Job, done: dict[str, Done]) -> Result:
        parts = PercentLinearExperiment().run(job).tensors("linear.safetensors")
        rows: list[Row] = []
        for label, result in done.items():
            connector = fitted_connector(result.connector)
            into = connector.edge_sums()
            latents = result.latents()
            explained = ~latents["mse"].isnan()
            refit = " on " in label
            masks = {"all": explained, "linear": parts["linear"] & explained, "rest": parts["rest"] & explained}
            for part, mask in masks.items():
                if (refit and not label.endswith(part)) or not mask.any():
                    continue
                mine = mask[connector.target_ids]
                hidden = [weight.detach().abs() for weight, _ in connector.penalised()[:-1]]
                l1 = into.size[mine].mean().item()
                rows.append(
                    {
                        "layer": job.cfg.layer,
                        "connector": result.cfg.connector.name,
                        "fitted on": label.split(" on ")[1] if refit else "all",
                        "targets": part,
                        "n_targets": int(mask.sum()),
                        "l1_alpha": result.cfg.l1_alpha,
                        "mse": latents["mse"][mask].mean().item(),
                        "fvu": (latents["mse"][mask].sum() / latents["variance"][mask].sum()).item(),
                        "l1": (l1 + sum(weight.double().sum(0).mean().item() for weight in hidden)) / (1 + len(hidden)),
                        "n_edges": int(into.edges[mine].sum()) + sum(int((weight > 0).sum()) for weight in hidden),
                        "dead": result.metrics.get("dead_outputs"),
                        "elbow": False,
                        "ce": None,
                        "ce_recovered": None,
                        "train": result.connector.key,
                    }
                )
        elbows = self._mark_elbows(rows, done)
        self._measure_ce(job, done, rows)
        said = "; ".join(f"{name} at l1_alpha {row['l1_alpha']:g}, L1 {row['l1']:.3g}" for name, row in elbows.items())
        text = (
            "  L1 and edges of an mlp count both matrices, L1 as their mean. elbow: kneedle on (log L1, validation "
            f"MSE), points with L1 > 0, all targets.\n  Elbows: {said or 'none, fewer than three points'}."
        )

        def draw(figure: Any) -> None:
            columns = ["l1", "n_edges"] + (["ce"] if any(row["ce"] for row in rows) else [])
            for axes, column in zip(figure.subplots(1, len(columns), sharey=True), columns, strict=True):
                for number, connector in enumerate(SOLVED_BY):
                    for part, style in (("all", "o-"), ("linear", "s:"), ("rest", "^:")):
                        chosen = [
                            row
                            for row in rows
                            if row["connector"] == connector
                            and row["targets"] == part
                            and row["fitted on"] == "all"
                            and (row[column] or 0) > 0
                        ]
                        label = connector + ("" if part == "all" else f", {part} targets")
                        axes.plot(
                            [row[column] for row in chosen],
                            [row["mse"] for row in chosen],
                            style,
                            color=f"C{number}",
                            ms=3 if part != "all" else 4,
                            lw=1.5 if part == "all" else 0.8,
                            label=label,
                        )
                    row = elbows.get(connector)
                    if row is not None and row[column]:
                        axes.plot(row[column], row["mse"], "o", ms=11, mfc="none", mec=f"C{number}")
                names = {"l1": "L1", "n_edges": "edges", "ce": "cross-entropy (nats)"}
                axes.set(xscale="linear" if column == "ce" else "log", xlabel=names[column])
                axes.grid(alpha=0.3)
            figure.axes[0].set_ylabel("MSE, test documents")
            figure.legend(*figure.axes[0].get_legend_handles_labels(), fontsize=6, ncols=3, loc="outside lower center")
            figure.suptitle(f"Error against sparsity, layer {job.cfg.layer}; rings are elbows", fontsize=10)

        shown = [name for name in rows[0] if name not in ("train", "n_targets", "mse", "ce_recovered")]
        elbow_alphas = {name: row["l1_alpha"] for name, row in elbows.items()}
        return Result(rows, shown, draw, text, facts={"elbows": elbow_alphas})

    def _mark_elbows(self, rows: list[Row], done: dict[str, Done]) -> dict[str, Row]:
        """Chosen on validation documents, since the elbow's test figures are reported."""
        validation = {result.connector.key: result.connector.facts["validation_mse"] for result in done.values()}
        elbows = {}
        for connector in SOLVED_BY:
            chosen = [
                row
                for row in rows
                if row["connector"] == connector and row["targets"] == row["fitted on"] == "all" and row["l1"] > 0
            ]
            place = kneedle([row["l1"] for row in chosen], [validation[row["train"]] for row in chosen])
            if place is not None:
                chosen[place]["elbow"] = True
                elbows[connector] = chosen[place]
        return elbows

    def _measure_ce(self, job: Job, done: dict[str, Done], rows: list[Row]) -> None:
        """Cross-entropy of the fits of `ce_at`, into the rows of all targets."""
        by_key = {result.connector.key: result for result in done.values()}
        for row in rows:
            wanted = "all" in self.own(job.cfg).ce_at or ("elbow" in self.own(job.cfg).ce_at and row["elbow"])
            if wanted and row["targets"] == row["fitted on"] == "all":
                settings = by_key[row["train"]].cfg
                measured = Done(job.at(with_ce(settings))).metrics
                row["ce"], row["ce_recovered"] = measured["ce_connector"], measured["ce_loss_recovered"]
