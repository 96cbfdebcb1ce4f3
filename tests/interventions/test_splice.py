"""Splicing: against the plain model, and the figures that follow from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from saelink.config.schema import Config
from saelink.evidence.evaluate import EvaluateStage
from saelink.interventions.cross_entropy import BaselinesStage, ce_figures
from saelink.interventions.oracle import OracleStage
from saelink.interventions.splice import Splice, spliced_tokens
from saelink.job import Job
from saelink.latents.link import load_split, pull_sides
from saelink.latents.rows import Rows
from saelink.latents.split import latent_shards
from saelink.saes.formats import read_sae
from saelink.store.store import Store

from helpers.world import World

Compose = Callable[..., Config]


def plain_losses(cfg: Config, ids: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor] | None) -> Any:
    """Next-token losses of the Hugging Face model, with `change` applied to the MLP's output in block 1."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(cfg.model.path, dtype=torch.float32, attn_implementation="eager")
    block = model.gpt_neox.layers[1] if hasattr(model, "gpt_neox") else model.model.layers[1]
    if change is not None:
        block.mlp.register_forward_hook(lambda module, inputs, output: change(output))
    with torch.no_grad():
        logits = model(ids).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(
        len(ids), -1
    )


@pytest.mark.parametrize("model", ["llama", "neox"])
def test_losses_are_those_of_the_plain_model(config: Compose, store: Store, model: str) -> None:
    cfg = config("data.drop_positions=3", "eval.ce_tokens=320", model=model)
    losses = BaselinesStage(Job(cfg, store)).pull().tensors("losses.safetensors")
    test = spliced_tokens(Job(cfg, store), 320)
    assert test.ids.shape == (20, 16) and losses["clean"].shape == (20, 15)
    assert torch.equal(test.counts, (torch.arange(16) >= 3).expand(20, 16))

    def zeroed(acts: torch.Tensor) -> torch.Tensor:
        return torch.where(test.counts[..., None], 0.0, acts)

    for name, change in (("clean", None), ("zero", zeroed)):
        assert torch.allclose(losses[name], plain_losses(cfg, test.ids, change), atol=1e-4), name
    assert (losses["zero"] - losses["clean"]).abs().max() > 1e-3


def test_what_is_put_back_unchanged_changes_nothing(config: Compose, store: Store) -> None:
    cfg = config("eval.ce_tokens=320")
    test = spliced_tokens(Job(cfg, store), 320)
    with Splice(Job(cfg, store), test, 3) as splice:
        clean = splice.losses()
        nothing = splice.losses_of_change(torch.zeros(*test.ids.shape, 32))
        rebuilt = splice.losses(splice.decode(splice.true_latents()))
    assert torch.equal(clean, nothing)
    expected = BaselinesStage(Job(cfg, store)).pull().tensors("losses.safetensors")
    assert torch.equal(rebuilt, expected["sae"]) and torch.equal(clean, expected["clean"])


@pytest.mark.parametrize("model", ["llama", "neox"])
def test_the_oracle_is_the_true_mlp_between_the_saes(config: Compose, store: Store, world: World, model: str) -> None:
    from transformers import AutoModelForCausalLM

    cfg = config(model=model)
    sides = pull_sides(cfg, store)
    test = spliced_tokens(Job(cfg, store))
    made = OracleStage(Job(cfg, store)).pull()
    hooks = [side.facts["hook_name"] for side in (*sides.sources, sides.target)]
    folders = [hook if (world.folder / "saes" / hook).exists() else "blocks.1.hook_resid_pre" for hook in hooks]
    source_sae, target_sae = (read_sae(world.folder / "saes" / folder, "sae.path") for folder in folders)
    plain: Any = AutoModelForCausalLM.from_pretrained(cfg.model.path, dtype=torch.float32)
    block = plain.model.layers[1] if model == "llama" else plain.gpt_neox.layers[1]
    latents = Rows.stack([rows for _, rows, _ in latent_shards(sides.sources[0], ["test"])]).dense()
    with torch.no_grad():
        out = block.mlp(block.post_attention_layernorm(source_sae.decode(latents)))
        expected = target_sae.encode(out)
    from saelink.latents.rows import unpack

    ours = unpack(made.tensors("latents.safetensors"), 48).dense()
    kept = test.counts.flatten()
    assert torch.allclose(ours[kept], expected[kept], rtol=2e-2, atol=2e-3)
    true = load_split(cfg, sides, "test")
    error = (expected[kept] / sides.scales[-1] - true.target.dense()).square()
    assert made.facts["mse"] == pytest.approx(error.mean().item(), rel=1e-2)


@pytest.mark.parametrize("link", ["mlp", "attn", "block"])
def test_a_perfect_connector_recovers_what_the_sae_does(config: Compose, store: Store, link: str) -> None:
    """A connector's losses are between nothing and everything, and the figures say so."""
    cfg = config("eval.ce=true", "eval.ce_tokens=320", "solver=exact", "l1_alpha=0", f"link={link}")
    evaluation = EvaluateStage(Job(cfg, store)).pull()
    figures = evaluation.json("ce.json")
    assert set(figures) == {
        "clean", "sae", "connector", "connector_with_error", "oracle", "oracle_with_error", "mean", "zero",
    }  # fmt: skip
    assert figures["clean"]["recovered"] == 1 and figures["zero"]["recovered"] == 0
    assert figures["mean"]["recovered_mean"] == 0
    for entry in figures.values():
        assert entry["recovered_low"] <= entry["recovered"] <= entry["recovered_high"]
    metrics = evaluation.json("metrics.json")
    assert metrics["ce_connector"] == figures["connector"]["ce"]
    assert metrics["ce_loss_recovered"] == figures["connector"]["recovered"]


def test_figures_of_cross_entropy_by_hand() -> None:
    document = torch.tensor([[0, 0, 0], [1, 1, 1]])
    losses = {name: torch.full((2, 2), value) for name, value in (("clean", 1.0), ("zero", 3.0), ("mean", 2.0))}
    losses["connector"] = torch.tensor([[1.5, 1.5], [2.5, 2.5]])
    found = ce_figures(losses, document, 200)["connector"]
    assert found["ce"] == 2 and found["recovered"] == pytest.approx(0.5) and found["recovered_mean"] == 0
    assert found["recovered_low"] == pytest.approx(0.25) and found["recovered_high"] == pytest.approx(0.75)
    assert found["cost"] == pytest.approx(1) and (found["cost_low"], found["cost_high"]) == pytest.approx((0.5, 1.5))


def test_unexplained_latents_keep_their_true_value(config: Compose, store: Store) -> None:
    """Few explained targets cost little: the rest of the reconstruction is the SAE's."""
    sides = pull_sides(config(), store)
    tokens = load_split(config(), sides, "train")
    rates = torch.bincount(tokens.target.indices, minlength=tokens.target.d).double() / len(tokens)
    top = rates.sort().values[-2].item()
    base = ["eval.ce=true", "eval.ce_tokens=320", "solver=exact", "l1_alpha=10"]
    one = EvaluateStage(Job(config(*base, f"targets.min_rate={top}"), store)).pull().json("ce.json")
    everything = EvaluateStage(Job(config(*base), store)).pull().json("ce.json")
    away = [abs(found["connector"]["ce"] - found["sae"]["ce"]) for found in (one, everything)]
    assert 0 < away[0] < away[1]
