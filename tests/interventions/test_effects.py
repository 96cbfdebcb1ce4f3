"""Sparse effects against a dense second implementation; parts, resuming, and the operations on pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from saelink.evidence.claims import Claims, claims
from saelink.evidence.verdicts import judged
from saelink.evidence.verify import VerifyStage
from saelink.fit.train import TrainStage, fitted_connector
from saelink.interventions import block as opened
from saelink.interventions import effects as stage
from saelink.interventions.block import FOLDS, encoded_with_floor, open_block, read_held
from saelink.interventions.effects import EffectsStage, load_effects, null_sources
from saelink.interventions.measure import (
    Ablations,
    changed,
    choose_ablations,
    effects_of_sources,
    measure_effects,
    open_measurement,
    part_of_sources,
)
from saelink.interventions.pairs import Pairs
from saelink.job import Job
from saelink.kernels.effects import subtracted_rows
from saelink.latents.link import load_split, pull_sides
from saelink.latents.rows import Rows
from saelink.progress import Observer
from saelink.saes.sae import SAE
from saelink.store.store import Store

from helpers.effects import dense_effects, pairs_of_dense, sparse_effects
from helpers.world import Run, World, write_sae


@pytest.mark.parametrize(
    ("model", "architecture", "link"),
    [
        ("llama", "topk", "mlp"), ("neox", "topk", "mlp"), ("llama", "jumprelu", "mlp"), ("llama", "standard", "mlp"),
        ("llama", "topk", "attn"), ("llama", "jumprelu", "attn"), ("llama", "topk", "block"), ("neox", "topk", "block"),
        ("llama", "topk", "resid"),
    ],
)  # fmt: skip
def test_they_are_those_kept_densely(
    world: World, tmp_path: Path, model: str, architecture: str, link: str
) -> None:  # fmt: skip
    words = [f"link={link}", "verify.tokens_per_source=40"]
    if architecture != "topk":
        hooks = {"mlp": ("hook_resid_mid", "hook_mlp_out"), "attn": ("hook_resid_pre", "hook_attn_out")}[link]
        for seed, hook in enumerate(hooks):
            write_sae(tmp_path / "saes" / f"blocks.1.{hook}", seed=seed, architecture=architecture)
        words.append(f"sae.path={tmp_path / 'saes'}")
    cfg = world.config(tmp_path / "outputs", *words, model=model)
    job = Job(cfg, Store(tmp_path / "outputs"))
    with torch.inference_mode():
        given = open_measurement(open_block(job, "test"), 40, job.sides.scales)
        expected = dense_effects(given)
        found = measure_effects(given, Observer(), step=10)
    assert torch.allclose(found.dense().double(), expected.mean, atol=1e-6)
    n = 0
    for pairs in found.pairs():
        sums = expected.folds[:, pairs.source_of, pairs.target.long()].T
        assert torch.allclose(pairs.folds().double(), sums, rtol=1e-3, atol=1e-4)
        assert bool((pairs.target.diff()[_inside(pairs)] > 0).all())
        n += len(pairs.target)
    assert n <= expected.mean.numel() and n >= int((expected.mean != 0).sum())
    everything = load_effects(EffectsStage(job).pull())
    assert torch.equal(everything.tokens, found.tokens) and torch.equal(everything.target_mean, found.target_mean)
    assert torch.allclose(everything.dense(), found.dense(), atol=1e-6)


def _inside(pairs: Pairs) -> torch.Tensor:
    """[pairs - 1] whether a pair and the next are of one source."""
    return pairs.source_of.diff() == 0


def test_the_planned_sources_of_a_part_depend_on_the_recipe_alone() -> None:
    assert part_of_sources(2304, 256 * 64) == 1024 and part_of_sources(500, 256 * 64) == 500
    assert part_of_sources(32_768, 256 * 32_768) == 16, "an SAE that is never silent"


# --------------------------------------------------------------------------- parts


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix == ".safetensors"}


@pytest.mark.parametrize(("link", "split"), [("mlp", "train"), ("attn", "test")])
def test_a_try_that_was_cut_short_goes_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: str, split: str
) -> None:
    monkeypatch.setattr("saelink.interventions.measure.MOST_SOURCES", 16)

    def job(name: str) -> Job:
        store = Store(tmp_path / name)
        return Job(world.config(store.root, f"link={link}", "verify.tokens_per_source=30"), store)

    whole = EffectsStage(job("whole"), split).pull()
    measured = stage.effects_of_sources
    lows: list[int] = []

    def stumbling(given: Any, low: int, high: int, *rest: Any) -> Any:
        if len(lows) == 1:
            lows.append(-1)
            raise KeyboardInterrupt
        lows.append(low)
        return measured(given, low, high, *rest)

    monkeypatch.setattr("saelink.interventions.effects.effects_of_sources", stumbling)
    with pytest.raises(KeyboardInterrupt):
        EffectsStage(job("again"), split).pull()
    again = EffectsStage(job("again"), split).pull()
    assert lows == [0, -1, 16, 32], "the first part is not measured anew"
    assert contents(whole.path) == contents(again.path) and len(contents(whole.path)) >= 4
    assert whole.facts == again.facts


def test_memory_at_hand_changes_no_byte(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name, free, threads in (("much", None, 1), ("little", 900_000_000, 2)):
        monkeypatch.setattr("saelink.runtime.memory_available", lambda free=free: free)
        store = Store(tmp_path / name)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        found.append(contents(EffectsStage(Job(world.config(store.root), store)).pull().path))
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_each_part_is_the_same_in_whatever_order_parts_are_made(world: World, store: Store) -> None:
    job = Job(world.config(store.root), store)
    with torch.inference_mode():
        given = open_measurement(open_block(job, "test"), 50, job.sides.scales)
        late = [effects_of_sources(given, low, low + 16).pairs for low in (32, 16, 0)][::-1]
        early = [effects_of_sources(given, low, low + 16).pairs for low in (0, 16, 32)]
    for one, other in zip(early, late, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --------------------------------------------------------------------------- nulls on a sample


def test_nulls_are_measured_on_the_sources_that_are_asked_for(world: World, store: Store) -> None:
    words = ["solver=exact", "verify.tokens_per_source=100000"]
    some, every = (Job(world.config(store.root, *words, *more), store) for more in (["verify.null_sources=20"], []))
    chosen = null_sources(some.cfg, 48)
    assert len(chosen) == 20 and torch.equal(chosen, chosen.unique()) and len(null_sources(every.cfg, 48)) == 48
    sampled, whole = (EffectsStage(job, null="permuted decoders").pull() for job in (some, every))
    assert sampled.key != whole.key and sampled.facts["sources"] == 20 and whole.facts["sources"] == 48
    assert EffectsStage(some).key == EffectsStage(every).key, "the effects themselves are of all"
    few, all_of_them = load_effects(sampled), load_effects(whole)
    assert torch.allclose(few.dense()[chosen], all_of_them.dense()[chosen], atol=1e-6)
    others = torch.ones(48, dtype=torch.bool).index_fill_(0, chosen, False)
    assert not few.tokens[:, others].any() and not few.dense()[others].any()
    nulls = VerifyStage(some).pull().json("nulls.json")
    assert nulls["permuted decoders"]["sources_ablated"] == 20 and nulls["shuffled pairs"]["sources_ablated"] == 48
    assert 0 < nulls["permuted decoders"]["sources_judged"] <= 20


def test_a_tenth_of_many_sources(world: World, store: Store) -> None:
    cfg = world.config(store.root)
    assert [len(null_sources(cfg, d)) for d in (48, 4096, 16_384, 32_768, 131_072)] == [48, 4096, 2048, 3276, 13_107]


def test_the_sample_is_said(saelink: Run) -> None:
    words = ["solver=exact", "verify.null_sources=10", "verify.stability_targets=12"]
    code, out, err = saelink("verify", *words)
    assert code == 0, err
    assert "(nulls measured on 10 of 48 sources)" in out and "(edges into 12 of " in out
    assert "10 of 48 sources" in out[: out.index("strong effects")], "before they are measured"


@pytest.mark.parametrize("word", ["null_sources", "stability_targets"])
def test_samples_of_none(saelink: Run, word: str) -> None:
    code, _, err = saelink("verify", "solver=exact", f"verify.{word}=0")
    assert code == 1 and err.strip() == f"saelink: verify.{word}=0 must be at least 1"


# --------------------------------------------------------------------------- the kernels, and what is done with pairs


@st.composite
def changes(draw: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pre-activations, their tokens, what was there before, and the thresholds; sizes on both sides of a block's."""
    seed, d, rows = draw(st.integers(0, 10**6)), draw(st.sampled_from([1, 5, 63, 64, 65, 200])), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(seed)
    before = torch.relu(torch.randn(4, d, generator=generator) - draw(st.floats(-1, 2)))
    pre = torch.randn(rows, d, generator=generator)
    token = torch.randint(0, 4, (rows,), generator=generator)
    pre[::2] = before[token][::2]  # where nothing happens
    return pre, token, before, 0.5 * torch.rand(rows, generator=generator), 0.4 * torch.rand(d, generator=generator)


