"""Reading SAEs, against sae-lens where it is installed; training one; its quality figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saelink.activations.cache import act_shards, cache_hooks, shuffled_rows
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.latents.encode import EncodeStage
from saelink.saes.choice import sae_choice
from saelink.saes.formats import read_sae
from saelink.saes.sae import SAE, active_entries
from saelink.saes.training import SAEStage
from saelink.store.store import Store

from helpers.world import World, write_sae

HOOK = "blocks.1.hook_mlp_out"


def noisy(folder: Path) -> None:
    """Give every weight of an SAE folder a random value, biases and decoder norms included."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "sae_weights.safetensors")
    generator = torch.Generator().manual_seed(3)
    for name, tensor in tensors.items():
        tensors[name] = tensor + 0.2 * torch.randn(tensor.shape, generator=generator)
    save_file(tensors, folder / "sae_weights.safetensors")


ARCHITECTURES = [
    {"architecture": "topk"},
    {"architecture": "topk", "rescale_acts_by_decoder_norm": True},
    {"architecture": "topk", "apply_b_dec_to_input": False},
    {"architecture": "jumprelu"},
    {"architecture": "standard"},
]


@pytest.mark.parametrize("config", ARCHITECTURES, ids=lambda config: "-".join(map(str, config.values())))
def test_encoding_equals_sae_lens(tmp_path: Path, config: dict[str, Any]) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    folder = write_sae(tmp_path / "sae", **config)
    noisy(folder)
    theirs, ours = sae_lens.SAE.load_from_disk(folder), read_sae(folder, "sae.path")
    x = torch.randn(200, 32, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = theirs.encode(x)
        assert torch.allclose(ours.encode(x), expected, atol=1e-5)
        assert torch.allclose(ours.decode(ours.encode(x)), theirs.decode(expected), atol=1e-4)
        assert (expected != 0).any()


def test_topk_has_k_active_latents_in_ascending_order(tmp_path: Path) -> None:
    sae = read_sae(write_sae(tmp_path / "sae", k=4), "sae.path")
    row, latent, value = sae.encode_sparse(torch.randn(50, 32))
    assert (torch.bincount(row, minlength=50) <= 4).all() and (value > 0).all()
    order = row * sae.d_sae + latent
    assert torch.equal(order, order.sort().values)


BROKEN = {
    "no weights": lambda folder: (folder / "sae_weights.safetensors").unlink(),
    "truncated": lambda folder: (folder / "sae_weights.safetensors").write_bytes(b"1234"),
    "no JSON": lambda folder: (folder / "cfg.json").write_text("{"),
    "unknown architecture": lambda folder: (folder / "cfg.json").write_text('{"architecture": "temporal"}'),
    "normalisation": lambda folder: (folder / "cfg.json").write_text(
        '{"normalize_activations": "covariance_whitening"}'
    ),
    "older topk": lambda folder: (folder / "cfg.json").write_text('{"activation_fn_str": "topk"}'),
    "k": lambda folder: (folder / "cfg.json").write_text('{"architecture": "topk"}'),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_sae_gets_one_line(tmp_path: Path, how: str) -> None:
    folder = write_sae(tmp_path / "sae")
    BROKEN[how](folder)
    with pytest.raises(SaelinkError, match=r"sae\.path: ") as error:
        read_sae(folder, "sae.path")
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_the_choice_follows_the_files_and_not_their_names(
    config: Callable[..., Config], store: Store, tmp_path: Path
) -> None:
    one = write_sae(tmp_path / "one" / HOOK)
    write_sae(tmp_path / "two" / HOOK)
    key = sae_choice(config(f"sae.path={tmp_path}/one"), store, HOOK).key
    assert sae_choice(config(f"sae.path={tmp_path}/two"), store, HOOK).key == key
    noisy(one)
    assert sae_choice(config(f"sae.path={tmp_path}/one"), store, HOOK).key != key


def test_quality_figures_are_those_of_the_dense_computation(
    config: Callable[..., Config], store: Store, world: World
) -> None:
    cfg = config()
    facts = EncodeStage(cfg, store, HOOK).pull().facts
    sae = read_sae(world.folder / "saes" / HOOK, "sae.path")
    acts = cache_hooks(cfg, store, [HOOK])[HOOK]
    x = torch.cat([shard[:, 1:].reshape(-1, 32) for _, shard in act_shards(acts, ["test"])]).float()
    latents = sae.encode(x)
    latents = latents.bfloat16().float()  # as they are stored

    def fvu(rows: torch.Tensor) -> float:
        error = (sae.decode(latents[rows]) - x[rows]).double().square().sum()
        return (error / (x[rows].double() - x[rows].double().mean(0)).square().sum()).item()

    typical = x.norm(dim=1) <= 3 * facts["median_norm"]
    assert facts["fvu"] == pytest.approx(fvu(torch.ones(len(x), dtype=torch.bool)), rel=1e-4)
    assert facts["fvu_typical"] == pytest.approx(fvu(typical), rel=1e-4)
    assert facts["l0"] == pytest.approx((latents != 0).sum(1).float().mean().item(), rel=1e-6)
    train = torch.cat([shard.reshape(-1, 32) for _, shard in act_shards(acts, ["train"])]).float()
    assert facts["dead"] == int((sae.encode(train).sum(0) == 0).sum())
    assert facts["median_norm"] == pytest.approx(train.norm(dim=1).median().item(), rel=1e-6)


def test_shuffled_rows_give_every_training_row_once_a_pass(config: Callable[..., Config], store: Store) -> None:
    cfg = config()
    acts = cache_hooks(cfg, store, [HOOK])[HOOK]
    rows = torch.cat([shard[:, 1:].reshape(-1, 32) for _, shard in act_shards(acts, ["train"])]).float()
    options: dict[str, Any] = {"batch": 7, "total": len(rows), "drop_positions": 1, "max_norm": None, "seed": 0}
    seen = torch.cat(list(shuffled_rows(acts, **options, shards_in_memory=1)))
    assert len(seen) == len(rows) // 7 * 7
    sums = seen.double().sum(1).sort().values
    whole = rows.double().sum(1).sort().values
    assert torch.isin(sums, whole).all() and sums.unique().shape[0] > 0.9 * whole.unique().shape[0]
    again = torch.cat(list(shuffled_rows(acts, **options, shards_in_memory=1)))
    assert torch.equal(seen, again)
    limited = torch.cat(list(shuffled_rows(acts, **{**options, "max_norm": rows.norm(dim=1).median().item()})))
    assert limited.norm(dim=1).max() <= rows.norm(dim=1).median() + 1e-3


def test_training_an_sae_is_deterministic_and_beats_its_start(
    config: Callable[..., Config], store: Store, tmp_path: Path, world: World
) -> None:
    pytest.importorskip("sae_lens")
    overrides = ["sae=train", "sae.path=null", "sae.d_sae=64", "sae.k=8", "sae.batch_tokens=128", "sae.epochs=10"]
    cfg = config(*overrides)
    artifact = SAEStage(cfg, store, HOOK).pull()
    assert json.loads(artifact.file("cfg.json").read_text())["architecture"] == "topk"
    sae: SAE = read_sae(artifact.path, "sae.path")
    assert (sae.d_in, sae.d_sae, sae.k) == (32, 64, 8)
    assert EncodeStage(cfg, store, HOOK).pull().facts["fvu"] < 0.5
    other = Store(tmp_path / "other")
    twin = SAEStage(world.config(other.root, *overrides), other, HOOK).pull()
    name = "sae_weights.safetensors"
    assert twin.key == artifact.key and twin.file(name).read_bytes() == artifact.file(name).read_bytes()


# --------------------------------------------------------------------------- what is active


@pytest.mark.parametrize("d", [1, 5, 70, 700, 2304])
@pytest.mark.parametrize("k", [1, 4, 32, 100])
@pytest.mark.parametrize("kind", ["normal", "tied", "negative", "few"])
def test_the_active_latents_are_those_of_topk(d: int, k: int, kind: str) -> None:
    """The k largest above zero, ascending by latent; of ties at the k-th value the lower latents."""
    k = min(k, d)
    pre = torch.randn(300, d, generator=torch.Generator().manual_seed(d + k))
    pre = {"normal": pre, "tied": (pre * 2).round(), "negative": -pre.abs(), "few": pre - 2.5}[kind]
    row, latent, value = active_entries(pre, k, None)
    order = pre.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(1).values
    expected = torch.zeros_like(pre).scatter(1, order, pre.gather(1, order)).clamp(min=0)
    found = torch.zeros_like(pre)
    found[row, latent] = value
    assert torch.equal(found, expected) and (value > 0).all()
    assert ((row.diff() > 0) | ((row.diff() == 0) & (latent.diff() > 0))).all()


@pytest.mark.parametrize("threshold", [None, "random"])
def test_the_active_latents_above_a_threshold(threshold: str | None) -> None:
    pre = torch.randn(300, 70, generator=torch.Generator().manual_seed(0))
    least = torch.zeros(70) if threshold is None else torch.randn(70, generator=torch.Generator().manual_seed(1))
    row, latent, value = active_entries(pre, None, None if threshold is None else least)
    expected = (pre > least.clamp(min=0)).nonzero(as_tuple=True)
    assert torch.equal(row, expected[0]) and torch.equal(latent, expected[1]) and torch.equal(value, pre[expected])
