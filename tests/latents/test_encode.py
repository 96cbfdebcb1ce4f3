"""What the stage `encode` says of its latents, and what names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from saelink.activations.cache import CacheStage, act_shards
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
    acts = CacheStage(config(), store, HOOK).pull()
    cached = torch.cat(
        [shard.reshape(-1, shard.shape[-1]).float().norm(dim=1) for _, shard in act_shards(acts, ["train"])]
    )
    assert torch.allclose(norms.flatten(), cached, rtol=1e-2)


def test_a_latent_that_fires_once_is_not_dead(config: Callable[..., Config], store: Store, tmp_path: Path) -> None:
    """All latents of an SAE but one read nothing, and that one passes its threshold on a single training token."""
    folder = write_sae(tmp_path / "saes" / HOOK, architecture="jumprelu")
    acts = CacheStage(config(), store, HOOK).pull()
    rows = torch.cat([shard.flatten(0, 1).float() for _, shard in act_shards(acts, ["train"])])
    weights = load_file(folder / "sae_weights.safetensors")
    along = rows @ weights["W_enc"][:, 0]
    first, second = along.sort(descending=True).values[:2].tolist()
    assert first > second > 0
    weights["W_enc"][:, 1:] = 0
    weights["b_enc"][:] = 0
    weights["b_dec"][:] = 0
    weights["threshold"][:] = (first + second) / 2
    save_file(weights, folder / "sae_weights.safetensors")
    words = [f"sae.path={tmp_path}/saes", "data.drop_positions=0", "sae.check=false"]
    facts = EncodeStage(config(*words), store, HOOK).pull().facts
    assert sum(facts["active_count"]) == 1 and facts["dead"] == facts["d_sae"] - 1


def test_what_changes_the_latents_changes_the_key(config: Callable[..., Config], store: Store, tmp_path: Path) -> None:
    write_sae(tmp_path / "saes" / HOOK, seed=99)
    settings = [
        [], ["sae.dtype=bfloat16"], [f"sae.path={tmp_path}/saes"], ["data.context_size=8"], ["data.max_tokens=3000"],
    ]  # fmt: skip
    keys = [EncodeStage(config(*words), store, HOOK).key for words in settings]
    keys.append(EncodeStage(config(), store, "blocks.0.hook_mlp_out").key)
    assert len(set(keys)) == len(keys)
    assert EncodeStage(config("runtime.forward_tokens=256", "layer=0"), store, HOOK).key == keys[0]
