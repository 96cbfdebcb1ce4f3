"""The head of the page: what stands on the first screen, connectors compared, the list's index."""

from __future__ import annotations

import math
from typing import Any

import torch

from saelink.activations.tokens import SPLITS
from saelink.evidence.baselines import mean_predictor
from saelink.evidence.consequences import CONSEQUENCES_FILE, consequences_of
from saelink.evidence.evaluate import EvaluateFacts
from saelink.evidence.frontier import kneedle
from saelink.evidence.hidden_units import CLASSES, HiddenUnitsStage, load_hidden
from saelink.evidence.saturation import reason
from saelink.evidence.transcoder import TRANSCODER_FILE, TranscoderStage
from saelink.evidence.verdicts import MIN_ABLATED, VERDICTS
from saelink.fit.train import HISTORY_FILE, TrainFacts
from saelink.interventions.effects import measurable
from saelink.interventions.oracle import OracleStage
from saelink.job import Job
from saelink.latents.link import counted_split
from saelink.latents.stream import WINDOW
from saelink.report.cards.cards import Cards
from saelink.report.cards.listed import Listed
from saelink.report.highlights import Highlights
from saelink.report.structure import Head, Index
from saelink.store.artifact import Artifact

PIECE = 64
"""Latents of one piece."""

TEXT = 8192
"""Tokens of one piece of text, as far as a sequence has no more."""

TERMS = 4
"""Terms of a formula in the list of circuits."""

OUTLIERS = ("first_positions", "first_delimiter", "massive")
"""What may carry an outlier's activation, as page/meaning.js names it."""

Compared = tuple[Artifact[TrainFacts], Artifact[EvaluateFacts]]
"""A connector and its evaluation."""


