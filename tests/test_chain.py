"""The whole chain on small random models: sequential and parallel blocks, resuming, keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saelink.activations.cache import act_shards, cache_hooks
from saelink.activations.norms import NormsStage
from saelink.activations.tokens import TokensStage, split_by_hash
from saelink.config.process import Device
from saelink.config.schema import Config, WandbMode
from saelink.evidence.evaluate import EvaluateStage
from saelink.fit.train import TrainStage
from saelink.job import Job
from saelink.latents.encode import EncodeStage
from saelink.latents.link import link_of, load_split, pull_sides
from saelink.latents.split import latent_shards
from saelink.model.describe import model_info
from saelink.model.load import load_bridge, load_tokenizer
from saelink.saes.formats import read_sae
from saelink.store.artifact import Artifact
from saelink.store.store import Store

from helpers.world import Run, World

Compose = Callable[..., Config]


@pytest.mark.parametrize("model", ["llama", "neox"])
@pytest.mark.parametrize("connector", ["linear", "mlp"])
def test_the_whole_chain(config: Compose, store: Store, model: str, connector: str) -> None:
    cfg = config(f"connector={connector}", "l1_alpha=0", model=model)
    evaluation = EvaluateStage(Job(cfg, store)).pull()
    figures = evaluation.json("metrics.json")
    assert 0 < figures["fvu"] < 1, "worse than predicting the mean of the test documents"
    assert figures["n_tokens"] > 100
    assert len(evaluation.json("circuits.json")) == 3
    assert EvaluateStage(Job(cfg, store)).pull().key == evaluation.key
    assert not list(store.root.rglob("*.partial")) and not list(store.root.rglob("*.lock"))


def test_the_mlp_link_finds_the_true_input(config: Compose, store: Store) -> None:
    assert link_of(config(), store).sources == ["blocks.1.hook_resid_mid"]
    # The stream that enters block 1 goes by the name under which it leaves block 0.
    assert link_of(config(model="neox"), store).sources == ["blocks.0.hook_resid_post"]
    assert link_of(config("layer=0", model="neox"), store).sources == ["blocks.0.hook_resid_pre"]


def test_the_other_links(config: Compose, store: Store) -> None:
    assert link_of(config("link=attn"), store) == (["blocks.0.hook_resid_post"], "blocks.1.hook_attn_out")
    sources = ["blocks.0.hook_resid_post", "blocks.1.hook_attn_out", "blocks.1.hook_mlp_out"]
    assert link_of(config("link=block"), store) == (sources, "blocks.1.hook_resid_post")


@pytest.mark.parametrize("model", ["llama", "neox"])
@pytest.mark.parametrize("link", ["attn", "block"])
def test_the_chain_through_other_links(config: Compose, store: Store, model: str, link: str) -> None:
    cfg = config(f"link={link}", "solver=exact", model=model)
    figures = EvaluateStage(Job(cfg, store)).pull().json("metrics.json")
    assert 0 < figures["fvu"] < 1
    names = [
        term["unit"]
        for circuit in EvaluateStage(Job(cfg, store)).pull().json("circuits.json")
        for term in circuit["terms"]
    ]
    assert names and all(name.startswith("IF") for name in names)
    assert any("." in name for name in names) == (link == "block"), "with several sources a latent says which"


# --------------------------------------------------------------------------- targets


def test_ids_survive_masks_and_subsets(config: Compose, store: Store) -> None:
    """A latent has the same weights and errors whether or not others are explained beside it."""
    everything, rates = config("solver=exact", "l1_alpha=1e-2"), None
    whole, evaluation = TrainStage(Job(everything, store)).pull(), EvaluateStage(Job(everything, store)).pull()
    sides = pull_sides(everything, store)
    tokens = load_split(everything, sides, "train")
    rates = torch.bincount(tokens.target.indices, minlength=tokens.target.d).double() / len(tokens)
    limit = rates.quantile(0.4).item()
    some = config("solver=exact", "l1_alpha=1e-2", f"targets.min_rate={limit}")
    part, measured = TrainStage(Job(some, store)).pull(), EvaluateStage(Job(some, store)).pull()
    ids = part.tensors("connector.safetensors")["target_ids"]
    assert torch.equal(ids, (rates > limit).nonzero().squeeze(1)) and 0 < len(ids) < tokens.target.d
    W, V = whole.tensors("connector.safetensors"), part.tensors("connector.safetensors")
    assert torch.allclose(W["W"][:, torch.searchsorted(W["target_ids"], ids)], V["W"], atol=1e-3)
    full, fewer = evaluation.tensors("latents.safetensors"), measured.tensors("latents.safetensors")
    assert torch.allclose(full["mse"][ids], fewer["mse"][ids], rtol=1e-2)
    assert fewer["mse"].isnan().sum() == tokens.target.d - len(ids)
    assert measured.json("metrics.json")["n_targets"] == len(ids)
    shown = {circuit["id"] for circuit in measured.json("circuits.json")}
    assert shown <= set(ids.tolist())


def test_a_fit_can_start_from_another(config: Compose, store: Store) -> None:
    mlp = TrainStage(Job(config("connector=mlp", "connector.d_hidden=8"), store)).pull()
    settings = ["connector=two_nonlinear", "connector.d_hidden=8", "solver.tokens=256", "solver.lr=1e-9"]
    warm = TrainStage(Job(config(*settings, f"connector.init={mlp.key}"), store)).pull()
    assert torch.allclose(
        warm.tensors("connector.safetensors")["W1"], mlp.tensors("connector.safetensors")["W1"], atol=1e-6
    )


def test_stages_that_no_seed_changes_ignore_it(config: Compose, store: Store) -> None:
    assert (
        TrainStage(Job(config("solver=exact", "seed=1"), store)).key
        == TrainStage(Job(config("solver=exact", "seed=2"), store)).key
    )


@pytest.mark.parametrize("layers", ["[0,1]", "[1]"])
def test_norms_are_those_of_the_cached_acts(config: Compose, store: Store, layers: str) -> None:
    cfg = config("normalise=post", f"normalise_layers={layers}")
    table = NormsStage(cfg, store).pull().json("norms.json")
    assert {row["layer"] for row in table} == {0, 1} and len(table) == 10
    for layer in range(2):
        acts = cache_hooks(cfg, store, [f"blocks.{layer}.hook_mlp_out"])[f"blocks.{layer}.hook_mlp_out"]
        mean = sum(acts.facts["mean_norm"][1:]) / len(acts.facts["mean_norm"][1:])
        (row,) = [row for row in table if row["layer"] == layer and row["hook"] == "hook_mlp_out"]
        assert row["mean_norm"] == pytest.approx(mean, rel=1e-2)


@pytest.mark.parametrize("model", ["llama", "neox"])
def test_cached_activations_are_those_of_the_plain_model(config: Compose, store: Store, model: str) -> None:
    """Against Hugging Face without any bridge: hidden states, and the MLP's own input and output."""
    from transformers import AutoModelForCausalLM

    cfg = config("layer=1", model=model)
    hooks = ["blocks.1.hook_resid_pre", "blocks.1.hook_mlp_out", *link_of(cfg, store).sources]
    acts = cache_hooks(cfg, store, hooks)
    ids = TokensStage(cfg, store).pull().tensors("test.safetensors")["ids"].long()
    plain: Any = AutoModelForCausalLM.from_pretrained(cfg.model.path, dtype=torch.float32, attn_implementation="eager")
    block = plain.model.layers[1] if model == "llama" else plain.gpt_neox.layers[1]
    norm = block.post_attention_layernorm
    seen = {}
    norm.register_forward_hook(lambda module, inputs, output: seen.update(norm_in=inputs[0]))
    block.mlp.register_forward_hook(lambda module, inputs, output: seen.update(mlp_out=output))
    with torch.no_grad():
        hidden = plain(ids, output_hidden_states=True).hidden_states
    truth = {
        "blocks.1.hook_resid_pre": hidden[1],
        "blocks.1.hook_mlp_out": seen["mlp_out"],
        link_of(cfg, store).sources[0]: seen["norm_in"],
    }
    for hook, expected in truth.items():
        ours = torch.cat([shard for _, shard in act_shards(acts[hook], ["test"])]).float()
        error = (ours - expected).norm() / expected.norm()
        assert error < 4e-3, f"{hook}: bfloat16 rounding is below 0.4%, this is {error:.2%}"


