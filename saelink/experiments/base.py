"""What every experiment is: the fits it compares, the table it makes of them and its picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NotRequired, TypedDict, cast

import torch

from saelink import memory
from saelink.config.other_text import check_own_text
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.evidence.evaluate import EvaluateStage
from saelink.experiments.tables import PICTURE_FILE, ROWS_FILE, TABLE_FILE, TEXT_FILE, Row, finite, picture, table_csv
from saelink.fit.train import TrainStage, shape_of
from saelink.job import Job, JobStage
from saelink.latents.encode import EncodeStage
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.recipe import Plan, recipe_of
from saelink.store.stage import Need


class Done:
    """A fit that an experiment asked for: its connector and its evaluation."""

    def __init__(self, job: Job):
        self.cfg = job.cfg
        self.connector = TrainStage(job).pull()
        self.evaluation = EvaluateStage(job).pull()
        self.metrics: dict[str, Any] = self.evaluation.json("metrics.json")

    def latents(self) -> dict[str, torch.Tensor]:
        """By latent of the target SAE: fvu, mse, variance, active on test documents."""
        return self.evaluation.tensors("latents.safetensors")


@dataclass
class Result:
    """What an experiment found."""

    rows: list[Row]
    """The table. All rows have the same columns."""
    shown: list[str] | None = None
    """The columns that the terminal shows, None for all; the files hold all."""
    draw: Callable[[Any], None] | None = None
    """Draws the picture into a matplotlib figure."""
    text: str = ""
    """What is printed under the table."""
    tensors: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    """Further files, by name."""
    pages: dict[str, str] = field(default_factory=dict)
    """Files of text, by name."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What other experiments ask for."""


@dataclass
class NoSettings:
    """Settings of an experiment that has none of its own."""


class Experiment(ABC):
    """One experiment at one layer. It has no state; `cfg.experiment` holds its settings, those it owns by its name."""

    title: ClassVar[str]
    """What it shows, in a line."""
    Settings: ClassVar[type[Any]] = NoSettings
    """The dataclass of the settings that it owns."""
    settings: ClassVar[tuple[str, ...]] = ()
    """The settings, its own and shared ones, that its result depends on beyond its fits."""
    version: ClassVar[int] = 1
    by_layer: ClassVar[bool] = True
    """Whether each layer has a result of its own."""
    by_evaluation: ClassVar[bool] = True
    """Whether its result depends on how its fits are evaluated, or on their weights alone."""

    @property
    def name(self) -> str:
        return type(self).__module__.rsplit(".", 1)[1]

    @property
    def owner(self) -> str:
        """The name by which its own settings are set: experiment.<owner>.<setting>."""
        return self.name

    def own(self, cfg: Config) -> Any:
        """The settings that it owns."""
        return getattr(cfg.experiment, self.owner)

    def check(self, settings: Any) -> None:
        """Raise SaelinkError for a setting of its own that is out of range."""
        return

    def mistake(self, settings: Any, name: str, way_out: str) -> SaelinkError:
        """The line that a wrong value of an own setting gets."""
        return SaelinkError(f"experiment.{self.owner}.{name}={getattr(settings, name)}: {way_out}")

    def configured(self, cfg: Config) -> Config:
        """The configuration it works with; an experiment about another link says so here."""
        return cfg

    def jobs(self, cfg: Config) -> list[Config]:
        """The configurations whose latents it looks at."""
        return [self.configured(cfg)]

    @abstractmethod
    def fits(self, job: Job) -> dict[str, Config]:
        """The connectors it compares, by label. Nothing is computed for this."""

    def starts_from(self) -> list[Experiment]:
        """The experiments whose results it uses; they run first."""
        return []

    def needs(self, job: Job) -> dict[str, str]:
        """The keys of what else it uses, by role."""
        return {}

    def recipe(self, cfg: Config) -> dict[str, Any]:
        """What else its result depends on that neither its fits nor its settings say."""
        return {}

    def memory(self, job: Job) -> float:
        """Bytes that `make` takes beside its fits, which state theirs: here one connector after the other, with copies
        of its weights while they are counted."""
        weights = [shape_of(job.at(cfg)).weights for cfg in self.fits(job).values()]
        return memory.COMPILED + 24.0 * max(weights, default=0)

    @abstractmethod
    def make(self, job: Job, done: dict[str, Done]) -> Result:
        """The result, from the fits."""

    def plan(self, job: Job) -> Plan:
        """What names the result: known before anything is fitted."""
        return ExperimentStage(job, self).plan

    def run(self, job: Job) -> Artifact[ExperimentFacts]:
        """The result, found or made; those it starts from first."""
        for other in self.starts_from():
            other.run(job.at(self.configured(job.cfg)))
        return ExperimentStage(job, self).pull()  # only now: its plan may depend on what the others found


