"""Divergence and top-1 agreement against the plain model's logits, and their intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from saelink.config.schema import Config
from saelink.evidence.evaluate import EvaluateStage
from saelink.interventions.cross_entropy import BaselinesStage, baseline_predictions, compared_figures
from saelink.interventions.predictions import Predictions, divergence, prediction_figures
from saelink.interventions.splice import spliced_tokens
from saelink.job import Job
from saelink.store.store import Store

from helpers.world import Run

Compose = Callable[..., Config]


def plain_logits(cfg: Config, ids: torch.Tensor, counts: torch.Tensor | None) -> torch.Tensor:
    """Of the Hugging Face model, the MLP's output in block 1 zero where `counts`."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(cfg.model.path, dtype=torch.float32, attn_implementation="eager")
    if counts is not None:
        where = counts[..., None]
        model.model.layers[1].mlp.register_forward_hook(lambda module, inputs, out: torch.where(where, 0.0, out))
    with torch.no_grad():
        return model(ids).logits[:, :-1].double()


def test_they_are_those_of_the_plain_model(config: Compose, store: Store) -> None:
    cfg = config("eval.ce_tokens=320")
    found = baseline_predictions(BaselinesStage(Job(cfg, store)).pull())
    test = spliced_tokens(Job(cfg, store), 320)
    clean, zero = plain_logits(cfg, test.ids, None), plain_logits(cfg, test.ids, test.counts)
    p, q = torch.distributions.Categorical(logits=clean), torch.distributions.Categorical(logits=zero)
    expected = torch.distributions.kl_divergence(p, q)
    assert torch.allclose(found["zero"].kl.double(), expected, atol=1e-4) and expected.mean() > 1e-3
    assert torch.equal(found["zero"].same.bool(), clean.argmax(-1) == zero.argmax(-1))
    assert found["clean"].kl.abs().max() == 0 and found["clean"].same.min() == 1


def test_divergence_is_never_below_zero() -> None:
    logits = torch.randn(20, 500)
    assert (divergence(logits, logits + 1e-7 * torch.randn(20, 500)) >= 0).all()
    assert torch.allclose(divergence(logits, logits + 3), torch.zeros(20), atol=1e-5), "a shift of all logits is none"


def test_figures_by_hand() -> None:
    document = torch.tensor([[0, 0, 0], [1, 1, 1]])
    kl, same = torch.tensor([[0.5, 0.5], [1.5, 1.5]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    found = prediction_figures({"connector": Predictions(kl, kl, same)}, document, 400)["connector"]
    assert found["kl"] == 1 and found["kl_low"] == 0.5 and found["kl_high"] == 1.5
    assert found["top1"] == 0.75 and found["top1_low"] == 0.5 and found["top1_high"] == 1


def test_an_evaluation_says_them(config: Compose, store: Store) -> None:
    cfg = config("eval.ce=true", "eval.ce_tokens=320", "solver=exact")
    job = Job(cfg, store)
    evaluation = EvaluateStage(job).pull()
    figures, metrics = evaluation.json("ce.json"), evaluation.json("metrics.json")
    baselines = baseline_predictions(BaselinesStage(job).pull())
    expected = compared_figures(baselines, spliced_tokens(job, 320).document, cfg.eval.bootstrap)
    for name, entry in figures.items():
        assert entry["kl_low"] <= entry["kl"] <= entry["kl_high"] and entry["top1_low"] <= entry["top1"], name
        if name in expected:
            assert entry == pytest.approx(expected[name])
    assert metrics["ce_kl"] == figures["connector"]["kl"] and metrics["ce_top1"] == figures["connector"]["top1"]
    assert figures["clean"]["kl"] == 0 and figures["clean"]["top1"] == 1 and figures["zero"]["kl"] > 0


def test_evaluate_prints_them(saelink: Run) -> None:
    code, out, err = saelink("evaluate", "solver=exact", "eval.ce=true", "eval.ce_tokens=320", "eval.verify=false")
    assert code == 0, err
    table = out[out.index("  Cross-entropy") :].splitlines()[:10]
    assert "KL" in table[1] and "top-1" in table[1], table
