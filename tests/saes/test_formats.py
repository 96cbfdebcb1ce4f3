"""SAEs as other tools save them: what they encode, by the formula each tool documents or by the tool itself."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saelink.activations.cache import cache_hooks
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.latents.encode import EncodeStage
from saelink.saes.check import check_sae
from saelink.saes.choice import published, sae_choice
from saelink.saes.formats import identity, read_sae
from saelink.saes.formats.saelens import modern
from saelink.saes.neuronpedia import neuronpedia_id
from saelink.saes.sae import SAE
from saelink.store.store import Store

from helpers.sae_files import (
    D_IN,
    D_SAE,
    K,
    X,
    dictionary,
    gemma,
    numbers,
    parts,
    top_k,
    write_dictionary,
    write_gemma,
    write_sparsify,
)
from helpers.world import Bomb, World, composed, write_sae


def agree(sae: SAE, latents: torch.Tensor, rebuilt: torch.Tensor) -> None:
    found = sae.encode(X)
    assert torch.allclose(found, latents, atol=1e-5) and (latents > 0).any()
    assert torch.equal(found > 0, latents > 0)
    assert torch.allclose(sae.decode(found, sae.units(X)), rebuilt, atol=1e-4)


# --------------------------------------------------------------------------- SAELens


LENS: dict[str, dict[str, Any]] = {
    "standard": {},
    "standard, input as it is": {"apply_b_dec_to_input": False},
    "topk": {"k": K},
    "topk by decoder norm": {"k": K, "rescale_acts_by_decoder_norm": True},
    "jumprelu": {},
    "gated": {},
    "gated, input as it is": {"apply_b_dec_to_input": False},
    "standard, layer_norm": {"normalize_activations": "layer_norm"},
    "topk, constant_norm_rescale": {"k": K, "normalize_activations": "constant_norm_rescale"},
    "gated, layer_norm": {"normalize_activations": "layer_norm"},
}


@pytest.mark.parametrize("name", LENS)
def test_saelens_architectures_equal_its_own(tmp_path: Path, name: str) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    architecture = name.split(",")[0].split()[0]
    config = sae_lens.registry.get_sae_class(architecture)[1](d_in=D_IN, d_sae=D_SAE, **LENS[name])
    theirs = sae_lens.registry.get_sae_class(architecture)[0](config)
    with torch.no_grad():
        for number, parameter in enumerate(theirs.parameters()):
            parameter.copy_(numbers(*parameter.shape, seed=number) / 2)
    theirs.save_model(tmp_path)
    ours, theirs = read_sae(tmp_path, "sae.path"), sae_lens.SAE.load_from_disk(tmp_path)
    with torch.no_grad():
        latents = theirs.encode(X)
        agree(ours, latents, theirs.decode(latents))


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_saelens_training_saves_read_like_its_inference_saves(tmp_path: Path, architecture: str) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    kind, config = sae_lens.registry.get_sae_training_class(architecture)
    more = {"matryoshka_widths": [10, D_SAE]} if "matryoshka" in architecture else {}
    theirs = kind(config(d_in=D_IN, d_sae=D_SAE, k=K, **more))
    with torch.no_grad():
        for number, parameter in enumerate(theirs.parameters()):
            parameter.copy_(numbers(*parameter.shape, seed=number) / 2)
        theirs.topk_threshold = torch.tensor(0.6, dtype=torch.float64)
    theirs.save_model(tmp_path / "training")
    theirs.save_inference_model(tmp_path / "inference")
    expected = sae_lens.SAE.load_from_disk(tmp_path / "inference")
    with torch.no_grad():
        latents = expected.encode(X)
        for name in ("training", "inference"):
            agree(read_sae(tmp_path / name, "sae.path"), latents, expected.decode(latents))


OLD = {
    "hook_point": "blocks.8.hook_resid_pre", "hook_point_layer": 8, "d_in": D_IN, "d_sae": D_SAE,
    "dtype": "torch.float32", "device": "mps", "context_size": 128,
}  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"normalize_activations": None, "prepend_bos": True, "finetuning_scaling_factor": False},
        {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": "layer_norm"},
        {"activation_fn_str": "relu", "apply_b_dec_to_input": False, "sae_lens_training_version": "3.1.0"},
    ],
)
def test_flat_configurations_of_earlier_versions(tmp_path: Path, more: dict[str, Any]) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    (tmp_path / "cfg.json").write_text(json.dumps(OLD | more))
    save_file(parts(), tmp_path / "sae_weights.safetensors")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        theirs, ours = sae_lens.SAE.load_from_disk(tmp_path), read_sae(tmp_path, "sae.path")
        latents = theirs.encode(X)
        agree(ours, latents, theirs.decode(latents))
    assert ours.metadata["hook_name"] == "blocks.8.hook_resid_pre" and ours.metadata["context_size"] == 128


def test_a_configuration_is_brought_up_to_date_once() -> None:
    config = modern(OLD | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "neuronpedia_id": "a/1-b"})
    assert config["architecture"] == "topk" and config["k"] == K and config["metadata"]["neuronpedia_id"] == "a/1-b"
    assert modern(config) == config


def test_a_finetuned_decoder_is_scaled_and_the_latents_are_not(tmp_path: Path) -> None:
    factor = numbers(D_SAE, seed=7).abs() + 0.5
    (tmp_path / "cfg.json").write_text(json.dumps(OLD | {"finetuning_scaling_factor": True}))
    save_file(parts() | {"scaling_factor": factor}, tmp_path / "sae_weights.safetensors")
    p = parts()
    latents = ((X - p["b_dec"]) @ p["W_enc"] + p["b_enc"]).relu()
    agree(read_sae(tmp_path, "sae.path"), latents, (latents * factor) @ p["W_dec"] + p["b_dec"])


@pytest.mark.parametrize("kind", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"])
def test_saelens_transcoders(tmp_path: Path, kind: str) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    model, config = sae_lens.registry.get_sae_class(kind)
    theirs = model(config(d_in=D_IN, d_sae=D_SAE, d_out=7, apply_b_dec_to_input=False))
    with torch.no_grad():
        for number, parameter in enumerate(theirs.parameters()):
            parameter.copy_(numbers(*parameter.shape, seed=number) / 2)
        theirs.save_model(tmp_path)
        ours = read_sae(tmp_path, "transcoder.path")
        assert ours.transcodes and ours.d_out == 7
        assert torch.allclose(ours.encode(X), theirs.encode(X), atol=1e-5)
        assert torch.allclose(ours.transcode(X), theirs(X), atol=1e-4)


# --------------------------------------------------------------------------- sparsify


def test_one_sae_saved_by_sparsify_and_by_saelens_gives_equal_latents(tmp_path: Path) -> None:
    p = parts()
    sparsify = read_sae(write_sparsify(tmp_path / "layers.3.mlp"), "sae.path")
    lens = tmp_path / "lens"
    lens.mkdir()
    (lens / "cfg.json").write_text(json.dumps({"architecture": "topk", "k": K, "d_in": D_IN, "d_sae": D_SAE}))
    save_file(p, lens / "sae_weights.safetensors")
    latents = top_k((X - p["b_dec"]) @ p["W_enc"] + p["b_enc"])
    agree(sparsify, latents, latents @ p["W_dec"] + p["b_dec"])
    assert torch.equal(read_sae(lens, "sae.path").encode(X), sparsify.encode(X))


def test_sparsify_itself_gives_equal_latents(tmp_path: Path) -> None:
    sparsify = pytest.importorskip("sparsify")
    theirs = sparsify.SparseCoder(D_IN, sparsify.SparseCoderConfig(num_latents=D_SAE, k=K))
    with torch.no_grad():
        for number, parameter in enumerate(theirs.parameters()):
            parameter.copy_(numbers(*parameter.shape, seed=number) / 2)
        theirs.save_to_disk(tmp_path / "saved")
        found = theirs.encode(X)
        latents = torch.zeros(len(X), D_SAE).scatter(1, found.top_indices, found.top_acts)
        rebuilt = theirs.decode(found.top_acts, found.top_indices)
        agree(read_sae(tmp_path / "saved", "sae.path"), latents, rebuilt)


def test_sparsify_transcoders_read_their_input_as_it_is(tmp_path: Path) -> None:
    p = parts()
    sae = read_sae(write_sparsify(tmp_path / "t", transcode=True, skip_connection=True), "transcoder.path")
    latents = top_k(X @ p["W_enc"] + p["b_enc"])
    assert sae.transcodes and torch.allclose(sae.encode(X), latents, atol=1e-5)
    skipped = X @ numbers(D_IN, D_IN, seed=5).T
    assert torch.allclose(sae.transcode(X), latents @ p["W_dec"] + p["b_dec"] + skipped, atol=1e-4)


# --------------------------------------------------------------------------- dictionary_learning


KINDS = [
    "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_dictionary_learning(tmp_path: Path, kind: str) -> None:
    _, latents, rebuilt = dictionary(kind)
    agree(read_sae(write_dictionary(tmp_path / "d", kind), "sae.path"), latents, rebuilt)


# --------------------------------------------------------------------------- Gemma Scope


@pytest.mark.parametrize("generation", [1, 2])
def test_gemma_scope(tmp_path: Path, generation: int) -> None:
    folder = write_gemma(tmp_path / "layer_3", generation)
    _, latents, rebuilt = gemma()
    agree(read_sae(folder, "sae.path"), latents, rebuilt)
    if generation == 1:
        assert torch.equal(read_sae(folder / "params.npz", "sae.path").encode(X), read_sae(folder, "x").encode(X))


def test_gemma_scope_transcoders_with_an_affine_skip(tmp_path: Path) -> None:
    folder = write_gemma(tmp_path / "t", 2, type="transcoder", affine_connection=True, hf_hook_point_out="a.b")
    sae = read_sae(folder, "transcoder.path")
    _, _, rebuilt = gemma()
    assert sae.transcodes
    assert torch.allclose(sae.transcode(X), rebuilt + X @ numbers(D_IN, D_IN, seed=6), atol=1e-4)


# --------------------------------------------------------------------------- wrong and hostile files


def spoil(folder: Path, **tensors: torch.Tensor) -> None:
    write_sae(folder)
    from safetensors.torch import load_file

    save_file(load_file(folder / "sae_weights.safetensors") | tensors, folder / "sae_weights.safetensors")


def spoil_threshold(folder: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(folder / "sae_weights.safetensors")
    tensors["threshold"][0] = torch.nan
    save_file(tensors, folder / "sae_weights.safetensors")


def bomb_in(folder: Path, witness: Path) -> None:
    write_dictionary(folder, "AutoEncoder")
    torch.save({"bias": Bomb(witness)}, folder / "ae.pt")


def objects_in(folder: Path, witness: Path) -> None:
    folder.mkdir()
    np.savez(folder / "params.npz", W_enc=np.array([Bomb(witness)], dtype=object))


WRONG: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "a pickle": (bomb_in, "is refused: ae.pt holds more than tensors"),
    "objects among arrays": (objects_in, "is refused: params.npz holds no plain arrays"),
    "no zip": (lambda f, w: [f.mkdir(), (f / "params.npz").write_bytes(b"PK??")], "is refused"),
    "not a number": (lambda f, w: spoil(f, b_dec=torch.full((32,), torch.nan)), "not all finite"),
    "shapes": (lambda f, w: spoil(f, W_dec=torch.zeros(3, 32)), "do not fit together"),
    "too large a k": (lambda f, w: write_sae(f, k=4000), "has k=4000 of"),
    "another class": (lambda f, w: write_dictionary(f, "AutoEncoder") and (f / "config.json").write_text(
        '{"trainer": {"dict_class": "CrossCoder"}}'), "has dict_class CrossCoder"),
    "signed": (lambda f, w: write_sparsify(f, signed=True), "has signed=true"),
    "unreleased": (lambda f, w: write_sparsify(f, normalize_io=True), "has normalize_io"),
    "groupmax": (lambda f, w: write_sparsify(f, activation="groupmax"), "has activation=groupmax"),
    "gemma": (lambda f, w: write_gemma(f, 2, architecture="top_k"), "has architecture top_k"),
    "empty": (lambda f, w: f.mkdir(), "is no SAE that can be read; its folder holds"),
    "nothing": (lambda f, w: None, "is missing"),
    "k is no number": (lambda f, w: write_sae(f) and (f / "cfg.json").write_text(
        '{"architecture": "topk", "k": "many"}'), "can't be read"),
    "no threshold": (lambda f, w: [write_sae(f, architecture="jumprelu"), spoil_threshold(f)], "not all finite"),
    "no b_dec": (lambda f, w: [write_dictionary(f, "AutoEncoder"), torch.save(
        {"encoder.weight": torch.zeros(3, 2), "decoder.weight": torch.zeros(2, 3)}, f / "ae.pt")], "can't be read"),
}  # fmt: skip


@pytest.mark.parametrize("how", WRONG)
def test_wrong_files_get_one_line_and_nothing_runs(tmp_path: Path, how: str) -> None:
    make, said = WRONG[how]
    witness = tmp_path / "ran"
    make(tmp_path / "sae", witness)
    with pytest.raises(SaelinkError, match=r"sae\.path: ") as error:
        read_sae(tmp_path / "sae", "sae.path")
    assert said in str(error.value) and "\n" not in str(error.value) and not witness.exists()


def test_identity_is_what_encoding_depends_on(tmp_path: Path) -> None:
    folder = write_gemma(tmp_path / "one", 2)
    assert identity(folder) == identity(write_gemma(tmp_path / "two", 2))
    sparsify = [write_sparsify(tmp_path / name, **more) for name, more in {"a": {}, "b": {"init_seeds": [3]}}.items()]
    assert identity(sparsify[0]) == identity(sparsify[1])
    assert identity(write_sparsify(tmp_path / "c", k=K + 1)) != identity(sparsify[0])
    lens = [
        write_sae(tmp_path / f"lens{n}", metadata=metadata, normalize_activations="expected_average_only_in")
        for n, metadata in enumerate(
            [{"norm_scaling_factor": 1.0}, {"hook_name": "x", "norm_scaling_factor": 1.0}, {"norm_scaling_factor": 2.0}]
        )
    ]
    assert identity(lens[0]) == identity(lens[1]) != identity(lens[2])
    assert torch.allclose(read_sae(lens[2], "x").W_enc, 2 * read_sae(lens[0], "x").W_enc)


# --------------------------------------------------------------------------- does it belong here?

HOOK = "blocks.1.hook_mlp_out"


def test_an_sae_that_does_not_belong_is_refused_before_its_latents_are_used(config: Callable[..., Config]) -> None:
    sae = read_sae_of_world(config)
    acts = numbers(16 * 40, 32, seed=5)
    fits = torch.relu(acts @ torch.eye(32))  # an identity as SAE rebuilds what is positive
    exact = SAE(torch.eye(32), torch.zeros(32), torch.eye(32), torch.zeros(32))
    checked = config("sae.check=true")
    check_sae(checked, HOOK, exact, fits)
    with pytest.raises(SaelinkError, match=r"has FVU .* check the model, tokenizer") as error:
        check_sae(checked, HOOK, sae, acts * 50 + 100)
    assert "\n" not in str(error.value)
    check_sae(config("sae.check=false"), HOOK, sae, acts * 50 + 100)
    with pytest.raises(SaelinkError, match="has FVU nan"):
        check_sae(checked, HOOK, exact, acts * torch.nan)
    with pytest.raises(SaelinkError, match="has d_in 32, the activations have 7"):
        check_sae(config(), HOOK, sae, acts[:, :7])
    told = config("sae.check=true", "+sae.published.hook_mlp_out={fvu: 0.1, l0: [3, 4]}")
    assert published(told, HOOK) == {"fvu": 0.1, "l0": 4.0} and published(told, "blocks.1.hook_resid_mid") == {}
    with pytest.raises(SaelinkError, match=r"active latents .*published: fvu 0.1, l0 4"):
        check_sae(told, HOOK, exact, fits)
    check_sae(config("sae.check=true", "+sae.published.hook_mlp_out={l0: 16}"), HOOK, exact, fits)
    sae.metadata |= {"prepend_bos": True, "context_size": 16}
    with pytest.raises(SaelinkError, match=r"its file says data\.prepend_bos=True; check"):
        check_sae(checked, HOOK, sae, acts * 50 + 100)


def read_sae_of_world(config: Callable[..., Config]) -> SAE:
    return read_sae(Path(config().sae.path or "") / HOOK, "sae.path")


def test_neuronpedia_ids_come_from_the_file_or_the_setting(
    config: Callable[..., Config], store: Store, tmp_path: Path
) -> None:
    assert neuronpedia_id(config(), store, HOOK) is None
    write_sae(tmp_path / HOOK, metadata={"neuronpedia_id": "gpt2-small/1-mlp"})
    cfg = config(f"sae.path={tmp_path}")
    assert neuronpedia_id(cfg, store, HOOK) == "gpt2-small/1-mlp"
    told = config(f"sae.path={tmp_path}", "+sae.neuronpedia.hook_mlp_out=m/LAYER-x")
    assert neuronpedia_id(told, store, HOOK) == "m/1-x"


def test_each_hook_may_have_its_own_format(config: Callable[..., Config], store: Store, tmp_path: Path) -> None:
    write_sparsify(tmp_path / "sparsify" / "layers.1.mlp")
    write_gemma(tmp_path / "gemma" / "layer_0", 1)
    cfg = config(
        f"sae.path={tmp_path}", "+sae.files.hook_mlp_out=sparsify/layers.LAYER.mlp",
        "+sae.files.hook_resid_post=gemma/layer_LAYER/params.npz",
    )  # fmt: skip
    assert sae_choice(cfg, store, HOOK).key.startswith("folder:")
    chosen = sae_choice(cfg, store, "blocks.0.hook_resid_post")
    assert chosen.path == tmp_path / "gemma/layer_0/params.npz" and chosen.key.startswith("file:")
    for place in ("hf://", "hf://gpt2"):
        with pytest.raises(SaelinkError, match="is not of the form"):
            sae_choice(config(f"+sae.files.hook_mlp_out={place}"), store, HOOK)
    with pytest.raises(SaelinkError, match=r"hf://nowhere/x is not of the form"):
        sae_choice(config("+sae.files.hook_mlp_out=hf://nowhere/x"), store, HOOK)


def test_releases_are_known_before_anything_is_fetched(config: Callable[..., Config], store: Store) -> None:
    pytest.importorskip("sae_lens")
    with pytest.raises(SaelinkError, match=r"no such release; near it are .*gpt2-small-res-jb"):
        sae_choice(config("sae.release=gpt2-smal-res-jb", "sae.id=x"), store, HOOK)
    with pytest.raises(SaelinkError, match=r"gpt2-small-res-jb has no such SAE; near it are blocks\.1\.hook_resid"):
        sae_choice(config("sae.release=gpt2-small-res-jb", "sae.id=blocks.LAYER.hook_resid"), store, HOOK)


PUBLISHED = {
    "pythia-70m-deduped-sm": (
        6,
        {
            "hook_resid_post": ("pythia-70m-deduped-res-sm", "blocks.{layer}.hook_resid_post"),
            "hook_mlp_out": ("pythia-70m-deduped-mlp-sm", "blocks.{layer}.hook_mlp_out"),
            "hook_attn_out": ("pythia-70m-deduped-att-sm", "blocks.{layer}.hook_attn_out"),
        },
    ),
    "gpt2-small-v5-32k": (
        12,
        {
            hook: (f"gpt2-small-{name}-v5-32k", f"blocks.{{layer}}.{hook}")
            for hook, name in (
                ("hook_resid_mid", "resid-mid"), ("hook_mlp_out", "mlp-out"), ("hook_attn_out", "attn-out"),
                ("hook_resid_post", "resid-post"),
            )
        },
    ),
    "gpt2-small-res-jb": (12, {"hook_resid_pre": ("gpt2-small-res-jb", "blocks.{layer}.hook_resid_pre")}),
    "gemma-scope-2b-pt": (
        26,
        {
            hook: (f"gemma-scope-2b-pt-{name}-canonical", "layer_{layer}/width_16k/canonical")
            for hook, name in (("hook_resid_post", "res"), ("hook_mlp_out", "mlp"), ("attn.hook_z", "att"))
        },
    ),
    "gemma-scope-2-270m-pt": (
        18,
        {
            hook: (f"gemma-scope-2-270m-pt-{name}-all", "layer_{layer}_width_16k_l0_big")
            for hook, name in (("hook_resid_post", "res"), ("hook_mlp_out", "mlp"), ("attn.hook_z", "att"))
        },
    ),
}  # fmt: skip
"""Set in conf/sae -> layers, and by hook the release and id under which sae-lens lists the same SAE."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sets_are_where_sae_lens_lists_them(name: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = pytest.importorskip("sae_lens.loading.pretrained_saes_directory")
    monkeypatch.setattr("saelink.saes.choice.hub_commit", lambda field, repository, revision: "0" * 40)
    cfg = composed([f"sae={name}"])
    layers, hooks = PUBLISHED[name]
    listed = directory.get_pretrained_saes_directory()
    for hook, (release, sae_id) in hooks.items():
        for layer in range(layers):
            found = sae_choice(cfg, store, f"blocks.{layer}.{hook}").hub
            entry = sae_id.format(layer=layer)
            repository, path = directory.get_repo_id_and_folder_name(release, entry)
            assert found is not None and (found.repository, found.path.rstrip("/")) == (repository, path.rstrip("/"))
            theirs = listed[release].neuronpedia_id.get(entry)
            assert theirs is None or neuronpedia_id(cfg, store, f"blocks.{layer}.{hook}") == theirs
            l0 = listed[release].expected_l0.get(entry)  # 0 where sae-lens lists none
            assert not l0 or published(cfg, f"blocks.{layer}.{hook}")["l0"] == pytest.approx(l0)


