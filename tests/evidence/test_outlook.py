"""What verify says it has still to do."""

from __future__ import annotations

from collections.abc import Callable

from saelink.config.schema import Config
from saelink.evidence.outlook import Outlook, outlook
from saelink.evidence.stability import StabilityStage, fits_of
from saelink.evidence.verify import VerifyStage
from saelink.fit.train import TrainStage
from saelink.interventions.effects import EffectsStage, nulls_of
from saelink.job import Job
from saelink.store.store import Store

from helpers.world import Run


def test_the_outlook_counts_what_is_missing(config: Callable[..., Config], store: Store) -> None:
    job = Job(config("solver=exact"), store)
    fits, matrices = fits_of(job.cfg), 1 + len(nulls_of(job.cfg))
    assert fits > 0
    assert outlook(job) == Outlook(matrices, fits, None)  # nothing was measured yet
    train, effects = TrainStage(job).pull(), EffectsStage(job).pull()
    each, fit = (artifact.manifest["provenance"]["seconds"] for artifact in (effects, train))
    assert outlook(job) == Outlook(matrices - 1, fits, (matrices - 1) * each + fits * fit)
    StabilityStage(job).pull()
    assert outlook(job) == Outlook(matrices - 1, 0, (matrices - 1) * each)
    VerifyStage(job).pull()
    assert outlook(job) is None


def test_the_outlook_in_words() -> None:
    assert Outlook(1, 0, None).text == "verify: 1 matrix of effects"
    line = "verify: 3 matrices of effects and 24 fits on halves of the documents, about 2 minutes in all"
    assert Outlook(3, 24, 131.0).text == line


def test_verify_says_it_first(saelink: Run) -> None:
    code, out, err = saelink("verify", "solver=exact")
    assert code == 0, err
    first = next(line for line in out.splitlines() if line.startswith("verify: "))
    assert "matrices of effects and" in first and out.index(first) < out.index("  strong effects")
    assert "matrices of effects" not in saelink("verify", "solver=exact")[1]
