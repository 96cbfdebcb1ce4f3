"""Several MLPs replaced at once by the k strongest edges of each: do errors add up, and whose edges carry further?

Each layer's connector reads the sources as they are in the running model, after the layers before were replaced, and
writes through its target SAE. `saelink run experiment=edges_kept layer=1,3` has the same for each layer alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.experiments.base import Done, Experiment, Result
from saelink.experiments.edges_kept import area, ce_columns, check_sizes, ranked, ranked_bytes
from saelink.experiments.fits import fit
from saelink.experiments.tables import Row, paragraph
from saelink.interventions.cross_entropy import ce_figures
from saelink.interventions.effects import EffectsStage
from saelink.interventions.layers import SeveralLayers
from saelink.interventions.splice import losses_need
from saelink.job import Job

BASELINES = ("clean", "sae", "mean", "zero")


@dataclass
class SeveralLayersSettings:
    """Settings of the experiment several_layers."""

    layers: list[int] = field(default_factory=lambda: [1, 3])
    """The layers that are replaced at once."""


class SeveralLayersExperiment(Experiment):
    Settings = SeveralLayersSettings
    title = "Cross-entropy with several layers replaced at once by their strongest edges"
    settings = ("kept_edges", "kept_tokens", "layers")
    by_evaluation = False
    by_layer = False

    def jobs(self, cfg: Config) -> list[Config]:
        return [replace(cfg, layer=layer) for layer in sorted(set(self.own(cfg).layers))]

    def fits(self, job: Job) -> dict[str, Config]:
        check_sizes(job.cfg)
        layers = self.own(job.cfg).layers
        if len(set(layers)) < 2:
            raise SaelinkError(f"experiment.several_layers.layers={layers}: give at least two layers")
        found: dict[str, Config] = {}
        for layer in sorted(set(layers)):
            here = replace(job.cfg, layer=layer)
            found[f"lasso at 8e-4, layer {layer}"] = fit(here, "linear", "exact", l1_alpha=8e-4)
            found[f"causal, layer {layer}"] = fit(here, "linear", "causal", l1_alpha=2e-3)
            found[f"causal nonlinear, layer {layer}"] = fit(here, "nonlinear", "causal", l1_alpha=2e-3, bias=True)
        return found

    def needs(self, job: Job) -> dict[str, str]:
        return {f"effects {cfg.layer}": EffectsStage(job.at(cfg), "train").key for cfg in self.jobs(job.cfg)}

    def recipe(self, cfg: Config) -> dict[str, Any]:
        return {"bootstrap": cfg.eval.bootstrap}

    def memory(self, job: Job) -> float:
        """The graphs of all layers at once, and the model run with what is left of one at each."""
        jobs = [job.at(cfg) for cfg in self.jobs(job.cfg)]
        fits = list(self.fits(job).values())
        graphs = sum(ranked_bytes(each, [cfg for cfg in fits if cfg.layer == each.cfg.layer]) for each in jobs)
        return graphs + len(jobs) * losses_need(job, "").bytes

    def make(self, job: Job, done: dict[str, Done]) -> Result:
        sizes, jobs = sorted(set(job.cfg.experiment.kept_edges)), [job.at(cfg) for cfg in self.jobs(job.cfg)]
        graphs = [
            ranked(
                each,
                {
                    label.split(",")[0]: result.connector
                    for label, result in done.items()
                    if result.cfg.layer == each.cfg.layer
                },
            )
            for each in jobs
        ]
        labels = list(graphs[0])
        kept: dict[tuple[str, int], int] = {}
        passes = len(BASELINES) + len(labels) * len(sizes)
        with SeveralLayers(jobs, job.cfg.experiment.kept_tokens, passes) as model, torch.inference_mode():
            losses = {
                "clean": model.losses(),
                "sae": model.losses([link.rebuilt for link in model.links]),
                "mean": model.losses([link.averaged for link in model.links]),
                "zero": model.losses([link.nothing for link in model.links]),
            }
            for label in labels:
                for size in sizes:
                    kept[label, size] = sum(graph[label].keep(size) for graph in graphs)
                    connectors = [graph[label].connector.to(model.device) for graph in graphs]
                    losses[f"{label} {size}"] = model.losses(
                        [link.predicted(c) for link, c in zip(model.links, connectors, strict=True)]
                    )
            document = model.test.document
        figures = ce_figures(losses, document, job.cfg.eval.bootstrap)
        layers = " + ".join(str(each.cfg.layer) for each in jobs)
        rows: list[Row] = []
        for label in labels:
            for size in sizes:
                entry = figures[f"{label} {size}"]
                rows.append(
                    {
                        "layers": layers,
                        "edges of": label,
                        "k each": size,
                        "n_edges": kept[label, size],
                        **ce_columns(entry),
                    }
                )
        areas = {label: area(sizes, [figures[f"{label} {size}"]["recovered"] for size in sizes]) for label in labels}
        said = ", ".join(f"{label} {value:.3f}" for label, value in areas.items())
        clean, sae, mean, zero = (figures[name]["ce"] for name in BASELINES)
        text = paragraph(
            f"Layers {layers} at once, {document.numel():,} test tokens. CE clean {clean:.3f}, SAEs {sae:.3f}, mean "
            f"ablation {mean:.3f}, zero ablation {zero:.3f}. recovered is (zero - CE) / (zero - clean); the SAEs have "
            f"{figures['sae']['recovered']:.3f}. Mean of recovered over log k: {said}."
        )

        def draw(figure: Any) -> None:
            axes = figure.subplots()
            for label in labels:
                axes.plot(sizes, [figures[f"{label} {size}"]["recovered"] for size in sizes], "o-", label=label)
            axes.axhline(figures["sae"]["recovered"], color="black", lw=1, ls="--", label="sae")
            axes.set(xscale="log", xlabel="edges kept in each layer", ylabel="cross-entropy recovered")
            axes.set_title(f"Layers {layers} replaced at once", fontsize=10)
            axes.legend(fontsize=8)

        return Result(rows, draw=draw, text=text, facts={"areas": areas})