class ExperimentFacts(TypedDict):
    """What every result says of itself, and below what single experiments add."""

    name: str
    title: str
    layer: int | None
    link: str
    levels: NotRequired[dict[str, float | None]]
    """noise_threshold: by normaliser the largest level that is cheap enough."""
    elbows: NotRequired[dict[str, float]]
    """pareto: by connector the penalty at its elbow."""
    areas: NotRequired[dict[str, float]]
    """edges_kept, several_layers: by graph the mean share recovered over log k."""
    faithfulness: NotRequired[dict[str, dict[str, float]]]
    """faithfulness: by graph CPR and CMD with their intervals, and those of the complements."""
    n_linear: NotRequired[int]
    """percent_linear: target latents in the linear subset,"""
    n_targets: NotRequired[int]
    """and in both parts."""


class ExperimentStage(JobStage[ExperimentFacts]):
    """An experiment's result: `table.csv`, `table.json`, `picture.png`, `text.txt` and what else `make` gives."""

    name = "experiment"
    version = 1

    def __init__(self, job: Job, experiment: Experiment):
        super().__init__(job.at(experiment.configured(job.cfg)))
        check_own_text(job.cfg, "experiments")
        self._experiment = experiment

    def recipe(self) -> dict[str, Any]:
        cfg, experiment = self.job.cfg, self._experiment
        own = experiment.own(cfg)
        recipe: dict[str, Any] = {"name": experiment.name, "version": experiment.version}
        for name in experiment.settings:
            recipe[name] = recipe_of(getattr(own if hasattr(own, name) else cfg.experiment, name))
        recipe |= recipe_of(experiment.recipe(cfg))
        return recipe | ({"layer": cfg.layer} if experiment.by_layer else {})

    def inputs(self) -> dict[str, str]:
        job, experiment = self.job, self._experiment
        fits = {label: job.at(cfg) for label, cfg in experiment.fits(job).items()}
        key_of = EvaluateStage if experiment.by_evaluation else TrainStage
        inputs = {f"fit {label}": key_of(fit).key for label, fit in fits.items()}
        inputs |= {f"need {role}": key for role, key in experiment.needs(job).items()}
        inputs |= {f"from {other.name}": other.plan(job).key for other in experiment.starts_from()}
        for each in map(job.at, experiment.jobs(job.cfg)):
            hooks = [*each.link.sources, each.link.target]
            inputs |= {f"latents {hook}": EncodeStage(each.cfg, each.store, hook).key for hook in hooks}
        return inputs

    def about(self) -> str:
        where = self.job.about if self._experiment.by_layer else self.job.cfg.model.label
        return f"{where}, {self._experiment.name}"

    def need(self) -> Need:
        return Need(self._experiment.memory(self.job), "use SAEs with fewer latents, or less text (data.max_tokens)")

    def make(self, draft: Draft) -> ExperimentFacts:
        job, experiment = self.job, self._experiment
        done = {}
        for number, (label, fit) in enumerate(fits := experiment.fits(job).items(), 1):
            job.observer.say(f"{experiment.name}: fit {number} of {len(fits)}, {label}")
            done[label] = Done(job.at(fit))
        result = experiment.make(job, done)
        draft.save_bytes(TABLE_FILE, table_csv(result.rows))
        columns = list(result.rows[0])
        cells = [[finite(row[column]) for column in columns] for row in result.rows]
        draft.save_json(ROWS_FILE, {"columns": columns, "rows": cells, "shown": result.shown or columns})
        draft.save_bytes(TEXT_FILE, (result.text + "\n").encode())
        if result.draw is not None:
            draft.save_bytes(PICTURE_FILE, picture(result.draw))
        for name, tensors in result.tensors.items():
            draft.save_tensors(name, tensors)
        for name, page in result.pages.items():
            draft.save_bytes(name, page.encode())
        facts = {"name": experiment.name, "title": experiment.title, "link": job.cfg.link.name}
        layer = job.cfg.layer if experiment.by_layer else None
        return cast("ExperimentFacts", {**facts, "layer": layer, **result.facts})
