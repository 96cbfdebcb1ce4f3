"""What is kept of every latent, against all of its activations laid out in full."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from saelink.activations.tokens import SPLITS, TokensStage
from saelink.latents.encode import EncodeStage
from saelink.latents.examples import OCTAVES, Examples, ExamplesFacts, ExamplesStage, load_examples
from saelink.latents.split import latent_shards
from saelink.latents.top_tokens import SLOTS, TopTokens, TopTokensStage, load_top_tokens
from saelink.store.store import Store

from helpers.world import World

HOOK = "blocks.1.hook_mlp_out"


Activation = tuple[int, float, int]
"""Place, value, token."""


def pulled(world: World, folder: Path) -> tuple[Examples, TopTokens, ExamplesFacts, list[list[Activation]]]:
    """The examples, top tokens, facts, and for every latent (place, value, token) of all activations that count."""
    store = Store(folder)
    cfg = world.config(store.root, "report.top=5", "report.per_size=2", "report.random=4")
    latents, text = EncodeStage(cfg, store, HOOK).pull(), TokensStage(cfg, store).pull()
    artifact = ExamplesStage(cfg, store, HOOK).pull()
    assert ExamplesStage(cfg, store, HOOK).pull().key == artifact.key
    tops = TopTokensStage(cfg, store, HOOK).pull()
    assert tops.facts["n_tokens"] == artifact.facts["n_tokens"]
    ids = torch.cat([text.tensors(f"{split}.safetensors")["ids"].flatten().long() for split in SPLITS])
    everything: list[list[Activation]] = [[] for _ in range(latents.facts["d_sae"])]
    context, row = latents.facts["context_size"], 0
    for _, rows, _ in latent_shards(latents, SPLITS):
        for place, latent, value in zip(rows.row_of.tolist(), rows.indices.tolist(), rows.values.tolist(), strict=True):
            if place % context >= cfg.data.drop_positions:
                everything[latent].append((row + place, value, int(ids[row + place])))
        row += len(rows)
    assert row == len(ids)
    return load_examples(artifact), load_top_tokens(tops), artifact.facts, everything


def test_examples_are_those_of_the_whole_text(world: World, tmp_path: Path) -> None:
    found, tops, facts, everything = pulled(world, tmp_path / "one")
    context, unit = facts["context_size"], facts["unit"]
    for latent, entries in enumerate(everything):
        values = {place: value for place, value, _ in entries}
        assert found.histogram[latent].sum() == len(entries)
        bins = np.floor(4 * np.log2(np.array([value for _, value, _ in entries], np.float32) / unit)) + 2 * OCTAVES
        expected = np.bincount(bins.clip(0, 4 * OCTAVES - 1).astype(int), minlength=4 * OCTAVES)
        assert np.abs(found.histogram[latent].numpy() - expected).sum() <= 2, "rounding at a bin's edge"
        best: dict[int, tuple[float, int]] = {}
        for place, value, _ in entries:
            best[place // context] = max(best.get(place // context, (0.0, 0)), (value, -place))
        ranked = sorted(best.values(), reverse=True)[:5]
        kept = int((found.top_place[latent] >= 0).sum())
        assert kept == min(5, len(best))
        assert [-place for _, place in ranked] == found.top_place[latent, :kept].tolist()
        for places, sample in (
            (found.top_place[latent], found.top_value[latent]),
            (found.size_place[latent].flatten(), found.size_value[latent].flatten()),
            (found.any_place[latent], found.any_value[latent]),
        ):
            drawn = [(int(p), float(v)) for p, v in zip(places, sample, strict=True) if p >= 0]
            assert len({place for place, _ in drawn}) == len(drawn)
            assert all(values[place] == value for place, value in drawn)
        assert (found.any_place[latent] >= 0).sum() == min(4, len(entries))
        for octave in range(OCTAVES):
            there = int(found.histogram[latent, 4 * octave : 4 * octave + 4].sum())
            assert (found.size_place[latent, octave] >= 0).sum() == min(2, there)
        weights: dict[int, list[float]] = {}
        for _, value, token in entries:
            weights.setdefault(token, []).append(value)
        listed = [t for t in tops.token[latent].tolist() if t >= 0]
        assert set(weights) == set(listed), f"there are fewer than {SLOTS} words"
        for slot, token in enumerate(listed):
            assert tops.weight[latent, slot].item() == pytest.approx(sum(weights[token]), rel=1e-6)
            assert tops.fires[latent, slot] == len(weights[token]) <= tops.occurs[latent, slot]
        assert (tops.weight[latent].diff() <= 0).all()
        assert tops.total[latent].item() == pytest.approx(sum(value for _, value, _ in entries), rel=1e-6)


def test_examples_do_not_depend_on_the_shards(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = pulled(world, tmp_path / "one")
    monkeypatch.setattr("saelink.activations.cache.SHARD_TOKENS", 256)
    many = pulled(world, tmp_path / "many")
    for whole, parts in zip(one[:2], many[:2], strict=True):
        for name in whole._fields:
            assert torch.allclose(getattr(whole, name).double(), getattr(parts, name).double()), name


def test_heavy_tokens_survive_more_tokens_than_slots() -> None:
    """Each with more than 1/(slots + 1) of the weight is there, whatever the order."""
    from saelink.kernels.top_tokens import find_heaviest

    generator = np.random.default_rng(0)
    heavy = np.repeat([1, 2, 3], 150)
    token_of = np.concatenate([heavy, generator.integers(10, 1000, 500)])
    generator.shuffle(token_of)
    n, slots = len(token_of), 8
    token, weight = np.full((1, slots), -1), np.zeros((1, slots))
    rows = np.arange(n, dtype=np.int32)
    find_heaviest(0, 1, np.array([0, n]), rows, np.ones(n, np.float32), token_of, token, weight)
    assert {1, 2, 3} <= set(token[0].tolist())


def test_random_examples_are_uniform() -> None:
    """The share drawn from each tenth of the text, over many latents."""
    from saelink.kernels.examples import lottery

    tickets = np.array([[lottery(place, latent) for place in range(200)] for latent in range(300)])
    drawn = tickets.argmin(1)
    counts = np.bincount(drawn // 20, minlength=10)
    assert counts.sum() == 300 and (np.abs(counts - 30) < 4 * 30**0.5).all()
    assert len(np.unique(tickets)) == tickets.size
