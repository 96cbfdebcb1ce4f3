"""Effects against one ablation at a time in the whole model, and verdicts on planted claims."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saelink.activations.tokens import TokensStage
from saelink.config.schema import Config
from saelink.evidence.claims import Claims, claims
from saelink.evidence.edges import TARGETS_FILE, EdgesStage
from saelink.evidence.verdicts import VERDICTS, Verdicts, judged
from saelink.evidence.verify import VerdictsStage, VerifyStage, has_verdicts, judges, verdicts_of
from saelink.fit.train import TrainStage, fitted_connector
from saelink.interventions.block import FOLDS
from saelink.interventions.effects import EffectsStage, load_effects
from saelink.interventions.pairs import Effects
from saelink.job import Job
from saelink.latents.link import link_of, load_split, pull_sides
from saelink.latents.rows import Rows
from saelink.model.block import load_module
from saelink.model.describe import model_info
from saelink.model.load import load_bridge
from saelink.progress import Observer
from saelink.saes.load import pull_sae
from saelink.store.store import Store

from helpers.effects import sparse_effects
from helpers.world import Run, World, write_sae


def reference(cfg: Config, store: Store, source: int, targets: list[int]) -> tuple[torch.Tensor, int]:
    """Mean effect of a source on some targets, one token at a time in the whole model, read as the stage says."""
    sources, target_hook = link_of(cfg, store)
    bridge = load_bridge(cfg, model_info(cfg, store), "cpu")
    saes, sae_out = [pull_sae(cfg, store, hook) for hook in sources], pull_sae(cfg, store, target_hook)
    side = 0
    while source >= saes[side].d_sae:
        source, side = source - saes[side].d_sae, side + 1
    hook, sae_in = sources[side], saes[side]
    ids = TokensStage(cfg, store).pull().tensors("test.safetensors")["ids"].long()
    total, n = torch.zeros(len(targets)), 0

    def read(acts: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
        pre = sae_out.pre_acts(acts[None])[0]
        above = torch.zeros(sae_out.d_sae) if sae_out.threshold is None else sae_out.threshold.clamp(min=0)
        return torch.where((pre >= floor) & (pre > above), pre, 0.0)

    with torch.inference_mode():
        for sequence in ids:
            _, seen = bridge.run_with_cache(
                sequence[None], names_filter=[*sources, target_hook], return_cache_object=False
            )
            for position in range(1, len(sequence)):
                value = sae_in.encode(seen[hook][0, position][None])[0, source]
                if value <= 0:
                    continue
                pre = sae_out.pre_acts(seen[target_hook][0, position][None])[0]
                floor = torch.zeros(())
                if sae_out.k is not None:
                    best = pre.topk(sae_out.k + 1).values.clamp(min=0)
                    floor = (best[-1] + best[-2]) / 2 if best[-2] > 0 else floor
                found: dict[str, torch.Tensor] = {}

                def hold(name: str, at: int = position, value: Any = value) -> Any:
                    def hook(acts: torch.Tensor, **_: object) -> torch.Tensor:
                        acts = acts.clone()
                        acts[0, at] = seen[name][0, at]  # noqa: B023 (used at once)
                        if name == sources[side]:
                            acts[0, at] -= value * sae_in.W_dec[source]
                        return acts

                    return hook

                def keep(acts: torch.Tensor, found: Any = found, **_: object) -> torch.Tensor:
                    found["after"] = acts
                    return acts

                bridge.run_with_hooks(
                    sequence[None], fwd_hooks=[*((name, hold(name)) for name in sources), (target_hook, keep)]
                )
                before, after = seen[target_hook][0, position], found["after"][0, position]
                total += (read(before, floor) - read(after, floor))[targets]
                n += 1
    return total / n, n


@pytest.mark.parametrize(
    ("model", "architecture", "link"),
    [
        ("llama", "topk", "mlp"), ("neox", "topk", "mlp"), ("llama", "jumprelu", "mlp"), ("llama", "standard", "mlp"),
        ("llama", "topk", "attn"), ("neox", "topk", "attn"), ("llama", "topk", "block"), ("neox", "topk", "block"),
        ("llama", "topk", "resid"),
    ],
)  # fmt: skip
def test_effects_are_those_of_one_ablation_at_a_time(
    world: World, tmp_path: Path, model: str, architecture: str, link: str
) -> None:
    store = Store(tmp_path / "outputs")
    overrides = ["verify.tokens_per_source=100000", f"link={link}"]
    if architecture != "topk":
        for seed, hook in enumerate(("blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out")):
            write_sae(tmp_path / "saes" / hook, seed=seed, architecture=architecture)
        overrides.append(f"sae.path={tmp_path / 'saes'}")
    cfg = world.config(store.root, *overrides, model=model)
    artifact = EffectsStage(Job(cfg, store)).pull()
    assert EffectsStage(Job(cfg, store)).pull().key == artifact.key
    found = load_effects(artifact)
    mean = found.dense()
    sides = pull_sides(cfg, store)
    scale = sides.scales[-1]
    often = load_split(cfg, sides, "test").source
    counts = torch.bincount(often.indices, minlength=often.d)
    sources = []
    for first in range(0, often.d, 48):  # two of each hook, active on few tokens: each costs a pass of the model
        order = torch.where(counts[first : first + 48] > 0, counts[first : first + 48], 10**6).argsort()
        sources += (first + order[4:6]).tolist()
    assert counts[sources].min() > 0
    for source in sources:
        expected, n = reference(cfg, store, source, list(range(48)))
        assert n == int(found.tokens[:, source].sum())
        assert torch.allclose(mean[source] * scale, expected, atol=1e-4 * scale), source
    for pairs in found.pairs():
        total = found.tokens.sum(0)[pairs.source_of]
        assert torch.allclose(pairs.folds().sum(1) / total, pairs.mean, atol=2e-2, rtol=1e-2)


def test_effects_of_a_model_in_bfloat16(world: World, store: Store) -> None:
    half = load_effects(EffectsStage(Job(world.config(store.root, "model.dtype=bfloat16"), store)).pull()).dense()
    full = load_effects(EffectsStage(Job(world.config(store.root), store)).pull()).dense()
    assert half.isfinite().all() and torch.corrcoef(torch.stack([half.flatten(), full.flatten()]))[0, 1] > 0.9


# --------------------------------------------------------------------------- verdicts


def matrix(found: Claims, d_source: int, d_target: int) -> torch.Tensor:
    out = torch.zeros(d_source, d_target)
    out[found.source, found.column] = found.value
    return out


def planted(seed: int = 0) -> tuple[torch.Tensor, Effects, torch.Tensor]:
    """True effects of 40 sources on 30 targets: sparse, half of them negative; a little noise in every fold."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randn(40, 30, generator=generator) * (torch.rand(40, 30, generator=generator) < 0.1)
    tokens = torch.full((FOLDS, 40), 20)
    noise = 0.01 * torch.randn(FOLDS, 40, 30, generator=generator)
    folds = (true + noise) * tokens[..., None]
    mean = folds.sum(0) / tokens.sum(0)[:, None]
    return (
        true,
        sparse_effects(mean, folds, tokens, torch.ones(40), torch.full((40,), 0.2), torch.ones(30)),
        torch.arange(30),
    )