def test_latents_are_the_saes_encoding(config: Compose, store: Store, world: World) -> None:
    cfg = config()
    hook = "blocks.1.hook_mlp_out"
    latents, acts = EncodeStage(cfg, store, hook).pull(), cache_hooks(cfg, store, [hook])[hook]
    sae = read_sae(world.folder / "saes" / hook, "sae.path")
    for (_, rows, norm), (_, shard) in zip(latent_shards(latents, ["test"]), act_shards(acts, ["test"]), strict=True):
        x = shard.reshape(-1, sae.d_in).float()
        expected = torch.relu(x @ sae.W_enc)
        kept = expected.topk(4, dim=1)
        expected = torch.zeros_like(expected).scatter(1, kept.indices, kept.values)
        assert torch.allclose(rows.dense(), expected, rtol=1e-2, atol=1e-3)
        assert torch.allclose(norm, x.norm(dim=1), rtol=1e-5)


def test_documents_keep_their_split_and_never_share_a_sequence(config: Compose, store: Store, world: World) -> None:
    cfg = config()
    texts = [json.loads(line)["text"] for line in world.text.read_text().splitlines()]
    tokenizer = load_tokenizer(cfg.model)
    packed = TokensStage(cfg, store).pull()
    for split in ("train", "validation", "test"):
        tensors = packed.tensors(f"{split}.safetensors")
        ids, documents = tensors["ids"].flatten(), tensors["document"].flatten()
        assert {split_by_hash(texts[number]) for number in documents.unique().tolist()} == {split}
        number = int(documents[documents != documents[0]][0])  # the first document that starts inside the split
        words = tokenizer.decode(ids[documents == number])
        assert words.replace(" ", "") == (texts[number] + "<eot>").replace(" ", "")
    counts = [packed.facts["documents"][split] for split in ("train", "validation", "test")]
    assert sum(counts) == len(texts) and counts[0] > 0.7 * len(texts)