def test_normalising_saes_go_through_the_chain(world: World, config: Callable[..., Config], store: Store) -> None:
    """Latents, stored units and quality of an SAE that normalises what it reads, against the dense computation."""
    from saelink.activations.cache import act_shards
    from saelink.latents.encode import stored_units
    from saelink.latents.rows import unpack

    saes = world.folder / "normalising"
    write_sae(saes / HOOK, normalize_activations="layer_norm", k=8)
    cfg = config(f"sae.path={saes}", "sae.check=false")
    artifact = EncodeStage(cfg, store, HOOK).pull()
    sae = read_sae(saes / HOOK, "sae.path")
    error = variance = 0.0
    xs = []
    for shard, acts in act_shards(cache_hooks(cfg, store, [HOOK])[HOOK], ["test"]):
        x = acts.reshape(-1, 32).float()
        tensors = artifact.tensors(shard.name)
        rows, units = unpack(tensors, sae.d_sae), stored_units(tensors)
        assert units is not None and torch.allclose(units.scale, x.std(1, keepdim=True), rtol=1e-5)
        kept = torch.arange(len(x)) % cfg.data.context_size >= 1
        rebuilt = sae.decode(rows.dense(), units)
        error += (rebuilt - x)[kept].double().square().sum().item()
        xs.append(x[kept].double())
    x = torch.cat(xs)
    variance = (x - x.mean(0)).square().sum().item()
    assert artifact.facts["fvu"] == pytest.approx(error / variance, rel=1e-5)
