"""What each stage promised to need and what the kernel counted while it was made: a process of its own.

    python -m helpers.peaks LAST OVERRIDE...    # LAST: sides, train, evaluate, edges, or names from helpers.stages

prints a JSON list of [stage, promised bytes or null, bytes of growth]. A stage's growth is the most that the process
had while it was made, its inputs too where it makes them itself, less what it had at its begin.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelink.evidence.edges import EdgesStage
from saelink.evidence.evaluate import EvaluateStage
from saelink.fit.train import TrainStage
from saelink.job import Job
from saelink.latents.examples import ExamplesStage
from saelink.store import stage as stages
from saelink.store.store import Store

from helpers.stages import ATTENTION, CHAIN, SEVERAL
from helpers.world import composed, with_solver


def status(name: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


@dataclass
class Frame:
    """A stage that is being made."""

    stage: str
    promised: float | None
    start: int
    peak: int = 0


class Watch:
    """Stands in the places where stages promise and are made."""

    def __init__(self) -> None:
        self.said: tuple[str, float | None] = ("", None)
        self.open: list[Frame] = []
        self.found: list[Frame] = []
        self.drafts, self.promised = Store.drafts, stages.promised

    def promise(self, store: Store, what: str, need: Any) -> None:
        """Notes what is promised."""
        self.promised(store, what, need)
        self.said = what.partition(":")[0], None if need is None else need.bytes

    def count(self) -> None:
        """Every open stage has seen the highest until now, which starts anew."""
        peak = status("VmHWM")
        for frame in self.open:
            frame.peak = max(frame.peak, peak)
        Path("/proc/self/clear_refs").write_text("5")

    def watched(self) -> Any:
        """In the place of Store.drafts."""
        watch = self

        @contextmanager
        def drafts(self: Store, plans: list[Any], **how: Any) -> Generator[Any, None, None]:
            with watch.drafts(self, plans, **how) as made:
                if not made:
                    yield made
                    return
                watch.count()
                stage, promised = watch.said
                watch.said = ("", None)
                frame = Frame(plans[0].stage, promised if stage == plans[0].stage else None, status("VmRSS"))
                watch.open.append(frame)
                yield made
                watch.count()
                watch.open.remove(frame)
                watch.found.append(frame)

        return drafts


def made(names: list[str], overrides: list[str]) -> None:
    """Stages in their order, with what they are made from."""
    for each in (*CHAIN, *ATTENTION, *SEVERAL):
        if each.name in names:
            each.build(Job(composed(with_solver(overrides, each.words)), Store("outputs"))).pull()


def main() -> None:
    watch = Watch()
    Store.drafts = watch.watched()  # type: ignore[method-assign]
    for module in list(sys.modules.values()):
        if module.__name__.startswith("saelink.") and getattr(module, "promised", None) is watch.promised:
            module.promised = watch.promise  # type: ignore[attr-defined]
    last, *overrides = sys.argv[1:]
    job = Job(composed(overrides), Store("outputs"))
    _ = job.sides
    if last not in ("sides", "train", "evaluate", "edges"):
        made(last.split(","), overrides)
    elif last != "sides":
        TrainStage(job).pull()
    if last in ("evaluate", "edges"):
        EvaluateStage(job).pull()
    if last == "edges":
        EdgesStage(job).pull()
        ExamplesStage(job.cfg, job.store, job.link.target).pull()
    print(json.dumps([[frame.stage, frame.promised, frame.peak - frame.start] for frame in watch.found]))


if __name__ == "__main__":
    main()
