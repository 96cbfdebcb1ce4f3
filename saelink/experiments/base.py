"""What every experiment is: the fits it compares, the table it makes of them and its picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from saelink.config.schema import Config
from saelink.evidence.evaluate import evaluate, evaluate_plan
from saelink.experiments.tables import PICTURE_FILE, ROWS_FILE, TABLE_FILE, TEXT_FILE, Row, finite, picture, table_csv
from saelink.fit.train import train, train_plan
from saelink.latents.encode import encode_plan
from saelink.latents.link import link_of
from saelink.runtime import device_of
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.recipe import Plan, recipe_of
from saelink.store.store import Store


class Done:
    """A fit that an experiment asked for: its connector and its evaluation."""

    def __init__(self, cfg: Config, store: Store):
        self.cfg = cfg
        self.connector: Artifact = train(cfg, store)
        self.evaluation: Artifact = evaluate(cfg, store)
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
    facts: dict[str, Any] = field(default_factory=dict)
    """What other experiments ask for."""


class Experiment(ABC):
    """One experiment at one layer. It has no state; `cfg.experiment` holds its settings."""

    title: ClassVar[str]
    """What it shows, in a line."""
    settings: ClassVar[tuple[str, ...]] = ()
    """The fields of ExperimentConfig that its result depends on beyond its fits."""
    version: ClassVar[int] = 1
    by_layer: ClassVar[bool] = True
    """Whether each layer has a result of its own."""
    by_evaluation: ClassVar[bool] = True
    """Whether its result depends on how its fits are evaluated, or on their weights alone."""

    @property
    def name(self) -> str:
        return type(self).__module__.rsplit(".", 1)[1]

    def configured(self, cfg: Config) -> Config:
        """The configuration it works with; an experiment about another link says so here."""
        return cfg

    def jobs(self, cfg: Config) -> list[Config]:
        """The configurations whose latents it looks at."""
        return [self.configured(cfg)]

    @abstractmethod
    def fits(self, cfg: Config, store: Store) -> dict[str, Config]:
        """The connectors it compares, by label. Nothing is computed for this."""

    def starts_from(self) -> list[Experiment]:
        """The experiments whose results it uses; they run first."""
        return []

    def needs(self, cfg: Config, store: Store) -> dict[str, Plan]:
        """What else it uses, by role."""
        return {}

    def recipe(self, cfg: Config) -> dict[str, Any]:
        """What else its result depends on that neither its fits nor its settings say."""
        return {}

    @abstractmethod
    def make(self, cfg: Config, store: Store, done: dict[str, Done]) -> Result:
        """The result, from the fits."""

    def plan(self, cfg: Config, store: Store) -> Plan:
        """Plan of the result: known before anything is fitted."""
        cfg = self.configured(cfg)
        recipe: dict[str, Any] = {"name": self.name, "version": self.version}
        recipe |= {name: recipe_of(getattr(cfg.experiment, name)) for name in self.settings}
        recipe |= recipe_of(self.recipe(cfg))
        fits = self.fits(cfg, store)
        key_of = evaluate_plan if self.by_evaluation else train_plan
        inputs = {f"fit {label}": key_of(fit, store).key for label, fit in fits.items()}
        inputs |= {f"need {role}": plan.key for role, plan in self.needs(cfg, store).items()}
        inputs |= {f"from {other.name}": other.plan(cfg, store).key for other in self.starts_from()}
        about = f"{cfg.model.label}, {self.name}"
        if self.by_layer:
            recipe["layer"] = cfg.layer
            about = f"{cfg.model.label} layer {cfg.layer} {cfg.link.name}, {self.name}"
        for job in self.jobs(cfg):
            link = link_of(job, store)
            inputs |= {f"latents {hook}": encode_plan(job, store, hook).key for hook in [*link.sources, link.target]}
        return Plan("experiment", 1, recipe, inputs, about)

    def run(self, cfg: Config, store: Store) -> Artifact:
        """Pull the result: `table.csv`, `table.json`, `picture.png`, `text.txt` and what else `make` gives."""
        cfg = self.configured(cfg)
        for other in self.starts_from():
            other.run(cfg, store)
        plan = self.plan(cfg, store)  # only now: it may depend on what the others found
        found = store.up_to_date(plan)
        if found is not None:
            return found
        done = {}
        for number, (label, fit) in enumerate(fits := self.fits(cfg, store).items(), 1):
            store.say(f"{self.name}: fit {number} of {len(fits)}, {label}")
            done[label] = Done(fit, store)

        def build(draft: Draft) -> dict[str, Any]:
            result = self.make(cfg, store, done)
            draft.save_bytes(TABLE_FILE, table_csv(result.rows))
            columns = list(result.rows[0])
            cells = [[finite(row[column]) for column in columns] for row in result.rows]
            draft.save_json(ROWS_FILE, {"columns": columns, "rows": cells, "shown": result.shown or columns})
            draft.save_bytes(TEXT_FILE, (result.text + "\n").encode())
            if result.draw is not None:
                draft.save_bytes(PICTURE_FILE, picture(result.draw))
            for name, tensors in result.tensors.items():
                draft.save_tensors(name, tensors)
            return {
                "name": self.name,
                "title": self.title,
                "layer": cfg.layer if self.by_layer else None,
                "link": cfg.link.name,
                **result.facts,
            }

        return store.build(plan, build, device_of(cfg))
