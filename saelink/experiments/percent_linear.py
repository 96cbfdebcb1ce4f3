"""How many target latents a linear map explains as well as an mlp does, by three yardsticks.

For every target latent d = (loss of the linear connector - loss of the mlp) on test documents. It counts as linear
when d, divided by a normaliser, is at most a threshold. The post divided by c_L, one number for a layer; dividing by
the layer's total energy or by the latent's own variance gives very different percentages, so all are given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from saelink import memory
from saelink.activations.norms import NormsStage
from saelink.config.check import is_penalty
from saelink.config.schema import Config, SubsetPart, TargetsConfig
from saelink.connectors.base import Connector
from saelink.errors import SaelinkError
from saelink.evidence.baselines import NORMALISERS, normalisers
from saelink.experiments.base import Done, Experiment, Result
from saelink.experiments.dense import dense_fit
from saelink.experiments.fits import fit
from saelink.experiments.noise_threshold import NoiseThresholdExperiment
from saelink.experiments.tables import Row, paragraph
from saelink.fit.train import fitted_connector, shape_of
from saelink.interventions.splice import spliced_tokens
from saelink.job import Job
from saelink.latents.link import Sides, load_split
from saelink.latents.metrics import in_steps
from saelink.latents.split import Tokens

PAIRS = (("linear", "mlp"), ("exact linear", "mlp"), ("nonlinear", "two_nonlinear"))


def errors_by_document(connector: Connector, test: Tokens, document: torch.Tensor, n: int) -> torch.Tensor:
    """[n documents, d_target] summed squared errors, float64; `document` [tokens] is 0..n-1."""
    errors = torch.zeros(n, test.target.d, dtype=torch.float64)
    first = 0
    for source, target in in_steps(test.source, test.target):
        with torch.inference_mode():
            error = connector(source) - target.dense()
        errors.index_add_(0, document[first : first + len(source)], error.square().double())
        first += len(source)
    return errors


@dataclass
class PercentLinearSettings:
    """Settings of the experiment percent_linear."""

    linear_threshold: Any = 1e-3
    """A latent is linear when its loss difference, divided by the normaliser, is at most this; `noise`
    takes the level that noise_threshold finds for each normaliser."""
    yardstick: str = "variance"
    """The normaliser that decides the linear subset: post, energy or variance."""
    bootstrap: int = 1000
    """Resamples of the test documents."""


class PercentLinearExperiment(Experiment):
    Settings = PercentLinearSettings
    title = "Percentage of target latents that a linear map explains as well as an mlp"
    settings = ("linear_threshold", "yardstick", "bootstrap", "seeds")
    by_evaluation = False

    def check(self, settings: PercentLinearSettings) -> None:
        if settings.bootstrap < 1:
            raise self.mistake(settings, "bootstrap", "must be at least 1")
        if settings.yardstick not in NORMALISERS:
            raise self.mistake(settings, "yardstick", "one of post, energy, variance")
        if settings.linear_threshold != "noise" and not is_penalty(settings.linear_threshold):
            raise self.mistake(settings, "linear_threshold", "give a number >= 0, or noise")

    def recipe(self, cfg: Config) -> dict[str, Any]:
        return {"normalise_layers": cfg.normalise_layers}

    def fits(self, job: Job) -> dict[str, Config]:
        fits = {"exact linear": fit(job.cfg, "linear", "exact")}
        for seed in job.cfg.experiment.seeds:
            for kind in ("linear", "mlp", "nonlinear", "two_nonlinear"):
                fits[f"{kind}, seed {seed}"] = dense_fit(job, kind, seed=seed)
        return fits

    def needs(self, job: Job) -> dict[str, str]:
        needs = {"norms": NormsStage(job.cfg, job.store).key}
        if self.own(job.cfg).linear_threshold == "noise":
            needs["noise"] = NoiseThresholdExperiment().plan(job).key
        return needs

    def parts(self, job: Job) -> dict[SubsetPart, TargetsConfig]:
        """The targets of its linear subset and of the rest; once it has run, only those that are not empty."""
        plan = self.plan(job)
        done = job.store.find(plan)
        sizes = dict.fromkeys(SubsetPart, 1)
        if done is not None:
            linear = done.facts["n_linear"]
            sizes = {SubsetPart.linear: linear, SubsetPart.rest: done.facts["n_targets"] - linear}
        return {part: TargetsConfig(job.cfg.targets.min_rate, plan.key, part) for part in SubsetPart if sizes[part]}

    def thresholds(self, job: Job) -> dict[str, float]:
        """The threshold of each normaliser. Raises SaelinkError when the noise experiment finds none."""
        chosen = self.own(job.cfg).linear_threshold
        if chosen == "noise":
            found = NoiseThresholdExperiment().run(job).facts.get("levels", {})
            levels = {name: level for name, level in found.items() if level is not None}
            missing = [name for name in NORMALISERS if name not in levels]
            if missing:
                raise SaelinkError(
                    f"experiment.percent_linear.linear_threshold=noise: no level of "
                    f"experiment.noise_threshold.levels is cheap enough for "
                    f"{', '.join(missing)}; add smaller ones"
                )
            return levels
        return dict.fromkeys(NORMALISERS, float(chosen))

    def memory(self, job: Job) -> float:
        """All connectors at once, and the errors of each by document and target."""
        shapes = [shape_of(job.at(cfg)) for cfg in self.fits(job).values()]
        errors = 8.0 * len(shapes) * job.tokens.facts["documents"]["test"] * job.sides.d_target
        step = 4 * 4.0 * min(2048 * job.sides.d_target, memory.STEP_ENTRIES)
        weights = 4.0 * (sum(shape.weights for shape in shapes) + max(shape.weights for shape in shapes))
        return memory.COMPILED + weights + 2 * errors + step + 2 * job.sides.split_bytes("test")

    def make(self, job: Job, done: dict[str, Done]) -> Result:
        thresholds = self.thresholds(job)
        sides = job.sides
        ids = done["exact linear"].connector.tensors("connector.safetensors")["target_ids"]
        test = load_split(job.cfg, sides, "test", ids)
        owner = spliced_tokens(job).document.flatten()[test.row]
        owner, n = owner.unique(return_inverse=True)[1], len(owner.unique())
        size = torch.bincount(owner, minlength=n).double()
        connectors = {label: fitted_connector(result.connector) for label, result in done.items()}
        errors = {label: errors_by_document(connector, test, owner, n) for label, connector in connectors.items()}
        scales = normalisers(job, test)
        active = scales["variance"] > 0
        seeds = job.cfg.experiment.seeds
        rows = self._rows(job, errors, scales, thresholds, size)
        decisive = torch.stack([errors["exact linear"] - errors[f"mlp, seed {seed}"] for seed in seeds])
        decisive = decisive.sum((0, 1)) / len(seeds) / len(test)
        linear, rest = self._subset(job, sides, connectors, ids, thresholds)

        def everywhere(values: torch.Tensor, elsewhere: Any) -> torch.Tensor:
            return torch.full((sides.d_target,), elsewhere, dtype=values.dtype).scatter(0, ids, values)

        tensors = {
            "linear": everywhere(linear, False),
            "rest": everywhere(rest, False),
            "difference": everywhere(decisive, torch.nan),
            "variance": everywhere(scales["variance"], torch.nan),
        }
        top = decisive.argsort(descending=True)[:5]
        largest = ", ".join(f"OF{ids[i]} {decisive[i]:.3g}" for i in top)
        gap = decisive.clamp(min=0).sum()
        share = decisive[top].clamp(min=0).sum() / gap.clamp(min=1e-300)
        fvu = {label: (error.sum() / len(test) / scales["variance"].sum()).item() for label, error in errors.items()}
        kinds = list(dict.fromkeys(label.split(",")[0] for label in fvu))
        means = {kind: _mean([v for label, v in fvu.items() if label.split(",")[0] == kind]) for kind in kinds}
        said = ", ".join(f"{kind} {value:.3f}" for kind, value in means.items())
        repeated = f", mean of {len(seeds)} seeds" if len(seeds) > 1 else ""
        lines = [
            f"{int(active.sum()):,} target latents that vary on the {len(test):,} test tokens. low and high: 1.96 "
            f"standard errors over {self.own(job.cfg).bootstrap:,} resamples of {n:,} documents and {len(seeds)} "
            "seeds. resampled is their mean: where it differs from percent, many latents lie near the threshold and "
            "resampling noise moves them over it.",
            f"Largest differences (exact linear - mlp): {largest}; these five are {share:.0%} of the positive gap.",
            f"FVU{repeated}: {said}.",
            f"Subset by {self.own(job.cfg).yardstick}, chosen on validation documents: {int(linear.sum()):,} linear, "
            f"{int(rest.sum()):,} rest.",
        ]
        if means["mlp"] > means["exact linear"]:
            lines.append(
                "The mlp explains less than the exact linear map: it has not been trained for long enough, and the "
                "percentages against exact linear are too high."
            )
        text = "\n".join(paragraph(line) for line in lines)
        draw = _picture(job.cfg.layer, ids, decisive, scales, thresholds)
        facts = {"n_linear": int(linear.sum()), "n_targets": int(linear.sum() + rest.sum())}
        return Result(rows, draw=draw, text=text, tensors={"linear.safetensors": tensors}, facts=facts)

    def _rows(
        self, job: Job, errors: dict[str, torch.Tensor], scales: dict[str, torch.Tensor],
        thresholds: dict[str, float], size: torch.Tensor,
    ) -> list[Row]:  # fmt: skip
        """The table, with intervals from resampled documents and seeds; `size` [documents] is how many tokens each has.

        `errors` [documents, d_target] are by label of a fit.
        """
        n, d_target, n_tokens = len(size), len(scales["variance"]), int(size.sum())
        active = scales["variance"] > 0
        seeds = job.cfg.experiment.seeds
        generator = torch.Generator().manual_seed(0)
        documents, seed_counts = [], []
        for _ in range(self.own(job.cfg).bootstrap):
            documents.append(torch.bincount(torch.randint(n, (n,), generator=generator), minlength=n))
            chosen = torch.randint(len(seeds), (len(seeds),), generator=generator)
            seed_counts.append(torch.bincount(chosen, minlength=len(seeds)))
        weights, by_seed_weight = torch.stack(documents).double(), torch.stack(seed_counts).double() / len(seeds)
        rows: list[Row] = []
        for simple, rich in PAIRS:
            by_seed = [
                errors[simple if simple in errors else f"{simple}, seed {seed}"] - errors[f"{rich}, seed {seed}"]
                for seed in seeds
            ]
            point = torch.stack([difference.sum(0) for difference in by_seed]).mean(0) / n_tokens
            resampled = torch.zeros(len(weights), d_target, dtype=torch.float64)
            for number, difference in enumerate(by_seed):
                resampled += by_seed_weight[:, number, None] * (weights @ difference) / (weights @ size)[:, None]
            for name in NORMALISERS:
                limit = thresholds[name] * scales[name]
                percent = 100 * (resampled[:, active] <= limit[active]).double().mean(1)
                share = 100 * (point[active] <= limit[active]).double().mean().item()
                error = 1.96 * percent.std().item() if len(percent) > 1 else 0.0
                rows.append(
                    {
                        "layer": job.cfg.layer,
                        "simple": simple,
                        "rich": rich,
                        "divided by": name,
                        "threshold": thresholds[name],
                        "percent": share,
                        "low": max(share - error, 0.0),
                        "high": min(share + error, 100.0),
                        "resampled": percent.mean().item(),
                    }
                )
        return rows

    def _subset(
        self,
        job: Job,
        sides: Sides,
        connectors: dict[str, Connector],
        ids: torch.Tensor,
        thresholds: dict[str, float],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[d_target] the linear latents and the rest, by exact linear against mlp on validation documents.

        Not on test documents: what is later reported of a subset must not have chosen it.
        """
        validation = load_split(job.cfg, sides, "validation", ids)
        nowhere = torch.zeros(len(validation), dtype=torch.int64)
        errors = {
            label: errors_by_document(connector, validation, nowhere, 1)[0] / len(validation)
            for label, connector in connectors.items()
            if label == "exact linear" or label.startswith("mlp")
        }
        mlp = torch.stack([error for label, error in errors.items() if label != "exact linear"]).mean(0)
        scales = normalisers(job, validation)
        name = self.own(job.cfg).yardstick
        varies = scales["variance"] > 0
        linear = varies & (errors["exact linear"] - mlp <= thresholds[name] * scales[name])
        return linear, varies & ~linear


