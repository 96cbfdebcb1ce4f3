"""What `saelink verify` has still to do, and how long that takes by what the store has seen."""

from __future__ import annotations

from typing import NamedTuple

from saelink.evidence.compared import fits_in, measured_on
from saelink.evidence.stability import StabilityStage, fits_of, wanted
from saelink.fit.train import TrainStage
from saelink.interventions.effects import EffectsStage, nulls_of
from saelink.job import Job


class Outlook(NamedTuple):
    """Work that is not done yet."""

    matrices: int
    """Effects of all sources on all targets: in the model, and under each null."""
    fits: int
    """Fits on halves of the documents."""
    seconds: float | None
    """What it takes, by the matrices and the fits of these latents that there are; None where there are none yet."""

    @property
    def text(self) -> str:
        """In one line."""
        parts = []
        if self.matrices:
            parts.append("1 matrix of effects" if self.matrices == 1 else f"{self.matrices} matrices of effects")
        if self.fits:
            parts.append(f"{self.fits} fits on halves of the documents")
        about = "" if self.seconds is None else f", about {_duration(self.seconds)} in all"
        return f"verify: {' and '.join(parts)}{about}"


def outlook(job: Job) -> Outlook | None:
    """What verifying the job's connector takes; None where nothing is left to do."""
    effects = [EffectsStage(job.measured, null=null).find() for null in (None, *nulls_of(job.cfg))]
    matrices = sum(each is None for each in effects)
    again = wanted(job.cfg) and StabilityStage(job).find() is None
    fits = fits_of(job.cfg) if again else 0
    if not matrices and not fits:
        return None
    matrix = max((each.manifest["provenance"]["seconds"] for each in effects if each is not None), default=None)
    fit = _seconds_of_fit(job) if fits else 0.0
    known = (matrix is not None or not matrices) and fit is not None
    return Outlook(matrices, fits, matrices * (matrix or 0.0) + fits * (fit or 0.0) if known else None)


def _seconds_of_fit(job: Job) -> float | None:
    """The least that a fit between these latents with this solver took; others were made with what they read."""
    mine = TrainStage(job).find()
    if mine is None:
        return None
    settings = ("connector", "solver")
    alike = [
        fit
        for fit in fits_in(job.store)
        if measured_on(fit) == measured_on(mine) and all(fit.recipe[name] == mine.recipe[name] for name in settings)
    ]
    return min(fit.manifest["provenance"]["seconds"] for fit in alike)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"
