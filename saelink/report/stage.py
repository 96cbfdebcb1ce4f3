"""One page that shows what a connector found: the stage `report`.

`data.zip` holds everything the page shows, as compressed JSON in pieces; `report.html` is a template, a style sheet, a
script and those pieces, which the browser unpacks when they are asked for. Nothing in it is fetched from anywhere.
`results.json` has the figures for programs.
"""

from __future__ import annotations

import io
import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from saelink import memory
from saelink.config.schema import Config
from saelink.evidence.consequences import consequences_of
from saelink.evidence.edges import EdgesFacts, EdgesStage
from saelink.evidence.effectiveness import EffectivenessStage, has_outputs
from saelink.evidence.evaluate import EvaluateFacts, EvaluateStage
from saelink.evidence.hidden_units import HiddenUnitsStage
from saelink.evidence.labels import load_labels
from saelink.evidence.logic_trials import found_trials
from saelink.evidence.stability import repeated
from saelink.evidence.transcoder import TranscoderStage
from saelink.evidence.verify import verdicts_of
from saelink.fit.train import TrainFacts, TrainStage, fitted_connector, shape_of
from saelink.interventions.oracle import OracleStage
from saelink.job import Job, JobStage
from saelink.latents.examples import OCTAVES, ExamplesStage
from saelink.report.heads import HeadPages
from saelink.report.included import included
from saelink.report.overview import Compared, Overview
from saelink.report.pieces import Piece, Pieces, PiecesWork, pieces_of
from saelink.report.render import DATA_FILE, PAGE_FILE, packed, render
from saelink.saes.neuronpedia import neuronpedia_page
from saelink.share.results import RESULTS_FILE, results_of
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft, Part
from saelink.store.files import write_durably
from saelink.store.stage import Need
from saelink.store.store import Store

COMPARED = ("latent_scale", "drop_positions", "max_norm_ratio")
"""Connectors whose recipes agree in these are measured on the same tokens in the same units."""


class ReportFacts(TypedDict):
    bytes: int
    connectors: list[str]
    """Keys of the connectors whose circuits it holds."""


class _Made(NamedTuple):
    """A connector on the page."""

    connector: Artifact[TrainFacts]
    evaluation: Artifact[EvaluateFacts]
    edges: Artifact[EdgesFacts]