def _picture(
    layer: int, ids: torch.Tensor, decisive: torch.Tensor, scales: dict[str, torch.Tensor], thresholds: dict[str, float]
) -> Callable[[Any], None]:
    """Draws how the loss differences [d_target] are spread, by normaliser; the largest three have their names."""
    active, top = scales["variance"] > 0, decisive.argsort(descending=True)[:3]
    scaled = {name: (decisive / scales[name])[active] for name in NORMALISERS}

    def draw(figure: Any) -> None:
        for axes, name in zip(figure.subplots(1, 3), NORMALISERS, strict=True):
            values = scaled[name]
            tiny = max(thresholds[name] / 100, 1e-12)
            edges = _signed_edges(values, tiny)
            axes.hist(values.tolist(), bins=edges, color="tab:blue")
            axes.axvline(thresholds[name], color="tab:red", lw=1, label="threshold")
            axes.set_xscale("symlog", linthresh=tiny)
            for place, i in enumerate(top.tolist()):
                at = (decisive[i] / scales[name][i]).item()
                axes.annotate(f"OF{ids[i]}", (at, 1.5 * 2.2**place), fontsize=7, ha="right")
            axes.set(title=f"divided by {name}", xlabel="loss difference", yscale="log")
            axes.tick_params(axis="x", labelsize=6, rotation=60)
        figure.axes[0].set_ylabel("target latents")
        figure.axes[0].legend(fontsize=7)
        figure.suptitle(f"Loss of exact linear - loss of mlp, by target latent, layer {layer}", fontsize=10)

    return draw


def _signed_edges(values: torch.Tensor, tiny: float) -> list[float]:
    """Histogram edges that are logarithmic on both sides of zero."""
    reach = max(values.abs().max().item(), tiny * 10)
    side = torch.logspace(
        torch.tensor(tiny).log10().item(), torch.tensor(reach).log10().item() + 1e-6, 25, dtype=torch.float64
    )
    return [*(-side.flip(0)).tolist(), *side.tolist()]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
