"""Verdicts on edges from moved latents."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.evidence.moved_verdicts import MovedVerdictsStage, moved_claims
from saelink.evidence.verdicts import VERDICTS_FILE, Verdicts
from saelink.fit.train import TrainStage, fitted_connector
from saelink.interventions.moved_effects import MovedEffectsStage, load_means, load_moved_effects, measured_queries
from saelink.job import Job
from saelink.latents.link import load_split
from saelink.store.store import Store

from helpers.world import Run

QUICK = ("link=ov", "layer=1", "link.kept=40", "solver=exact", "l1_alpha=1e-3", "verify.tokens_per_source=6")


def test_claims_are_what_predictions_lose(config: Callable[..., Config], store: Store) -> None:
    job = Job(config(*QUICK, "verify.tokens_per_source=1000"), store)
    connector = fitted_connector(TrainStage(job).pull())
    means = load_means(MovedEffectsStage(job).pull())
    test = load_split(job.cfg, job.sides, "test", connector.target_ids)
    latent = test.source.indices % 48
    moved = measured_queries(job).moved.dense() > 0
    for j in (0, 7, 33):
        without = test.source.values * (latent != j)
        lost = connector(test.source) - connector(
            test.source.__class__(test.source.offsets, test.source.indices, without, test.source.d)
        )
        claimed = moved_claims(connector, means)
        mine = claimed.source == j
        dense = torch.zeros(connector.d_target).index_put_((claimed.column[mine],), claimed.value[mine])
        assert torch.allclose(dense, lost[moved[:, j]].mean(0), atol=1e-5)


def test_verdicts_are_by_column(config: Callable[..., Config], store: Store) -> None:
    job = Job(config(*QUICK), store)
    verdicts = Verdicts(MovedVerdictsStage(job, nulls=False).pull())
    tensors = MovedVerdictsStage(job, nulls=False).pull().tensors(VERDICTS_FILE)
    connector = fitted_connector(TrainStage(job).pull())
    weight = connector.output_weight()
    effects = load_moved_effects(MovedEffectsStage(job).pull())
    assert len(tensors["source"]) == int((weight != 0)[:, effects.target_mean[connector.target_ids] > 0].sum())
    for source, target in zip(tensors["source"][:20].tolist(), tensors["target"][:20].tolist(), strict=True):
        found = verdicts.of(source, target)
        assert found is not None
        assert found[1] == pytest.approx((effects.dense()[source % 48, target] / effects.target_mean[target]).item())


def test_verify_prints_them(saelink: Run) -> None:
    code, out, err = saelink("verify", *QUICK)
    assert code == 0, err
    assert "With pattern and norms held" in out and "shuffled positions" in out and "precision" in out


def test_connectors_that_are_not_linear_are_refused(config: Callable[..., Config], store: Store) -> None:
    with pytest.raises(SaelinkError, match="only linear ones are judged"):
        MovedVerdictsStage(Job(config("link=ov", "connector=mlp"), store))
