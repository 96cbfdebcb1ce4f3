"""What each stage promised to need and what the kernel counted while it was made: a process of its own.

    python -m helpers.peaks ALSO OVERRIDE...    # the chain up to evaluate; with ALSO=edges also edges, examples

prints a JSON list of [stage, promised bytes, bytes of growth], outer stages without what their inputs took.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saelink.fit.train import TrainStage
from saelink.job import Job
from saelink.store import stage as stages
from saelink.store.store import Store

from helpers.world import composed


def status(name: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    promised: list[float] = []
    found: list[tuple[str, float, int]] = []
    plain, plain_promise = Store.drafts, stages.promised

    def promise(store: Store, what: str, need: Any) -> None:
        plain_promise(store, what, need)
        promised.append(0.0 if need is None else need.bytes)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        began.append(status("VmRSS"))

    began: list[int] = []

    @contextmanager
    def drafts(self: Store, plans: list[Any], **how: Any) -> Generator[Any, None, None]:
        with plain(self, plans, **how) as made:
            yield made
        if made and began:
            found.append((plans[0].stage, promised.pop(), status("VmHWM") - began.pop()))
            promised.clear()
            began.clear()

    Store.drafts = drafts  # type: ignore[method-assign]
    for module in list(sys.modules.values()):
        if module.__name__.startswith("saelink.") and getattr(module, "promised", None) is plain_promise:
            module.promised = promise  # type: ignore[attr-defined]
    also, *overrides = sys.argv[1:]
    job = Job(composed(overrides), Store("outputs"))
    _ = job.sides
    TrainStage(job).pull()
    from saelink.evidence.evaluate import EvaluateStage

    EvaluateStage(job).pull()
    if "edges" in also:
        from saelink.evidence.edges import EdgesStage
        from saelink.latents.examples import ExamplesStage

        EdgesStage(job).pull()
        ExamplesStage(job.cfg, job.store, job.link.target).pull()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
