"""What programs read of a report, and how a result is cited: all that it was made from, with figures that are so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from saelink._version import __version__
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.evidence.evaluate import EvaluateStage
from saelink.evidence.verify import verdicts_of
from saelink.job import Job
from saelink.report.stage import ReportStage
from saelink.share.cite import citation
from saelink.share.results import RESULTS_FILE, SCHEMA
from saelink.store.store import Store


def test_a_report_has_its_figures_and_all_they_come_from(config: Callable[..., Config], store: Store) -> None:
    job = Job(config("solver=exact", "l1_alpha=1e-3"), store)
    found = ReportStage(job).pull().json(RESULTS_FILE)
    assert (found["schema"], found["saelink"]) == (SCHEMA, __version__)
    evaluation, verdicts = EvaluateStage(job).pull(), verdicts_of(job)
    assert found["figures"][evaluation.key]["metrics"] == evaluation.json("metrics.json")
    assert verdicts is not None and found["figures"][verdicts.key]["figures"] == verdicts.json("figures.json")
    stages = {each["stage"] for each in found["artifacts"].values()}
    assert {"model", "tokens", "cache", "encode", "train", "evaluate", "verdicts", "effects"} <= stages
    for key, each in found["artifacts"].items():
        artifact = store.get(key)
        assert each["recipe"] == artifact.recipe and each["inputs"] == artifact.manifest["inputs"]
        assert each["packages"] == artifact.manifest["provenance"]["packages"]
        known = {other.key for other in store.artifacts()}
        assert {given for given in each["inputs"].values() if given in known} <= set(found["artifacts"])


def test_a_result_is_cited_with_what_made_it(config: Callable[..., Config], store: Store) -> None:
    evaluation = EvaluateStage(Job(config("solver=exact", "l1_alpha=1e-2"), store)).pull()
    text = citation(store, evaluation.key[:8])
    assert text.count("@") == 2 and f"version = {{{__version__}}}" in text
    assert f"evaluate {evaluation.key}" in text and f"from train {evaluation.manifest['inputs']['connector']}" in text
    assert str(store.root) not in text
    with pytest.raises(SaelinkError, match="no artifact has a key"):
        citation(store, "ffffffffffff")
