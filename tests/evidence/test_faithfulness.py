"""Faithfulness, CPR and CMD by hand, and of a graph whose edges are taken away in the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.evidence.evaluate import EvaluateStage
from saelink.evidence.faithfulness import area, areas, faithfulness
from saelink.experiments import EXPERIMENTS
from saelink.experiments.tables import rows_of
from saelink.job import Job
from saelink.store.store import Store

Compose = Callable[..., Config]


def test_areas_by_hand() -> None:
    f = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    found = areas([0.01, 0.1, 1.0], f, f.expand(5, -1))
    assert found["cpr"] == pytest.approx((0.045 + 0.9) / 0.99) and found["cmd"] == pytest.approx(0.045 / 0.99)
    assert found["cpr_log"] == pytest.approx(0.75) and found["cmd_log"] == pytest.approx(0.25)
    assert found["cpr_low"] == found["cpr"] == found["cpr_high"]
    above = areas([0.1, 1.0], f[1:] + 0.5, (f[1:] + 0.5)[None])
    assert above["cpr"] == pytest.approx(1.5) and above["cmd"] == pytest.approx(0.5), (
        "too much is no better than too little"
    )
    assert area(torch.tensor([1.0]), torch.tensor([0.3])) == pytest.approx(0.3)


def test_faithfulness_by_hand() -> None:
    document = torch.tensor([[0, 0, 0], [1, 1, 1]])
    losses = {name: torch.full((2, 2), value) for name, value in (("clean", 1.0), ("zero", 3.0))}
    losses["some"] = torch.tensor([[1.5, 1.5], [2.5, 2.5]])
    f, again = faithfulness(losses, ["clean", "some", "zero"], document, 300)
    assert f.tolist() == pytest.approx([1, 0.5, 0])
    assert again.min(0).values.tolist() == pytest.approx([1, 0.25, 0])
    assert again.max(0).values.tolist() == pytest.approx([1, 0.75, 0])


def test_all_edges_are_the_connector_and_their_complement_nothing(config: Compose, store: Store) -> None:
    small = ["eval.ce_tokens=256", "experiment.faithfulness.tokens=256", "eval.bootstrap=50"]
    cfg = config(*small, "experiment.faithfulness.shares=[.1,1]")
    artifact = EXPERIMENTS["faithfulness"].run(Job(cfg, store))
    rows = {(row["edges of"], row["share"]): row for row in rows_of(artifact)}
    whole = EvaluateStage(Job(config(*small, "eval.ce=true", "solver=exact", "l1_alpha=8e-4"), store)).pull()
    row = rows["lasso at 8e-4", 1.0]
    assert row["n_edges"] == whole.json("metrics.json")["n_edges"]
    assert row["f"] == pytest.approx(whole.json("ce.json")["connector"]["recovered"], abs=1e-4)
    nothing = {row["complement"] for (_, share), row in rows.items() if share == 1.0}
    assert max(nothing) - min(nothing) < 1e-4, "without any edge all graphs predict the same"
    facts: Any = artifact.facts
    assert set(facts["faithfulness"]) == {"lasso at 8e-4", "causal", "measured effects"}
    assert facts["faithfulness"]["causal"]["cpr_low"] <= facts["faithfulness"]["causal"]["cpr"]


@pytest.mark.parametrize("word", ["shares=[]", "shares=[0,1]", "shares=[2]", "tokens=0"])
def test_mistakes(config: Compose, word: str) -> None:
    experiment: Any = config(f"experiment.faithfulness.{word}").experiment
    with pytest.raises(SaelinkError, match=f"experiment.faithfulness.{word.split('=')[0]}="):
        EXPERIMENTS["faithfulness"].check(experiment.faithfulness)