def test_the_true_graph_is_confirmed() -> None:
    true, measured, ids = planted()
    figures, tensors = judged(Claims.of_dense(true * (true.abs() > 0.1)), measured, ids, 0.1)
    assert figures["edges_confirmed"] == figures["edges"] and figures["missed"] <= 2
    assert figures["slope_1x"] == pytest.approx(1, abs=0.03) and figures["r2_1x"] > 0.99 and figures["sign_1x"] == 1
    assert figures["recall_10x"] > 0.97 and figures["precision_1x"] == 1
    assert figures["recall_positive_10x"] > 0.97 and figures["recall_suppressive_10x"] > 0.97
    assert figures["slope_1x_low"] <= figures["slope_1x"] <= figures["slope_1x_high"]
    assert len(tensors["target"]) == figures["edges"]
    for name in ("precision_1x", "recall_10x", "sign_1x", "r2_1x"):
        assert 0 <= figures[f"{name}_low"] <= figures[name] <= figures[f"{name}_high"] <= 1, name


def test_shares_target_by_target_and_source_by_source() -> None:
    """Two targets whose every effect is claimed, one of whose effects half are, one whose claim is wrong."""
    effect = torch.zeros(6, 4)
    effect[0, 0] = effect[1, 1] = effect[2, 2] = effect[3, 2] = 1.0
    claim = effect.clone()
    claim[3, 2], claim[4, 3] = 0.0, 1.0
    tokens = torch.full((FOLDS, 6), 20)
    measured = sparse_effects(
        effect, effect * tokens[..., None], tokens, torch.ones(6), torch.full((6,), 0.2), torch.ones(4)
    )
    figures, _ = judged(Claims.of_dense(claim), measured, torch.arange(4), 0.1)
    assert figures["recall_10x_by_target_n"] == 3 and figures["precision_10x_by_target_n"] == 4
    recall, precision = torch.tensor([1.0, 1.0, 0.5]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    for q in (10, 50, 90):
        assert figures[f"recall_10x_by_target_{q}"] == pytest.approx(recall.quantile(q / 100).item())
        assert figures[f"precision_10x_by_target_{q}"] == pytest.approx(precision.quantile(q / 100).item())
    assert figures["recall_10x_by_source_n"] == 4 and figures["recall_10x_by_source_10"] == pytest.approx(0.3)


def test_a_graph_without_edges_claims_nothing() -> None:
    true, measured, ids = planted()
    figures, tensors = judged(Claims.of_dense(torch.zeros_like(true)), measured, ids, 0.1)
    assert figures["edges"] == 0 and figures["precision_1x"] is None and figures["recall_1x"] == 0
    figures, _ = judged(Claims.of_dense(0.005 * torch.ones_like(true)), measured, ids, 0.1)
    assert figures["edges_faint"] == figures["edges"] == 1200 and figures["missed"] == figures["strong"]
    assert figures["missed"] == figures["strong"] == len(tensors["missed_target"])


def test_rare_sources_are_not_judged() -> None:
    true, measured, ids = planted()
    tokens = measured.tokens.clone()
    tokens[:, 20:] = 1
    rare = replace(measured, tokens=tokens)
    figures, tensors = judged(Claims.of_dense(true), rare, ids, 0.1)
    unclear = tensors["verdict"] == VERDICTS.index("unclear")
    assert (tensors["source"][unclear] >= 20).all() and unclear[tensors["source"] >= 20].all()
    assert figures["strong"] <= int((true[:20].abs() > 0.08).sum())


def test_each_wrong_claim_gets_its_verdict() -> None:
    true, measured, ids = planted(1)
    strong = (true.abs() > 0.3).nonzero()
    claim = torch.zeros_like(true)
    kinds = ["confirmed", "weaker", "opposite", "no effect"]
    factors = {"confirmed": 1.0, "weaker": 4.0, "opposite": -1.0, "no effect": 20.0}
    expected = {}
    for n, (source, target) in enumerate(strong.tolist()):
        kind = kinds[n % 4]
        claim[source, target] = true[source, target] * factors[kind]
        expected[source, target] = kind
    figures, tensors = judged(Claims.of_dense(claim), measured, ids, 0.1)
    for source, target, verdict in zip(tensors["source"], tensors["target"], tensors["verdict"], strict=True):
        assert VERDICTS[int(verdict)] == expected[int(source), int(target)]
    assert figures["missed"] == ((true.abs() > 0.11) & (claim == 0)).sum() or figures["missed"] > 0


def test_random_claims_have_no_precision_and_suppression_can_be_missed() -> None:
    true, measured, ids = planted(2)
    generator = torch.Generator().manual_seed(5)
    random = torch.randn(40, 30, generator=generator)
    figures, _ = judged(Claims.of_dense(random), measured, ids, 0.1)
    assert figures["precision_1x"] < 0.2 and abs(figures["slope_1x"]) < 0.2
    positive, _ = judged(Claims.of_dense(true.clamp(min=0)), measured, ids, 0.1)
    assert positive["recall_suppressive_10x"] == 0 and positive["recall_positive_10x"] > 0.95
    assert positive["missed_suppressive"] == positive["missed"] > 0


@pytest.mark.parametrize("connector", ["linear", "nonlinear", "mlp"])
def test_claims_are_what_the_connector_loses(world: World, store: Store, connector: str) -> None:
    extra = ["connector.d_hidden=8"] if connector == "mlp" else []
    cfg = world.config(store.root, f"connector={connector}", "verify.tokens_per_source=100000", *extra)
    fitted, measured = (
        fitted_connector(TrainStage(Job(cfg, store)).pull()),
        load_effects(EffectsStage(Job(cfg, store)).pull()),
    )
    test = load_split(cfg, pull_sides(cfg, store), "test", fitted.target_ids)
    found = matrix(claims(fitted, measured, test, 100_000, "cpu", Observer()), test.source.d, test.target.d)
    dense = test.source.dense()
    for source in (0, 7, 20):
        rows = (dense[:, source] > 0).nonzero().squeeze(1)
        if not len(rows):
            continue
        part = test.source.select(rows)
        without = Rows(part.offsets, part.indices, part.values * (part.indices != source), part.d)
        with torch.inference_mode():
            expected = (fitted(part) - fitted(without)).mean(0)
        # A linear claim takes the source's mean from the model run anew, others from the stored bfloat16 latents.
        assert torch.allclose(found[source], expected, rtol=2e-2, atol=1e-3)
    assert VerifyStage(Job(cfg, store)).pull().json("figures.json")["edges"] > 0


def test_verify_adds_nulls_to_the_same_verdicts(config: Callable[..., Config], store: Store) -> None:
    job = Job(config("solver=exact"), store)
    verdicts = verdicts_of(job)
    assert verdicts is not None and verdicts.stage == "verdicts" and Verdicts(verdicts).nulls is None
    verified = VerifyStage(job).pull()
    for name, tensor in verdicts.tensors("edges.safetensors").items():
        assert torch.equal(tensor, verified.tensors("edges.safetensors")[name]), name
    assert verified.json("figures.json") == verdicts.json("figures.json")
    found = verdicts_of(job)
    assert found is not None and found.key == verified.key, "it holds the same and more"
    later = Job(config("solver=exact", "eval.verify=false"), store)
    assert has_verdicts(later) and "verdicts" in EdgesStage(later).inputs(), "what was verified counts without asking"


def test_no_verdicts_where_they_are_not_wanted_or_too_large(
    config: Callable[..., Config], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(config("solver=exact"), store)
    assert judges(job) and not judges(Job(config("solver=exact", "eval.verify=false"), store))
    assert not judges(Job(config("solver=exact", "link=mlp_from_parts"), store)), "effects can't be measured there"
    monkeypatch.setattr("saelink.evidence.verify.MOST_PAIRS", 10)
    assert not judges(job) and judges(Job(config("solver=exact", "eval.verify=true"), store))


def test_the_logic_of_edges_says_what_their_verdicts_do(
    config: Callable[..., Config], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"HIGH": 0.05, "MIN_TOKENS": 2, "EXPLAINED": 0.01}.items():  # random latents: any logic will do
        monkeypatch.setattr(f"saelink.evidence.logic.{name}", value)
    job = Job(config("solver=exact", "l1_alpha=1e-3"), store)
    edges, verdicts = EdgesStage(job).pull(), Verdicts(VerdictsStage(job).pull())
    ids = edges.tensors("edges.safetensors")["target_ids"].tolist()
    named = 0
    for latent, target in zip(ids, map(json.loads, edges.file(TARGETS_FILE).read_bytes().splitlines()), strict=True):
        logic = target["logic"]
        words = [verdicts.into(latent).get(source) for source in logic["inputs"]]
        assert not set(words) & {"no effect", "opposite"}
        assert logic["confirmed"] == (all(word == "confirmed" for word in words) if words else None)
        named += bool(words)
    assert named


def test_evaluate_verifies_where_asked(saelink: Run) -> None:
    code, out, err = saelink("evaluate", "solver=exact", "eval.verify=true", "verify.stability=false")
    assert code == 0, err
    assert "FVU" in out and "  strong effects" in out and "random weights" in out and "Chosen again" not in out


def test_verify_on_the_command_line(saelink: Run) -> None:
    code, out, err = saelink("verify", "solver=exact")
    assert code == 0, err
    table = out[out.index("  strong effects") :].splitlines()
    assert any("precision" in line for line in table) and all(len(line.rstrip()) <= 80 for line in table), table


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["link=mlp_from_parts"], "link=mlp_from_parts: effects of single edges are measured between hook_resid_pre"),
        (["verify.tokens_per_source=0"], "verify.tokens_per_source=0 must be at least 1"),
    ],
)
def test_mistakes_of_verify(saelink: Run, words: list[str], expected: str) -> None:
    code, _, err = saelink("verify", "solver=exact", *words)
    assert code == 1 and expected in err and len(err.strip().splitlines()) == 1, err


@pytest.mark.parametrize("model", ["llama", "neox"])
def test_a_block_between_its_hooks(world: World, store: Store, model: str) -> None:
    cfg = world.config(store.root, model=model)
    info = model_info(cfg, store)
    source, target = info.hook("mlp_in", 1), "blocks.1.hook_mlp_out"
    compute = load_module(cfg, info, source, target, "cpu")
    bridge = load_bridge(cfg, info, "cpu")
    with torch.inference_mode():
        _, seen = bridge.run_with_cache(
            torch.arange(12)[None], names_filter=[source, target], return_cache_object=False
        )
        assert torch.allclose(compute(seen[source][0]), seen[target][0], atol=1e-5)


def test_effects_that_do_not_fit_are_refused_first(saelink: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert saelink("train", "solver=exact")[0] == 0
    monkeypatch.setattr("saelink.runtime.memory_available", lambda: 10_000)
    code, out, err = saelink("verify", "solver=exact")
    assert code == 1 and "verify: the effects of" in err and "eval.verify=false" in err, err
    assert len(err.strip().splitlines()) == 1 and "effects:" not in out