@settings(max_examples=60, deadline=None)
@drawn(changes())
def test_changes_are_before_less_after(case: tuple[torch.Tensor, ...]) -> None:
    pre, token, before, by_token, by_latent = case
    after = read_held(pre, by_token, by_latent)
    rows = Rows.from_dense(before)
    found = changed(pre, token, rows, by_token, by_latent)
    dense = Rows(found.offsets, found.indices.long(), found.values, found.d).dense()
    assert torch.equal(dense, before[token] - after)
    assert not (found.values == 0).any()
    sparse = Rows.from_dense(after)  # what a GPU gives
    arrays = [
        t.numpy()
        for t in (token, rows.offsets, rows.indices, rows.values, sparse.offsets, sparse.indices, sparse.values)
    ]
    counts, indices, values = subtracted_rows(0, len(token), *arrays)
    assert np.array_equal(counts, found.offsets.diff()) and np.array_equal(indices, found.indices)
    assert np.array_equal(values, found.values)


@st.composite
def graphs(draw: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[n, d] means, [FOLDS, n, d] sums of a few pairs, and a choice of targets."""
    n, d, seed = draw(st.integers(1, 7)), draw(st.integers(1, 9)), draw(st.integers(0, 10**6))
    generator = torch.Generator().manual_seed(seed)
    there = torch.rand(FOLDS, n, d, generator=generator) < draw(st.floats(0, 0.6))
    folds = (torch.randint(-8, 8, (FOLDS, n, d), generator=generator) / 4) * there
    chosen = torch.rand(d, generator=generator) < 0.6
    return folds.sum(0) / 16, folds, chosen.nonzero().squeeze(1)


@settings(max_examples=80, deadline=None)
@drawn(graphs(), st.integers(1, 3))
def test_operations_on_pairs_are_those_on_matrices(
    case: tuple[torch.Tensor, torch.Tensor, torch.Tensor], parts: int
) -> None:  # fmt: skip
    mean, folds, ids = case
    n, d = mean.shape
    pairs = pairs_of_dense(torch.arange(n), mean, folds)
    assert torch.equal(pairs.folds().T, folds[:, pairs.source_of, pairs.target.long()])
    halves = folds[::2].sum(0), folds[1::2].sum(0)
    consistent = torch.zeros(n, d, dtype=torch.bool)
    consistent[pairs.source_of, pairs.target.long()] = pairs.consistent()
    assert torch.equal(consistent, halves[0] * halves[1] > 0)
    measured = sparse_effects(
        mean, folds, torch.full((FOLDS, n), 2), torch.ones(n), torch.ones(n), torch.ones(d), parts
    )  # fmt: skip
    assert torch.equal(measured.dense(), mean)
    explained = measured.explain(ids)
    assert torch.equal(explained.dense(), mean[:, ids]) and explained.d_target == len(ids)
    for part, whole in zip(explained.pairs(), measured.pairs(), strict=True):
        assert torch.equal(part.folds(), whole.folds()[torch.isin(whole.target.long(), ids)])
    groups = torch.arange(FOLDS) % 3 == 0
    assert torch.allclose(measured.on(groups).dense(), folds[groups].sum(0) / (2 * int(groups.sum())))


def test_tokens_of_a_source_are_spread() -> None:
    generator = torch.Generator().manual_seed(1)
    active = torch.rand(500, 6, generator=generator) < torch.tensor([0.0, 0.01, 0.1, 0.3, 0.6, 1.0])
    rows = Rows.from_dense(active.float())
    chosen = choose_ablations(rows.transposed(), torch.arange(500) % FOLDS, 40)
    for source in range(6):
        mine = chosen.token[chosen.source == source]
        n = int(active[:, source].sum())
        assert len(mine) == min(n, 40) == len(mine.unique()) and active[mine, source].all()
        if n > 200:
            assert (torch.bincount(mine // 50, minlength=10) >= 3).all()
    key = chosen.source * FOLDS + chosen.fold
    assert (key.diff() >= 0).all()


@settings(max_examples=40, deadline=None)
@drawn(st.integers(0, 10**6), st.integers(1, 40))
def test_ablations_of_some_sources_are_those_among_all(seed: int, most: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = Rows.from_dense((torch.rand(60, 7, generator=generator) < 0.4).float()).transposed()
    fold = torch.arange(60) % FOLDS
    everything, some = choose_ablations(rows, fold, most), torch.tensor([1, 4, 5])
    found = choose_ablations(rows, fold, most, some)
    kept = torch.isin(everything.source, some)
    assert all(torch.equal(a[kept], b) for a, b in zip(everything, found, strict=True))
    assert isinstance(found, Ablations)


@pytest.mark.parametrize("entries", [2**24, 100])
def test_the_floor_is_the_middle_between_the_kth_and_the_next(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "ENTRIES", entries)
    generator = torch.Generator().manual_seed(0)
    sae = SAE(torch.randn(6, 20, generator=generator), torch.zeros(20), torch.randn(20, 6), torch.zeros(6), k=4)
    x = torch.randn(300, 6, generator=generator)
    x[:5] = 0  # nothing is active
    rows, floor = encoded_with_floor(sae, x)
    assert torch.allclose(rows.dense(), sae.encode(x))
    best = sae.pre_acts(x).topk(5).values.clamp(min=0)
    expected = torch.where(best[:, 3] > 0, best[:, 3:].mean(1), 0.0)
    assert torch.allclose(floor, expected, atol=1e-6)
    few = SAE(sae.W_enc, torch.full((20,), -4.0), sae.W_dec, sae.b_dec, k=4)
    rows, floor = encoded_with_floor(few, x)
    assert torch.allclose(rows.dense(), few.encode(x)) and int(rows.offsets.diff().min()) == 0


def test_ties_at_the_kth_value_go_to_the_lower_latents() -> None:
    sae = SAE(torch.eye(5), torch.zeros(5), torch.eye(5), torch.zeros(5), k=2)
    rows, floor = encoded_with_floor(sae, torch.tensor([[1.0, 3.0, 1.0, 1.0, 0.0]]))
    assert rows.indices.tolist() == [0, 1] and floor.item() == 1


# --------------------------------------------------------------------------- claims on the sparse form


def test_no_claims_and_no_effects_are_figures_too() -> None:
    nothing = Claims(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    measured = sparse_effects(
        torch.zeros(5, 3), torch.zeros(FOLDS, 5, 3), torch.full((FOLDS, 5), 9), torch.ones(5), torch.ones(5),
        torch.tensor([1.0, 0.0, 1.0]),
    )  # fmt: skip
    figures, tensors = judged(nothing, measured, torch.arange(3), 0.1)
    assert figures["edges"] == figures["strong"] == figures["missed"] == 0 and len(tensors["target"]) == 0
    figures, _ = judged(nothing, measured, torch.tensor([1]), 0.1)
    assert figures["edges"] == 0, "no living target at all"


def test_claims_are_looked_at_in_blocks_of_sources(
    world: World, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    cfg = world.config(store.root, "connector=nonlinear", "solver.tokens=4096")
    fitted = fitted_connector(TrainStage(Job(cfg, store)).pull())
    test = load_split(cfg, pull_sides(cfg, store), "test", fitted.target_ids)
    measured = load_effects(EffectsStage(Job(cfg, store)).pull())
    whole = claims(fitted, measured, test, 60, "cpu", Observer())
    monkeypatch.setattr("saelink.evidence.claims.SOURCES", 7)
    monkeypatch.setattr("saelink.evidence.claims.STEP", 11)
    again = claims(fitted, measured, test, 60, "cpu", Observer())
    assert torch.equal(whole.source, again.source) and torch.equal(whole.column, again.column)
    assert torch.allclose(whole.value, again.value, atol=1e-6)
    assert not (whole.value == 0).any()


def test_a_connector_that_claims_all_pairs_is_refused_first(saelink: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["connector=mlp", "connector.d_hidden=8", "solver.tokens=4096"]
    assert saelink("train", *words)[0] == 0
    monkeypatch.setattr("saelink.evidence.claims.need_memory", _refuse)
    code, out, err = saelink("verify", *words)
    assert code == 1 and "the claims of connector=mlp on all pairs of 48 source and" in err, err
    assert len(err.strip().splitlines()) == 1 and "effects:" not in out


def _refuse(what: str, needed: float, way_out: str) -> None:
    from saelink.errors import SaelinkError

    raise SaelinkError(f"{what} need {needed:.0f} bytes; {way_out}")
