"""Where the null of permuted decoders saturates, and why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from saelink.evidence.saturation import reason, saturated
from saelink.evidence.verify import VerifyStage
from saelink.job import Job
from saelink.store.store import Store

from helpers.world import Run, World, write_sae


def test_what_counts_as_saturated() -> None:
    def of(own: float | None, null: float | None) -> bool:
        return saturated({"precision_1x": own}, {"precision_1x": null})

    assert of(0.97, 0.97) and of(0.8, 0.4) and not of(0.8, 0.39)
    assert not of(0.1, 0.1), "a graph that claims nothing right has nothing to be compared with"
    assert not of(None, 0.9) and not of(0.9, None)


def test_the_reason_is_the_one_that_is_measured() -> None:
    assert "cosine 0.80" in reason({"cosine": 0.8, "step": 0.1}) and "norm" not in reason({"cosine": 0.8, "step": 0.1})
    assert "45% of the activations' norm" in reason({"cosine": 0.1, "step": 0.45})
    assert "no known cause" in reason({"cosine": 0.1, "step": 0.1})


def alike(folder: Path) -> None:
    """Make the decoder directions of a random SAE close to one another."""
    tensors = load_file(folder / "sae_weights.safetensors")
    common = torch.nn.functional.normalize(torch.ones(1, tensors["W_dec"].shape[1]), dim=1)
    tensors["W_dec"] = torch.nn.functional.normalize(0.2 * tensors["W_dec"] + common, dim=1).contiguous()
    save_file(tensors, folder / "sae_weights.safetensors")


@pytest.mark.parametrize("close", [False, True])
def test_directions_that_are_alike_are_measured(world: World, store: Store, tmp_path: Path, close: bool) -> None:
    for seed, hook in enumerate(("blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out")):
        folder = write_sae(tmp_path / "saes" / hook, seed=seed)
        if close and not seed:
            alike(folder)
    job = Job(world.config(store.root, "solver=exact", f"sae.path={tmp_path / 'saes'}"), store)
    null = VerifyStage(job).pull().json("nulls.json")["permuted decoders"]
    assert isinstance(null["saturated"], bool) and null["step"] > 0
    assert (null["cosine"] > 0.9) == close


def test_verify_says_so(saelink: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saelink.evidence.verify.saturated", lambda own, null: True)
    code, out, err = saelink("verify", "solver=exact", "verify.stability=false", "verify.output_tokens=0")
    assert code == 0 and "permuted decoders are no null here" in " ".join(out.split()), err
