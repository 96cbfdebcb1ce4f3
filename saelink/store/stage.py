"""What every stage is: what names its artifact, and how the artifact is made when it is missing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from saelink.config.size import gigabytes
from saelink.runtime import need_memory
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.recipe import Plan
from saelink.store.store import Store

Facts = TypeVar("Facts", bound=Mapping[str, Any])
"""What a stage finds out about its artifact: a TypedDict beside it."""


SAID = 10**9
"""Bytes from which on it is said how much memory a stage needs: most need less, and a line each would hide the rest."""


class Need(NamedTuple):
    """The memory that making an artifact takes."""

    bytes: float
    """Beside what the process has."""
    way_out: str
    """What helps where so much can't be had, as the end of a sentence."""


def promised(store: Store, what: str, need: Need | None) -> None:
    """Say what memory `what` needs, and raise SaelinkError where that can't be had."""
    if need is None:
        return
    need_memory(f"{what} would", need.bytes, need.way_out)
    if need.bytes >= SAID:
        store.observer.say(f"{what}, about {gigabytes(need.bytes)} of memory")


class Stage(ABC, Generic[Facts]):
    """One artifact that is found or made; `pull` gives it, `plan` only names it.

    Nothing is computed for `recipe`, `inputs` and `about` beyond what names the artifact. Subclasses say in their
    docstring which files the artifact has and what they raise.
    """

    name: ClassVar[str]
    """The folder of its artifacts in the store, and the first part of what a key is made of."""
    version: ClassVar[int]
    """Raised when a change of code changes the numbers it writes."""

    store: Store

    @abstractmethod
    def recipe(self) -> dict[str, Any]:
        """Everything that changes the numbers; nothing that does not (device, paths, W&B)."""

    @abstractmethod
    def inputs(self) -> dict[str, str]:
        """Role -> key of the artifacts this one is computed from."""

    @abstractmethod
    def about(self) -> str:
        """What it is in a few words, for `saelink ls`; not part of the key."""

    @abstractmethod
    def make(self, draft: Draft) -> Facts:
        """Compute it: fill the draft with its files and return its facts."""

    @property
    def device(self) -> str:
        """Where it computes, for the manifest."""
        return "cpu"

    @property
    def resumable(self) -> bool:
        """Whether `make` goes on from the files that an earlier try finished."""
        return False

    def check(self) -> None:
        """Raise SaelinkError for what can be known to fail before anything is computed."""

    def need(self) -> Need | None:
        """The memory that `make` takes, inputs that are missing made first; None for next to none."""
        return None

    def promise(self) -> None:
        """Say what memory it needs, and raise SaelinkError where that can't be had; before anything is written."""
        promised(self.store, f"{self.name}: {self.about()}", self.need())

    @cached_property
    def plan(self) -> Plan:
        """What names the artifact."""
        return Plan(self.name, self.version, self.recipe(), self.inputs(), self.about())

    @property
    def key(self) -> str:
        return self.plan.key

    def find(self) -> Artifact[Facts] | None:
        """The finished artifact, or None; nothing is computed."""
        return self.store.find(self.plan)

    def pull(self) -> Artifact[Facts]:
        """The artifact, found or made."""
        self.check()
        found = self.store.up_to_date(self.plan)
        if found is None:
            self.promise()
        return found or self.store.build(self.plan, self.make, self.device, self.resumable)
