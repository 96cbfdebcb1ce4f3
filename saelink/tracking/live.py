"""A fit in W&B while it goes on: its curve, how fast it is and how long it takes still."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any

from saelink.fit.train import TrainStage
from saelink.job import Job
from saelink.progress import Observer, Progress
from saelink.store.provenance import peak_memory_bytes
from saelink.tracking.project import OpenRun, Project, Shown

SECONDS = 2.0
"""Between two points of speed."""

CURVES = ("train_mse", "validation_mse", "validation_fvu", "l1", "objective", "n_edges", "n_edges_above_0.01")
"""What is drawn against `tokens`, the training tokens seen."""

WAY = {"way/mse": "validation_mse", "way/fvu": "validation_fvu", "way/edges": "n_edges"}
"""What is drawn against `way/l1`: a fit's way through error and L1 while it trains."""

LIVE = ("live/per_second", "live/seconds_left", "live/peak_memory_gb")
"""What is drawn against `live/done`."""


def define_curves(run: Any) -> None:
    """Tell W&B what is drawn against what."""
    for step, curves in (("tokens", CURVES), ("way/l1", WAY), ("live/done", LIVE)):
        run.define_metric(step, hidden=True)
        for curve in curves:
            run.define_metric(curve, step_metric=step)


def curve_point(point: Mapping[str, float]) -> dict[str, float]:
    """A point of a fit's history under the names that are logged."""
    logged = {"tokens": point["tokens"], **{name: point[name] for name in CURVES}}
    return logged | {"way/l1": point["l1"], **{name: point[fact] for name, fact in WAY.items()}}


class LiveFit(Observer):
    """Tells another observer all it is told, and shows the fit of a job in W&B from its first step on.

    The run begins when the fit does: a connector that is found up to date begins none. Whoever pulled it goes on with
    `begun` and ends it.
    """

    def __init__(self, inner: Observer, project: Project, shown: Callable[[], Shown]):
        self.begun: OpenRun | None = None
        self._inner, self._project, self._shown = inner, project, shown

    def say(self, line: str) -> None:
        self._inner.say(line)

    def found(self, line: str) -> None:
        self._inner.found(line)

    def progress(self, what: str, total: int, unit: str = "tokens", done: int = 0) -> Progress:
        inner = self._inner.progress(what, total, unit, done)
        if what != TrainStage.name or self._project.disabled or self.begun is not None:
            return inner
        self.begun = self._project.begin(self._shown())
        define_curves(self.begun.run)
        return _LiveProgress(inner, self.begun, total)


class _LiveProgress(Progress):
    def __init__(self, inner: Progress, begun: OpenRun, total: int):
        self._inner, self._begun, self._total = inner, begun, total
        self._done, self._lost, self._lock = 0, False, threading.Lock()
        self._started = self._logged = time.monotonic()
        # A run that was online before has a part of the curve already.
        self._seen = begun.run.summary.get("tokens", -1) if begun.run.resumed else -1

    def __enter__(self) -> Progress:
        self._inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inner.__exit__(kind, error, trace)

    def advance(self, units: int, note: str = "") -> None:
        self._inner.advance(units, note)
        with self._lock:
            self._done += units
            now = time.monotonic()
            if now - self._logged < SECONDS and self._done < self._total:
                return
            self._logged = now
            rate = self._done / max(now - self._started, 1e-9)
            left = (self._total - self._done) / max(rate, 1e-9)
            figures = {"live/done": self._done, "live/per_second": rate, "live/seconds_left": left}
            self._log({**figures, "live/peak_memory_gb": peak_memory_bytes() / 1e9})

    def point(self, figures: Mapping[str, float]) -> None:
        self._inner.point(figures)
        if figures["tokens"] > self._seen:
            self._log(curve_point(figures))

    def _log(self, figures: dict[str, float]) -> None:
        """Log them; a fit goes on where W&B's own process is gone."""
        if self._lost:
            return
        try:
            self._begun.run.log(figures)
        except Exception:  # whatever wandb raises then
            if not self._begun.online:
                raise
            self._lost = True


@contextmanager
def watched(
    job: Job, project: Project, shown: Callable[[Job], Shown]
) -> Generator[tuple[Job, LiveFit], None, None]:  # fmt: skip
    """The same job with its fit shown in W&B, and what shows it; `shown` is asked when the fit begins.

    A run that was begun ends as failed when what is done inside fails.
    """
    fit = LiveFit(job.observer, project, lambda: shown(mine))
    mine = replace(job, store=job.store.telling(fit))
    try:
        yield mine, fit
    except BaseException:
        if fit.begun is not None:
            project.abandon(fit.begun)
        raise
