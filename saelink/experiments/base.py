"""What every experiment is: the fits it compares, the table it makes of them and its picture."""

from __future__ import annotations

import csv
import io
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from omegaconf import OmegaConf

from saelink.config import Config, LinkConfig, Normalise, TargetsConfig, conf_dir
from saelink.connectors import CONNECTORS
from saelink.encode import encode_plan
from saelink.evaluate import evaluate, evaluate_plan
from saelink.latents import Tokens
from saelink.link import link_of
from saelink.model import device_of
from saelink.norms import c_post
from saelink.solvers import SOLVERS
from saelink.store import Artifact, Draft, Plan, SaelinkError, Store, recipe_of
from saelink.train import train, train_plan

TABLE_FILE = "table.csv"
ROWS_FILE = "table.json"
PICTURE_FILE = "picture.png"
TEXT_FILE = "text.txt"

Row = dict[str, Any]


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
            cells = [[_finite(row[column]) for column in columns] for row in result.rows]
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


# --------------------------------------------------------------------------- describing fits


def link_named(name: str) -> LinkConfig:
    """The link of conf/link/<name>.yaml."""
    loaded = OmegaConf.merge(OmegaConf.structured(LinkConfig), OmegaConf.load(conf_dir() / "link" / f"{name}.yaml"))
    link = OmegaConf.to_object(loaded)
    assert isinstance(link, LinkConfig)
    return link


def fit(
    cfg: Config,
    connector: str,
    solver: str = "adam",
    *,
    l1_alpha: float = 0.0,
    seed: int = 0,
    tokens: int | None = None,
    subset: TargetsConfig | None = None,
    ce: bool = False,
    debias: bool = False,
    **settings: Any,
) -> Config:
    """A job's configuration with another connector and solver; the solver keeps what the job says of it.

    Without a penalty c only rescales the loss, so such a fit is the same, and keyed the same, for every `normalise`.
    """
    kind = CONNECTORS[connector].Config
    names = {entry.name for entry in fields(kind)}
    if "d_hidden" in names:
        settings.setdefault("d_hidden", cfg.experiment.d_hidden)
    solver_kind = SOLVERS[solver].Config
    chosen: dict[str, Any] = {"name": solver}
    base = SOLVERS["adam"].Config
    for entry in fields(solver_kind):
        mine = getattr(cfg.solver, entry.name, None)
        default = base.__dataclass_fields__[entry.name].default if entry.name in base.__dataclass_fields__ else None
        # lr_decay and the like: what the job leaves at Adam's default keeps this solver's own.
        if entry.name != "name" and mine is not None and (isinstance(cfg.solver, solver_kind) or mine != default):
            chosen[entry.name] = mine
    known = {entry.name for entry in fields(solver_kind)}
    if "debias" in known:
        chosen["debias"] = debias
    if tokens is not None and "tokens" in known:
        chosen["tokens"] = tokens
    if "validate_every" in known:
        total = chosen.get("tokens", solver_kind(name=solver).tokens)
        chosen["validate_every"] = min(chosen.get("validate_every", total), max(total // 10, 1))
    return replace(
        cfg,
        connector=kind(name=connector, **settings),
        solver=solver_kind(**chosen),
        l1_alpha=float(l1_alpha),
        normalise=cfg.normalise if l1_alpha else Normalise.none,
        seed=seed,
        targets=subset or cfg.targets,
        eval=replace(cfg.eval, ce=ce),
    )


def with_ce(cfg: Config) -> Config:
    """The same fit, evaluated with its cross-entropy."""
    return replace(cfg, eval=replace(cfg.eval, ce=True))


# --------------------------------------------------------------------------- figures that several share


def mean_predictor(training: Iterable[Tokens], test: Tokens) -> torch.Tensor:
    """[d_target] mean squared error on test tokens of predicting the mean over the training tokens, in pieces."""
    d, n = test.target.d, len(test)
    mean, n_train = torch.zeros(d, dtype=torch.float64), 0
    for piece in training:
        mean += torch.bincount(piece.target.indices, piece.target.values.double(), minlength=d)
        n_train += len(piece)
    mean /= n_train
    values = test.target.values.double()
    total = torch.bincount(test.target.indices, values, minlength=d)
    squares = torch.bincount(test.target.indices, values.square(), minlength=d)
    return (squares - 2 * mean * total + n * mean.square()) / n


def variance(tokens: Tokens) -> torch.Tensor:
    """[d_target] variance over these tokens."""
    d, n = tokens.target.d, len(tokens)
    values = tokens.target.values.double()
    total = torch.bincount(tokens.target.indices, values, minlength=d)
    return (torch.bincount(tokens.target.indices, values.square(), minlength=d) - total.square() / n).clamp(min=0) / n


NORMALISERS = ("post", "energy", "variance")


def normalisers(cfg: Config, store: Store, test: Tokens) -> dict[str, torch.Tensor]:
    """[d_target] what a latent's loss is divided by: c_L, the layer's energy, the latent's variance on test tokens."""
    energy = test.target.values.double().square().sum() / len(test)
    return {
        "post": torch.full((test.target.d,), c_post(cfg, store, link_of(cfg, store).target), dtype=torch.float64),
        "energy": energy.expand(test.target.d),
        "variance": variance(test),
    }


# --------------------------------------------------------------------------- tables and pictures


def rows_of(result: Artifact) -> list[Row]:
    """The table of an experiment's result."""
    table = result.json(ROWS_FILE)
    return [dict(zip(table["columns"], cells, strict=True)) for cells in table["rows"]]


def shown_rows(result: Artifact) -> list[Row]:
    """The table as the terminal shows it."""
    shown = result.json(ROWS_FILE)["shown"]
    return [{name: row[name] for name in shown} for row in rows_of(result)]


def table_csv(rows: Sequence[Row]) -> bytes:
    """The rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def table_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as aligned text: numbers with three digits, columns that hold one value throughout left out."""
    columns = [name for name in rows[0] if len(rows) == 1 or len({str(row[name]) for row in rows}) > 1]
    cells = [[_cell(row[name]) for name in columns] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(columns)]
    numeric = [all(isinstance(row[name], int | float | None) for row in rows) for name in columns]
    lines = [columns, *cells]
    return "\n".join(
        "  "
        + "  ".join(
            text.rjust(size) if right else text.ljust(size)
            for text, size, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def paragraph(text: str) -> str:
    """The text in lines of 80 columns, as what stands under a table."""
    return textwrap.fill(text, 80, initial_indent="  ", subsequent_indent="  ")


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _finite(value: Any) -> Any:
    """None for what JSON has no number for."""
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def picture(draw: Callable[[Any], None]) -> bytes:
    """A PNG of what `draw` puts into a figure."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(8, 4.6), layout="constrained")
    draw(figure)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130, metadata={"Software": None})
    plt.close(figure)
    return data.getvalue()


def named(name: str) -> None:
    """Raise SaelinkError when there is no experiment of this name."""
    from saelink.experiments import EXPERIMENTS

    if name not in EXPERIMENTS:
        raise SaelinkError(f"experiment.names: there is no experiment {name}; known: {', '.join(sorted(EXPERIMENTS))}")