# --------------------------------------------------------------------------- keys


def test_runtime_and_wandb_never_change_a_key(config: Compose, store: Store) -> None:
    plain = EvaluateStage(Job(config(), store)).key
    changed = config("runtime.threads=1", "runtime.forward_tokens=64", "wandb.project=x", "wandb.entity=y")
    changed.runtime = replace(changed.runtime, device=Device.cpu, sweep="s")
    changed.wandb.mode = WandbMode.offline
    assert EvaluateStage(Job(changed, store)).key == plain


def test_equal_numbers_give_equal_keys(config: Compose, store: Store) -> None:
    assert TrainStage(Job(config("l1_alpha=1e-3"), store)).key == TrainStage(Job(config("l1_alpha=0.001"), store)).key
    assert TrainStage(Job(config("l1_alpha=10"), store)).key == TrainStage(Job(config("l1_alpha=10.0"), store)).key
    assert TrainStage(Job(config("l1_alpha=1e-3"), store)).key != TrainStage(Job(config("l1_alpha=1e-4"), store)).key


RECIPE = [
    "seed=1", "latent_scale=none", "normalise=energy", "connector=mlp", "connector.bias=true", "solver.lr=3e-3",
    "solver.batch_tokens=128", "data.drop_positions=2", "data.max_norm_ratio=3", "data.context_size=8",
    "data.max_tokens=2000", "layer=0", "model.dtype=bfloat16", "sae.dtype=bfloat16", "model.separator=.",
]  # fmt: skip


@pytest.mark.parametrize("override", RECIPE)
def test_what_changes_the_numbers_changes_the_key(config: Compose, store: Store, override: str) -> None:
    assert TrainStage(Job(config(override), store)).key != TrainStage(Job(config(), store)).key


