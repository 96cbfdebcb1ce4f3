"""What the stage `encode` says of its latents, and what names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saelink.config.schema import Config
from saelink.latents.encode import EncodeStage
from saelink.latents.split import latent_shards
from saelink.store.store import Store

from helpers.world import write_sae

HOOK = "blocks.1.hook_mlp_out"


def test_its_counts_are_those_of_what_it_wrote(config: Callable[..., Config], store: Store) -> None:
    """By position, on the training split, from the dense latents."""
    artifact = EncodeStage(config(), store, HOOK).pull()
    facts = artifact.facts
    context, d = facts["context_size"], facts["d_sae"]
    shards = [
        (rows.dense().view(-1, context, d).double(), norm) for _, rows, norm in latent_shards(artifact, ["train"])
    ]
    dense, norms = torch.cat([part for part, _ in shards]), torch.cat([norm for _, norm in shards])
    assert len(dense) == facts["sequences"]["train"] and dense.sum((0, 2)).unique().numel() > context // 2
    assert facts["active_sum"] == pytest.approx(dense.sum((0, 2)).tolist())
    assert facts["active_count"] == (dense > 0).sum((0, 2)).tolist()
    assert facts["dead"] == int(((dense > 0).sum((0, 1)) == 0).sum())
    assert facts["median_norm"] == pytest.approx(norms.median().item(), rel=1e-3)


def test_what_changes_the_latents_changes_the_key(config: Callable[..., Config], store: Store, tmp_path: Path) -> None:
    write_sae(tmp_path / "saes" / HOOK, seed=99)
    settings = [
        [], ["sae.dtype=bfloat16"], [f"sae.path={tmp_path}/saes"], ["data.context_size=8"], ["data.max_tokens=3000"],
    ]  # fmt: skip
    keys = [EncodeStage(config(*words), store, HOOK).key for words in settings]
    keys.append(EncodeStage(config(), store, "blocks.0.hook_mlp_out").key)
    assert len(set(keys)) == len(keys)
    assert EncodeStage(config("runtime.forward_tokens=256", "layer=0"), store, HOOK).key == keys[0]
