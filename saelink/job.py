"""One job: its configuration, the store it works in, and what is resolved from both once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from saelink.activations.tokens import TokensFacts, TokensStage
from saelink.attention.stage import MovedStage, pull_linked
from saelink.config.other_text import other_text
from saelink.config.schema import Config
from saelink.engine.tasks import Engine, engine_of
from saelink.errors import SaelinkError
from saelink.latents.encode import EncodeStage
from saelink.latents.link import Link, Sides, link_of, moved_forms, pull_sides
from saelink.memory import ModelSize
from saelink.model.describe import model_info
from saelink.model.dimensions import Dimensions, dimensions_of, size_of
from saelink.model.info import ModelInfo
from saelink.model.vocabulary import vocabulary_of
from saelink.progress import Observer
from saelink.runtime import device_of, limit_memory
from saelink.saes.choice import trained_saes
from saelink.store.artifact import Artifact
from saelink.store.stage import Facts, Stage
from saelink.store.store import Store


class Memory:
    """What was computed last, for the next job that needs the same: the path of a lasso, whose smaller penalty starts
    where the larger one ended. One entry; kept by whoever starts jobs, never by what computes."""

    def __init__(self) -> None:
        self._name: Any = None
        self._value: Any = None

    def recall(self, name: Any) -> Any:
        """What was kept under this name, or None."""
        return self._value if self._name == name else None

    def keep(self, name: Any, value: Any) -> None:
        """Remember this in the place of what was there."""
        self._name, self._value = name, value


@dataclass(frozen=True)
class Job:
    """What every stage above the latents takes. Frozen: another configuration is another job, see `at`."""

    cfg: Config
    store: Store
    memory: Memory = field(default_factory=Memory, compare=False)
    """Shared by all jobs that are made from one another by `at`."""
    fitted: Job | None = None
    """The job whose connector this one measures on other text; its training text gives the latents' scales."""

    def __post_init__(self) -> None:
        limit_memory(self.cfg)

    @property
    def observer(self) -> Observer:
        """Who is told how the work goes."""
        return self.store.observer

    @cached_property
    def model(self) -> ModelInfo:
        """What is known of the model. Raises SaelinkError when it can't be found or read."""
        return model_info(self.cfg, self.store)

    @cached_property
    def dimensions(self) -> Dimensions:
        """The model's sizes. Raises SaelinkError where its config is not at hand any more."""
        return dimensions_of(self.cfg.model, self.model.artifact)

    @cached_property
    def size(self) -> ModelSize:
        """What the model takes of memory."""
        return size_of(self.cfg.model, self.model.artifact)

    @cached_property
    def link(self) -> Link:
        """The link's hooks. Raises SaelinkError for a layer or hook that the model lacks."""
        return link_of(self.cfg, self.store)

    @cached_property
    def sides(self) -> Sides:
        """The latents on both sides of the link, encoded, and moved, first where they are missing."""
        own = pull_linked(self.cfg, self.store)
        return own if self.fitted is None else own._replace(scales=self.fitted.sides.scales)

    @property
    def fit(self) -> Job:
        """The job that the connector is fitted by: this one, unless it measures on other text."""
        return self if self.fitted is None else self.fitted

    @cached_property
    def measured(self) -> Job:
        """The job that measures the connector: this one, unless eval.data names another text.

        The other job has that text and the fit's SAEs, units and rules of which tokens count. Raises SaelinkError for
        a text that is none, and for a link from moved latents.
        """
        text = other_text(self.cfg)
        if self.fitted is not None or text is None:
            return self
        if any(moved_forms(self.cfg)):
            raise SaelinkError(
                f"eval.data={self.cfg.eval.data}: not for link={self.cfg.link.name}, whose pairs of head and latent "
                "are chosen on the text of the fit"
            )
        sae = trained_saes(self.cfg, self.store, [*self.link.sources, self.link.target])
        return Job(replace(self.cfg, data=text, sae=sae), self.store, self.memory, self)

    @cached_property
    def encoded(self) -> Sides:
        """The same, moved latents by what they are before they are moved."""
        return pull_sides(self.cfg, self.store) if any(moved_forms(self.cfg)) else self.sides

    @cached_property
    def tokens(self) -> Artifact[TokensFacts]:
        """The packed tokens, made first where they are missing."""
        return TokensStage(self.cfg, self.store).pull()

    @cached_property
    def vocabulary(self) -> list[str]:
        """By its number the text of every token, a blank in front kept."""
        return vocabulary_of(self.cfg, self.store, self.model)

    @property
    def about(self) -> str:
        """Model, layer and link in a few words."""
        return f"{self.cfg.model.label} layer {self.cfg.layer} {self.cfg.link.name}"

    @cached_property
    def engine(self) -> Engine:
        """The workers that the settings ask for."""
        return engine_of(self.cfg, self.observer)

    @cached_property
    def device(self) -> str:
        """`cpu` or `cuda`. Raises SaelinkError for CUDA that isn't there."""
        return device_of(self.cfg)

    def at(self, cfg: Config) -> Job:
        """The same store with another configuration."""
        return self if cfg is self.cfg else Job(cfg, self.store, self.memory, self.fitted)


class JobStage(Stage[Facts]):
    """A stage that takes a whole job."""

    def __init__(self, job: Job):
        self.job, self.store = job, job.store

    @property
    def device(self) -> str:
        return self.job.device

    def latents_inputs(self) -> dict[str, str]:
        """The keys of the latents on both sides of the link, by role; on other text also of those that give scales."""
        job = self.job
        found = _latents(job)
        if job.fitted is not None:
            found |= {f"scale of {role}": key for role, key in _latents(job.fitted).items()}
        return found


def _latents(job: Job) -> dict[str, str]:
    sources = {
        f"source{i}": (MovedStage(job.cfg, job.store, i) if form else EncodeStage(job.cfg, job.store, hook)).key
        for i, (hook, form) in enumerate(zip(job.link.sources, moved_forms(job.cfg), strict=True))
    }
    return {**sources, "target": EncodeStage(job.cfg, job.store, job.link.target).key}