def test_changing_the_connector_reruns_only_train_and_evaluate(config: Compose, store: Store) -> None:
    EvaluateStage(Job(config(), store)).pull()
    before = {artifact.key for artifact in store.artifacts()}
    EvaluateStage(Job(config("connector=mlp"), store)).pull()
    made = [artifact.stage for artifact in store.artifacts() if artifact.key not in before]
    assert sorted(made) == ["evaluate", "train"]


def test_a_second_layer_reuses_the_tokens(config: Compose, store: Store) -> None:
    cache_hooks(config(), store, ["blocks.1.hook_mlp_out"])
    cache_hooks(config(), store, ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"])
    stages = [artifact.stage for artifact in store.artifacts()]
    assert sorted(stages) == ["cache", "cache", "model", "tokens"]


# --------------------------------------------------------------------------- resuming


def file_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def test_an_interrupted_cache_goes_on_and_gives_the_same_bytes(
    config: Compose, store: Store, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saelink.store.draft import Draft

    monkeypatch.setattr("saelink.activations.cache.SHARD_TOKENS", 1024)
    hook = "blocks.1.hook_mlp_out"
    undisturbed = Store(tmp_path / "other")
    expected = cache_hooks(world.config(undisturbed.root), undisturbed, [hook])[hook]
    assert len(expected.files) > 4

    saved: list[str] = []
    real = Draft.save_tensors

    def dies_at_the_third(draft: object, name: str, tensors: object) -> None:
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(name)
        real(draft, name, tensors)  # type: ignore[arg-type]

    TokensStage(config(), store).pull()
    with monkeypatch.context() as patch:
        patch.setattr(Draft, "save_tensors", dies_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            cache_hooks(config(), store, [hook])
    partial = next(store.root.glob("cache/*.partial"))
    (partial / ".leftover.tmp").write_bytes(b"half a shard")  # as a killed process leaves it
    second = partial / saved[1]
    second.write_bytes(second.read_bytes()[:-1] + b"?")  # a finished shard that no longer matches its journal line
    kept = (partial / saved[0]).stat().st_mtime_ns

    again: list[str] = []
    monkeypatch.setattr(
        Draft, "save_tensors", lambda draft, name, tensors: (again.append(name), real(draft, name, tensors))
    )
    artifact = cache_hooks(config(), store, [hook])[hook]
    assert saved[0] not in again and saved[1] in again
    assert (artifact.path / saved[0]).stat().st_mtime_ns == kept
    assert file_bytes(artifact.path) == file_bytes(expected.path)


def test_training_is_deterministic(config: Compose, store: Store, tmp_path: Path, world: World) -> None:
    other = Store(tmp_path / "other")
    first, second = (
        EvaluateStage(Job(config(), store)).pull(),
        EvaluateStage(Job(world.config(other.root), other)).pull(),
    )
    assert first.key == second.key
    assert file_bytes(first.path) == file_bytes(second.path)
    one, two = store.get(first.manifest["inputs"]["connector"]), other.get(second.manifest["inputs"]["connector"])
    assert file_bytes(one.path) == file_bytes(two.path)


def test_a_text_that_memory_cannot_hold_is_fitted_from_its_shards(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same exact fit, and a stochastic one that is as good, when two shards are in memory at a time."""
    from saelink.latents.split import Split

    monkeypatch.setattr("saelink.activations.cache.SHARD_TOKENS", 256)
    found: dict[str, list[Artifact]] = {"exact": [], "adam": []}
    for place in ("in memory", "in pieces", "in pieces again"):
        store = Store(tmp_path / place)
        if place != "in memory":
            monkeypatch.setattr(Split, "IN_MEMORY", 0)
            monkeypatch.setattr(Split, "POOL", 2)
        for solver, settings in (("exact", ["l1_alpha=1e-3"]), ("adam", ["solver.tokens=50_000", "solver.lr=1e-2"])):
            cfg = world.config(store.root, f"solver={solver}", *settings)
            found[solver].append(TrainStage(Job(cfg, store)).pull())
    weights = {name: [fit.tensors("connector.safetensors")["W"] for fit in fits] for name, fits in found.items()}
    assert torch.allclose(weights["exact"][0], weights["exact"][1], atol=1e-6)
    assert not torch.equal(weights["adam"][0], weights["adam"][1]), "another order of the tokens"
    assert torch.equal(weights["adam"][1], weights["adam"][2])
    fvu = [fit.facts["validation_fvu"] for fit in found["adam"]]
    assert fvu[1] == pytest.approx(fvu[0], abs=0.03)


def test_normalise_post_compares_the_layers(config: Compose, store: Store) -> None:
    cfg = config("normalise=post", "normalise_layers=[0,1]")
    artifact = TrainStage(Job(cfg, store)).pull()
    mlp_out = {
        row["layer"]: row["mean_norm"]
        for row in NormsStage(cfg, store).pull().json("norms.json")
        if row["hook"] == "hook_mlp_out"
    }
    assert artifact.facts["c"] == pytest.approx((mlp_out[1] / min(mlp_out.values())) ** 2, rel=1e-12)
    alone = TrainStage(Job(config("normalise=post", "normalise_layers=[0]"), store)).pull()
    assert alone.facts["c"] == pytest.approx((mlp_out[1] / mlp_out[0]) ** 2, rel=1e-12)
    assert alone.key != artifact.key


def test_the_bridge_is_loaded_in_the_recipes_type(config: Compose, store: Store) -> None:
    cfg = config("model.dtype=bfloat16")
    bridge = load_bridge(cfg, model_info(cfg, store), "cpu")
    assert {parameter.dtype for parameter in bridge.parameters()} == {torch.bfloat16}


def test_penalties_as_one_path(saelink: Run, config: Compose, store: Store) -> None:
    """Each starts at the one before, unless no weights at all are better; the same command finds all of them again."""
    base = ["connector=mlp", "connector.d_hidden=8", "solver=proximal", "solver.lr=1e-2", "solver.tokens=32768"]
    base += ["solver.batch_tokens=256", "l1_alpha=[100.0,1e-5,1e-4,1000.0]", "solver.path_tokens=4096"]
    code, out, _ = saelink("train", *base)
    assert code == 0 and out.count(" passes)") == 4
    again = saelink("train", *base)[1]
    assert "done in" not in again and again.count("up to date") == 1  # a line a stage, for the first of four
    fits = {fit.recipe["l1_alpha"]: fit for fit in store.artifacts() if fit.stage == "train"}
    assert sorted(fits) == [1e-5, 1e-4, 100, 1000]
    starts = [fits[alpha].recipe["connector"]["init"] for alpha in sorted(fits)]
    assert starts == ["random", fits[1e-5].key, "random", fits[100].key]
    assert [fits[alpha].recipe["solver"]["tokens"] for alpha in sorted(fits)] == [32768, 4096, 32768, 4096]
    assert fits[1000].facts["n_edges"] == 0
    alone = TrainStage(Job(config(*(word for word in base if "path" not in word), "l1_alpha=1e-5"), store)).pull()
    assert alone.key == fits[1e-5].key, "the first is an ordinary fit"
    code, _, err = saelink("train", *base, "l1_alpha=1e-3")
    assert code == 1 and "solver.path_tokens=4096 needs several penalties in one job" in err


def test_a_fit_that_nothing_can_move_any_more_ends(config: Compose, store: Store) -> None:
    settings = ["connector=mlp", "connector.d_hidden=8", "solver=proximal", "solver.tokens=300000", "l1_alpha=1000.0"]
    fit = TrainStage(Job(config(*settings), store)).pull()
    assert fit.facts["n_edges"] == 0 and fit.facts["tokens"] < 300_000
    assert fit.facts["objective"] == pytest.approx(fit.facts["zero_objective"], rel=1e-6)
    with_bias = TrainStage(Job(config(*settings, "connector.bias=true"), store)).pull()
    assert with_bias.facts["tokens"] > 290_000, "its bias still moves"
