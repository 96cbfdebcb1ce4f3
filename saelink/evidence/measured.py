"""A connector measured by pieces of the test tokens, each a task of the engine: the sums of one pass over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from saelink.config.schema import Config
from saelink.connectors.base import Connector
from saelink.engine.work import Work
from saelink.fit.train import TrainFacts, fitted_connector
from saelink.job import Job
from saelink.latents.link import load_split
from saelink.latents.metrics import ErrorSums, in_steps
from saelink.latents.split import Tokens
from saelink.progress import Observer
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft, Part, Parts
from saelink.store.store import Store

STEPS = 16
"""Steps of `in_steps` in one task."""

SUMS = ("squared_error", "total", "squared_total", "active")

Measure = Callable[[Connector, Tokens, str, Observer], tuple[dict[str, ErrorSums], dict[str, float]]]
"""What `evaluate.measure_connector` is."""


class Piece(NamedTuple):
    """A task: some of the typical tokens, or of those with massive activations."""

    typical: bool
    first: int
    last: int
    step: int
    """Tokens whose sums are made together, as in one pass over all of them."""

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{'typical' if self.typical else 'massive'}-{self.first:09d}.safetensors"


class Opened(NamedTuple):
    """What a worker has open."""

    connector: Connector
    tokens: dict[bool, Tokens]
    device: str


@dataclass(frozen=True)
class MeasureWork(Work[Opened, Piece, Part]):
    """The sums of each step of a piece, as a file of the draft."""

    cfg: Config
    draft: Parts
    connector: str
    """Folder of the train artifact."""
    measure: Measure
    on_gpu = True

    def open(self) -> Opened:
        job = Job(self.cfg, Store(self.cfg.runtime.outputs)).measured
        artifact: Artifact[TrainFacts] = Artifact(Path(self.connector))
        connector = fitted_connector(artifact, job.device)
        test = load_split(job.cfg, job.sides, "test", connector.target_ids.cpu())
        return Opened(connector, {True: test.subset(test.typical), False: test.subset(~test.typical)}, job.device)

    def run(self, state: Opened, task: Piece) -> Part:
        tokens, found = state.tokens[task.typical], list[ErrorSums]()
        for first in range(task.first, task.last, task.step):
            chosen = tokens.select(torch.arange(first, min(first + task.step, task.last)))
            found.append(self.measure(state.connector, chosen, state.device, Observer())[0]["all"])
        tensors = {name: torch.stack([getattr(sums, name) for sums in found]) for name in SUMS}
        return self.draft.save_tensors(task.name, {**tensors, "n": torch.tensor([sums.n for sums in found])})


def measured(
    measure: Measure, job: Job, artifact: Artifact[TrainFacts], connector: Connector, test: Tokens, draft: Draft
) -> tuple[dict[str, ErrorSums], dict[str, float]]:
    """What `measure` gives, by workers where there are several and the connector has no hidden units or relu."""
    engine = job.engine
    if not engine.several_on(job.device) or connector.n_hidden or connector.relu_output:
        return measure(connector, test, job.device, job.observer)
    (source, _) = next(in_steps(test.source, test.target))
    step, pieces = len(source), list[Piece]()
    for typical in (True, False):
        n = int((test.typical == typical).sum())
        size = STEPS * step
        pieces += [Piece(typical, first, min(first + size, n), step) for first in range(0, n, size)]
    with job.observer.progress("evaluate", len(test)) as bar:

        def done(piece: Piece, part: Part) -> None:
            draft.take(part)
            bar.advance(piece.last - piece.first)

        work = MeasureWork(engine.of_worker(job.fit.cfg), draft.parts, str(artifact.path.resolve()), measure)
        engine.run("evaluate", work, pieces, done)
    sums = {typical: ErrorSums(test.target.d) for typical in (True, False)}
    for piece in pieces:
        tensors = draft.tensors(piece.name)
        for number, n in enumerate(tensors["n"].tolist()):  # in the order of one pass, for the last digit's sake
            one = ErrorSums(test.target.d)
            one.n = n
            for name in SUMS:
                setattr(one, name, tensors[name][number])
            sums[piece.typical] += one
    draft.drop([piece.name for piece in pieces])
    return {"all": sums[True] + sums[False], "typical": sums[True]}, {}
