"""Losses with an SAE's reconstruction in its hook's place, against a model written out anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saelink.activations.tokens import TokensStage
from saelink.interventions.sae_losses import SAELossesStage
from saelink.interventions.splice import spliced_tokens
from saelink.job import Job
from saelink.saes.formats import read_sae
from saelink.store.store import Store

from helpers.gemma import WIDTH, forward, read_gguf, write_gguf
from helpers.world import World, composed, write_sae

HOOKS = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")


@pytest.mark.parametrize("hook", HOOKS)
def test_the_stream_itself_is_replaced(world: World, store: Store, tmp_path: Path, hook: str) -> None:
    whole = write_gguf(tmp_path / "model.gguf")
    full = "blocks.0.hook_resid_post" if hook == "hook_resid_pre" else f"blocks.1.{hook}"
    folder = write_sae(tmp_path / "saes" / full, d_in=WIDTH, k=8)
    base = [o for o in world.overrides(store.root) if not o.startswith(("model", "sae"))]
    settings = ["model=folder", f"model.path={tmp_path}", "model.file=model.gguf", "sae=folder", "sae.check=false"]
    link = [f"link.sources=[{hook}]", f"link.target={hook}", f"sae.path={tmp_path / 'saes'}", "eval.ce_tokens=64"]
    cfg = composed([*base, *settings, *link, "layer=1", "data.max_tokens=3000"])
    job = Job(cfg, store)
    found = SAELossesStage(job).pull().tensors("losses.safetensors")
    model, sae = read_gguf(whole), read_sae(folder, "sae.path")
    test = spliced_tokens(job, 64)
    assert torch.equal(
        test.ids, TokensStage(cfg, store).pull().tensors("test.safetensors")["ids"][: len(test.ids)].long()
    )
    place = "blocks.1.hook_resid_pre" if hook == "hook_resid_pre" else full
    for number, (ids, counts) in enumerate(zip(test.ids, test.counts, strict=True)):
        for name in ("clean", "sae", "zero"):

            def change(at: str, x: torch.Tensor, name: str = name, counts: torch.Tensor = counts) -> torch.Tensor:
                if at != place or name == "clean":
                    return x
                new = torch.zeros_like(x) if name == "zero" else sae.decode(sae.encode(x.bfloat16().float()))
                return torch.where(counts[:, None], new, x)

            logits = forward(model, ids, change)["logits"]
            expected = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
            # latents are kept in bfloat16
            assert torch.allclose(found[name][number], expected, atol=5e-2 if name == "sae" else 1e-4), name
    assert not torch.allclose(found["zero"], found["clean"], atol=0.1)