class ReportStage(JobStage[ReportFacts]):
    """The page about the configured connector.

    `command` is what it says makes it. Files: `report.html`, `data.zip`, `results.json` (see share/results.py). It is
    made anew when something it shows has changed: a name, the command, an evaluation of another connector between the
    same latents, say, or an experiment on them. So naming it pulls all that it shows.
    """

    name = "report"
    version = 11

    def __init__(self, job: Job, command: str | None = None):
        self.jobs = included(job)
        super().__init__(self.jobs[0])
        self._command = command
        self._labels = load_labels(job.cfg.report.labels)

    @property
    def device(self) -> str:
        return "cpu"

    @cached_property
    def _made(self) -> list[_Made]:
        made = []
        for number, job in enumerate(self.jobs, 1):
            if len(self.jobs) > 1 and EdgesStage(job).find() is None:
                job.observer.say(f"report: connector {number} of {len(self.jobs)}, l1_alpha {job.cfg.l1_alpha:g}")
            made.append(_Made(TrainStage(job).pull(), EvaluateStage(job).pull(), EdgesStage(job).pull()))
        return made

    @cached_property
    def _others(self) -> list[Compared]:
        return _others(self.store, self._made[0].connector, {made.connector.key for made in self._made})

    @cached_property
    def _heads(self) -> HeadPages:
        return HeadPages(self.job)

    @cached_property
    def _experiments(self) -> list[Artifact[Any]]:
        return _experiments(self.store, self.job.sides.target.key)

    def recipe(self) -> dict[str, Any]:
        cfg, sides = self.job.cfg, self.job.sides
        recipe: dict[str, Any] = {
            "model": cfg.model.label,
            "data": cfg.data.label,
            "layer": cfg.layer,
            "link": cfg.link.name,
            "command": self._command,
            "cards": cfg.report.cards,
            "ablated": cfg.report.ablated,
            "ablated_examples": cfg.report.ablated_examples,
            "outlier_shares": dict(sorted(cfg.outliers.shares.items())),
        }
        pages = [neuronpedia_page(cfg, self.store, side.facts["hook_name"]) for side in [*sides.sources, sides.target]]
        if self._labels is not None:
            recipe["labels"] = self._labels.sha256
        return recipe | ({"pages": pages} if any(pages) else {})

    def inputs(self) -> dict[str, str]:
        job, sides, made = self.job, self.job.sides, self._made
        hooks = [side.facts["hook_name"] for side in [*sides.sources, sides.target]]
        inputs = {f"examples{i}": ExamplesStage(job.cfg, job.store, hook).pull().key for i, hook in enumerate(hooks)}
        inputs["oracle"] = OracleStage(job).pull().key
        if job.cfg.transcoder.path is not None:
            inputs["transcoder"] = TranscoderStage(job).pull().key
        for i, each in enumerate(made):
            inputs |= {f"connector{i}": each.connector.key, f"evaluation{i}": each.evaluation.key}
            inputs[f"edges{i}"] = each.edges.key
        judged = [verdicts_of(each) for each in self.jobs]
        again = [repeated(each) for each in self.jobs]
        inputs |= {f"verify{i}": artifact.key for i, artifact in enumerate(judged) if artifact is not None}
        owed = [EffectivenessStage(each).find() if has_outputs(each.cfg) else None for each in self.jobs]
        inputs |= {f"outputs{i}": artifact.key for i, artifact in enumerate(owed) if artifact is not None}
        inputs |= {f"stability{i}": artifact.key for i, artifact in enumerate(again) if artifact is not None}
        tried = [found_trials(each) for each in self.jobs]
        inputs |= {f"trials{i}": artifact.key for i, artifact in enumerate(tried) if artifact is not None}
        first = next((artifact for artifact in judged if artifact is not None), None)
        lost = None if first is None else consequences_of(job.store, first)
        if lost is not None:
            inputs["consequences"] = lost.key
        inputs |= {f"other{i}": evaluation.key for i, (_, evaluation) in enumerate(self._others)}
        inputs |= {f"experiment {result.facts['name']}": result.key for result in self._experiments}
        inputs |= self._heads.inputs()
        if fitted_connector(made[0].connector).n_hidden:
            inputs["hidden"] = HiddenUnitsStage(job).pull().key
        return inputs

    def about(self) -> str:
        return TrainStage(self.job).about()

    def need(self) -> Need:
        kept, sides = self.job.cfg.report, self.job.sides
        n_edges = sum(made.connector.facts["n_edges"] for made in self._made)
        cards = min(kept.cards, sides.d_target) + min(kept.cards, sides.d_source)
        weights = sum(shape_of(job).weights for job in self.jobs)
        places = kept.top + OCTAVES * kept.per_size + kept.random
        size = memory.report(n_edges, cards, places, weights) + sides.split_bytes("test")
        if self._heads.artifact is not None:
            size += memory.moved_page(self._heads.artifact.size)
        return Need(size, "have fewer cards on it (report.cards) or fewer connectors (report.l1_alphas)")

    def make(self, draft: Draft) -> ReportFacts:
        pieces = pieces_of(self.jobs)
        data = self._pieces(draft, pieces)
        shown = pieces.fits, pieces.listed, pieces.highlights
        overview = Overview(self.job, *shown, self._others, self._experiments, self._command)
        head = overview.head(pieces.heads.shown())
        if self._labels is not None:
            head["labels"] = [{**remark} for remark in self._labels.remarks]
        data |= {"head": packed(head), "index": packed(overview.index())}
        archived = io.BytesIO()
        with zipfile.ZipFile(archived, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(data):  # a fixed date: equal contents have equal bytes
                archive.writestr(zipfile.ZipInfo(f"{name}.json.gz", (1980, 1, 1, 0, 0, 0)), data[name])
        draft.save_bytes(DATA_FILE, archived.getvalue())
        draft.save_json(RESULTS_FILE, results_of(self.store, self.inputs().values(), self._command))
        page = render(head, data)
        draft.save_bytes(PAGE_FILE, page)
        return {"bytes": len(page), "connectors": [fit.wiring.artifact.key for fit in pieces.fits]}

    def _pieces(self, draft: Draft, pieces: Pieces) -> dict[str, bytes]:
        """By name every piece of the page's data, packed."""
        engine, every = self.job.engine, pieces.of_latents()
        data: dict[str, bytes] = {}
        with self.job.observer.progress("report", sum(piece.last - piece.first for piece in every), "cards") as bar:
            if engine.several:

                def done(piece: Piece, part: Part) -> None:
                    draft.take(part)
                    bar.advance(piece.last - piece.first)

                work = PiecesWork(tuple(engine.of_worker(job.cfg) for job in self.jobs), draft.parts)
                engine.run("report", work, every, done)
                data = {piece.name: draft.read(piece.file) for piece in every}
                draft.drop([piece.file for piece in every])
            else:
                for piece in every:
                    data[piece.name] = packed(pieces.make(piece))
                    bar.advance(piece.last - piece.first)
            data |= {name: packed(piece) for name, piece in pieces.others(self._experiments)}
        return data

    def pull(self) -> Artifact[ReportFacts]:
        """The page, also at report.path if that is given."""
        artifact = super().pull()
        path = self.job.cfg.report.path
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_durably(Path(path), artifact.file(PAGE_FILE).read_bytes())
        return artifact


def page_path(cfg: Config, artifact: Artifact[ReportFacts]) -> Path:
    """Where the page of a report is."""
    return Path(cfg.report.path) if cfg.report.path is not None else artifact.path / PAGE_FILE


def _others(store: Store, like: Artifact[TrainFacts], but: set[str]) -> list[Compared]:
    """Every evaluated connector in the store between the same latents on the same tokens, and its evaluation."""

    def sides(connector: Artifact[TrainFacts]) -> dict[str, str]:
        named = connector.manifest["inputs"].items()
        return {role: key for role, key in named if role == "target" or role.startswith("source")}

    found: dict[str, Compared] = {}
    for evaluation in store.artifacts():
        key = evaluation.manifest["inputs"].get("connector", "") if evaluation.stage == "evaluate" else ""
        path = store.root / "train" / key
        if not key or key in but or not path.exists():
            continue
        connector: Artifact[TrainFacts] = Artifact(path)
        same = all(connector.recipe[name] == like.recipe[name] for name in COMPARED) and sides(connector) == sides(like)
        if "other_text" in evaluation.facts:
            continue
        if same and (key not in found or "ce.json" in evaluation.files):
            found[key] = (connector, evaluation)
    return [found[key] for key in sorted(found)]


def _experiments(store: Store, target: str) -> list[Artifact[Any]]:
    """The newest result of each experiment about these target latents."""
    found: dict[str, Artifact[Any]] = {}
    for result in store.artifacts():
        if result.stage == "experiment" and target in result.manifest["inputs"].values():
            found[result.facts["name"]] = result
    return [found[name] for name in sorted(found)]