class Overview:
    """What the page shows at first of its connectors, and of the others in the store that they compare with."""

    def __init__(
        self, job: Job, fits: list[Cards], listed: list[Listed], highlights: Highlights, others: list[Compared],
        experiments: list[Artifact[Any]], command: str | None,
    ):  # fmt: skip
        self.job, self.fits, self.listed, self.highlights, self.others = job, fits, listed, highlights, others
        self.experiments, self.command = experiments, command
        self.wiring, self.sides = fits[0].wiring, job.sides
        self.ids, self.outliers = highlights.ids, highlights.outliers

    def head(self, heads: dict[str, Any] | None = None) -> Head:
        """`heads` as HeadPages.shown gives them."""
        cfg, sides = self.job.cfg, self.sides
        link = self.job.link
        facts = self.job.tokens.facts
        saes = [
            {"hook": side.facts["hook_name"], "d_sae": side.facts["d_sae"], "fvu": side.facts["fvu"],
             "l0": side.facts["l0"], "dead": side.facts["dead"], "scale": scale, "key": side.key,
             "sae": side.manifest["inputs"].get("sae", "")}
            for side, scale in zip([*sides.sources, sides.target], sides.scales, strict=True)
        ]  # fmt: skip
        highlights = self.highlights.by_kind()
        named = {
            kind: [{"latent": i, "token": self.wiring.target_token(i)} for i in latents]
            for kind, latents in highlights.items()
        }
        table, frontier, curves = self._compared()
        return {
            "title": f"{cfg.model.label}, layer {cfg.layer}, {cfg.link.name}",
            "connector": cfg.connector.name,
            "model": cfg.model.label,
            "data": cfg.data.label,
            "layer": cfg.layer,
            "link": {"name": cfg.link.name, "sources": link.sources, "target": link.target},
            "tokens": facts["tokens"],
            "documents": facts["documents"],
            "context": facts["context_size"],
            "sequences": [[split, sides.target.facts["sequences"][split]] for split in SPLITS],
            "text_piece": text_piece(facts["context_size"]),
            "window": WINDOW,
            "saes": saes,
            "command": self.command,
            "fits": [
                {
                    "key": fit.wiring.artifact.key,
                    "evaluation": fit.wiring.evaluation.key,
                    "l1_alpha": fit.job.cfg.l1_alpha,
                    "name": _label(fit.wiring.artifact),
                    "direct": fit.wiring.direct,
                    "hidden": fit.wiring.connector.n_hidden,
                    "metrics": fit.wiring.evaluation.json("metrics.json"),
                }
                for fit in self.fits
            ],
            "verdicts": list(VERDICTS),
            "min_ablated": MIN_ABLATED,
            "verified": self._verified(),
            "verify": f"saelink verify layer={cfg.layer}" if measurable(cfg) else None,
            "has_hidden": self.wiring.has_hidden,
            "heads": heads,
            "direct": self.wiring.direct,
            "d": {
                "target": sides.d_target,
                "source": sides.d_source,
                "hidden": self.wiring.connector.n_hidden,
            },
            "piece": PIECE,
            "cards": cfg.report.cards,
            "highlights": named,
            "outliers": self.outliers,
            "w2_median": self.highlights.w2_median(),
            "hidden_units": self._hidden_units(),
            "table": table,
            "frontier": frontier,
            "curves": curves,
            "experiments": [
                {"name": result.facts["name"], "title": result.facts["title"], "key": result.key}
                for result in self.experiments
            ],
        }

    def _verified(self) -> list[dict[str, Any]]:
        """By connector that was verified, what its edges' verdicts come to; the nulls of the first."""
        found: list[dict[str, Any]] = []
        for number, fit in enumerate(self.fits):
            if fit.wiring.verdicts is not None:
                assert fit.wiring.verify is not None
                entry = {"fit": number, "key": fit.wiring.verify.key, "figures": _rounded(fit.wiring.verdicts.figures)}
                if fit.wiring.stability is not None:
                    facts = fit.wiring.stability.facts
                    entry["stable"] = round(facts["stable"] / max(facts["n_edges"], 1), 4)
                lost = None if found else consequences_of(self.job.store, fit.wiring.verify)
                if lost is not None:
                    entry["consequences"] = [_rounded(row) for row in lost.json(CONSEQUENCES_FILE)]
                if not found and fit.wiring.verdicts.nulls is not None:
                    nulls = fit.wiring.verdicts.nulls
                    entry["nulls"] = {name: _rounded(null) for name, null in nulls.items()}
                    entry["saturated"] = [reason(null) for null in nulls.values() if null.get("saturated")]
                found.append(entry)
        return found

    def index(self) -> Index:
        """By target, in columns: what the list of circuits shows, searches and sorts by."""
        sides = self.sides
        looked = self.fits[0].firing.looked(sides.target)
        d = sides.d_target
        flagged = {entry["latent"]: _foremost(entry) for entry in self.outliers}
        fits = []
        for fit, listed in zip(self.fits, self.listed, strict=True):
            fvu = fit.wiring.figures("fvu")
            fits.append(
                {
                    "fvu": [None if math.isnan(value) else float(f"{value:.3g}") for value in fvu],
                    **listed.columns(TERMS),
                    "feeds": fit.wiring.fed(sides.d_source),
                }
            )
        gains = []
        mine = torch.tensor(self.wiring.figures("fvu"))
        for connector, evaluation in self.others:
            if connector.recipe["connector"]["name"] == "linear":
                continue
            theirs = evaluation.tensors("latents.safetensors")["fvu"]
            gains.append(
                {
                    "name": _label(connector),
                    "gain": [None if math.isnan(v) else float(f"{v:.3g}") for v in (mine - theirs).tolist()],
                }
            )
        sources = [self.wiring.source_token(i) for i in range(sides.d_source)]
        return {
            "token": [self.wiring.target_token(i) for i in range(d)],
            "active": looked.found.histogram.sum(1).tolist(),
            "outlier": [flagged.get(i, 0) for i in range(d)],
            "fits": fits,
            "gains": gains[:4],
            "source_token": sources,
            "source_name": [self.sides.source_name(i) for i in range(sides.d_source)],
            "source_active": [
                active
                for side in sides.sources
                for active in self.fits[0].firing.looked(side).found.histogram.sum(1).tolist()
            ],
        }

    def _hidden_units(self) -> dict[str, Any] | None:
        if not self.wiring.has_hidden:
            return None
        units = load_hidden(HiddenUnitsStage(self.job).pull())[2]
        listed = [
            {**unit.__dict__, "token": self.wiring.hidden_token(unit.unit), "word": self.wiring.word(unit.unit, 1)}
            for unit in units
        ]
        return {"counts": {kind: sum(unit.kind == kind for unit in units) for kind in CLASSES}, "units": listed}

    def _compared(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
        """The table of connectors, the points of the frontier, the loss curves; test documents."""
        mine = [(fit.wiring.artifact, fit.wiring.evaluation) for fit in self.fits]
        table: list[dict[str, Any]] = []
        frontier: list[dict[str, Any]] = []
        curves: list[dict[str, Any]] = []
        n_targets = mine[0][1].json("metrics.json")["n_targets"]
        for number, (connector, evaluation) in enumerate([*mine, *self.others]):
            figures = evaluation.json("metrics.json")
            if figures["n_targets"] != n_targets:  # measured on other targets: not to be compared
                continue
            row = {
                "name": _label(connector),
                "l1_alpha": connector.recipe["l1_alpha"],
                "key": connector.key,
                "fit": number if number < len(mine) else None,
                "addable": number >= len(mine),
                **{name: figures.get(name) for name in (
                    "mse", "fvu", "fvu_typical", "fvu_median_latent", "fraction_predicted", "l1", "n_edges",
                    "ce_loss_recovered", "ce_kl", "ce_top1", "dead_outputs",
                )},
            }  # fmt: skip
            table.append(row)
            if row["l1"] and row["l1_alpha"]:
                point = {name: row[name] for name in ("name", "l1_alpha", "key", "fit", "mse", "fvu", "l1", "n_edges")}
                frontier.append({**point, "validation": connector.facts["validation_mse"], "elbow": False})
            history = connector.json(HISTORY_FILE)
            if len(history) > 2:
                curves.append(
                    {
                        "name": f"{_label(connector)}, l1_alpha {row['l1_alpha']:g}",
                        "tokens": [entry["tokens"] for entry in history],
                        "mse": [float(f"{entry['validation_mse']:.4g}") for entry in history],
                    }
                )
        for name in {point["name"] for point in frontier}:
            series = [point for point in frontier if point["name"] == name]
            elbow = kneedle([point["l1"] for point in series], [point["validation"] for point in series])
            if elbow is not None:
                series[elbow]["elbow"] = True
        table.sort(key=lambda row: (row["fit"] is None, row["name"], row["l1_alpha"]))
        return [*table, *self._baselines()], sorted(frontier, key=lambda p: (p["name"], p["l1"])), curves

    def _baselines(self) -> list[dict[str, Any]]:
        """The mean predictor and the oracle on the same targets and tokens."""
        latents = self.wiring.evaluation.tensors("latents.safetensors")
        variance = latents["variance"][self.ids]
        training = counted_split(self.job.cfg, self.sides, "train").explain(self.ids)
        test = counted_split(self.job.cfg, self.sides, "test").explain(self.ids).whole()
        rows = []
        for name, mse in (
            ("mean predictor", mean_predictor(training, test)),
            ("oracle", OracleStage(self.job).pull().tensors("errors.safetensors")["mse"][self.ids]),
        ):
            fvu = torch.where(variance > 0, mse / variance, torch.nan)
            kept = fvu[~fvu.isnan()]
            rows.append(
                {
                    "name": name,
                    "mse": mse.mean().item(),
                    "fvu": (mse.sum() / variance.sum()).item(),
                    "fvu_median_latent": kept.median().item(),
                    "fraction_predicted": (kept < 0.5).double().mean().item(),
                }
            )
        if self.job.cfg.transcoder.path is not None:
            found = TranscoderStage(self.job).pull().json(TRANSCODER_FILE)["transcoder"]
            rows.append({"name": "transcoder, read by the target SAE", "fvu": found["fvu_latents"]})
        return rows


def text_piece(context: int) -> int:
    """Sequences of one piece of text."""
    return max(TEXT // context, 1)


def _foremost(entry: dict[str, Any]) -> int:
    """Which kind of place carries most of an outlier's activation, by its place in OUTLIERS from 1 on."""
    return 1 + max(range(len(OUTLIERS)), key=lambda kind: entry.get(OUTLIERS[kind], 0.0))


def _rounded(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: float(f"{v:.4g}") if isinstance(v, float) else v for name, v in figures.items()}


def _label(connector: Artifact[TrainFacts]) -> str:
    recipe = connector.recipe
    name, solver = recipe["connector"]["name"], recipe["solver"]["name"]
    size = f" {recipe['connector']['d_hidden']}" if "d_hidden" in recipe["connector"] else ""
    bias = ", bias" if recipe["connector"]["bias"] else ""
    debias = ", refitted" if recipe["solver"].get("debias") else ""
    effects = f", effects {recipe['solver']['effects']:g}" if "effects" in recipe["solver"] else ""
    return f"{name}{size} by {solver}{effects}{bias}{debias}"
