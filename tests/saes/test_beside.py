"""What lies beside an SAE's weights and what its file says of where it belongs; SAEs that are no good are not kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.latents.encode import EncodeStage
from saelink.progress import Observer
from saelink.saes.check import mismatches
from saelink.saes.choice import sae_choice
from saelink.saes.formats import EXTRA_FILES, identity, read_sae
from saelink.saes.load import load_choice, pull_sae
from saelink.store.store import Store

from helpers.sae_files import D_IN, D_SAE, X, write_dictionary
from helpers.world import Run, World, write_sae

HOOK = "blocks.1.hook_mlp_out"

SCALED = "expected_average_only_in"


def scaler(folder: Path, **content: Any) -> Path:
    (folder / "activation_scaler.json").write_text(json.dumps(content))
    return folder


# ----------------------------------------------------------------------------- what lies beside the weights


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "gated", "standard"])
def test_a_checkpoint_with_its_scale_is_what_sae_lens_makes_of_it_at_the_end(tmp_path: Path, architecture: str) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    kind, config = sae_lens.registry.get_sae_class(architecture)
    more = {"k": 5} if architecture == "topk" else {}
    theirs = kind(config(d_in=D_IN, d_sae=D_SAE, normalize_activations=SCALED, **more))
    with torch.no_grad():
        for number, parameter in enumerate(theirs.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    theirs.save_model(tmp_path)
    ours = read_sae(scaler(tmp_path, scaling_factor=0.37, has_whitening=False), "sae.path")
    with torch.no_grad():
        trained = theirs.encode(X * 0.37)
        theirs.fold_activation_norm_scaling_factor(0.37)
        latents = ours.encode(X)
        assert (trained > 0).any() and torch.allclose(latents, trained, atol=1e-4)
        assert torch.allclose(latents, theirs.encode(X), atol=1e-4)
        assert torch.allclose(ours.decode(latents), theirs.decode(latents), atol=1e-4)


def test_the_scale_is_part_of_what_an_sae_is(config: Callable[..., Config], store: Store, tmp_path: Path) -> None:
    folder = write_sae(tmp_path / HOOK, normalize_activations=SCALED)
    keys = []
    for scale in (0.5, 2.0, 0.5):
        scaler(folder, scaling_factor=scale)
        keys.append(sae_choice(config(f"sae.path={tmp_path}"), store, HOOK).key)
    assert keys[0] == keys[2] != keys[1]
    plain = write_sae(tmp_path / "plain")
    known = identity(plain)
    assert identity(scaler(plain, scaling_factor=None, has_whitening=False)) == known  # of a finished training
    for name in ("sparsity.safetensors", "runner_cfg.json", "README.md"):
        (plain / name).write_text("{}")
    assert identity(plain) == known
    assert "activation_scaler.json" in EXTRA_FILES  # fetched from a hub too


def test_an_sae_that_is_replaced_before_it_is_read_is_not_taken_for_the_old_one(
    config: Callable[..., Config], store: Store, tmp_path: Path
) -> None:
    write_sae(tmp_path / HOOK)
    cfg = config(f"sae.path={tmp_path}")
    choice = sae_choice(cfg, store, HOOK)
    load_choice(cfg, choice)
    write_sae(tmp_path / HOOK, seed=1)
    with pytest.raises(SaelinkError, match="was changed while it was read; run the command again"):
        load_choice(cfg, choice)


REFUSED: dict[str, tuple[dict[str, Any], Any, str]] = {
    "no factor": ({"normalize_activations": SCALED}, None, "expected_average_only_in and no factor"),
    "as it was called": ({"normalize_activations": True}, None, "expected_average_only_in and no factor"),
    "an empty one": ({"normalize_activations": SCALED}, {"scaling_factor": None}, "and no factor"),
    "not asked for": ({}, {"scaling_factor": 2.0}, "activation_scaler.json with 2, but normalize_activations=none"),
    "two": (
        {"normalize_activations": SCALED, "metadata": {"norm_scaling_factor": 3.0}},
        {"scaling_factor": 2.0},
        "has two factors, 3 in cfg.json and 2 in activation_scaler.json",
    ),
    "zero": ({"normalize_activations": SCALED}, {"scaling_factor": 0}, "scaling_factor=0"),
    "a word": ({"normalize_activations": SCALED}, {"scaling_factor": "2"}, "scaling_factor='2'"),
    "not finite": ({"normalize_activations": SCALED}, {"scaling_factor": float("inf")}, "scaling_factor=inf"),
    "whitened": ({"normalize_activations": SCALED}, {"scaling_factor": 1.0, "has_whitening": True}, "whitened"),
    "a list": ({"normalize_activations": SCALED}, [], "without a scaling_factor"),
    "no JSON": ({"normalize_activations": SCALED}, ..., "can't be read"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_a_scale_that_is_not_known_is_refused_before_any_key(tmp_path: Path, how: str) -> None:
    config, content, expected = REFUSED[how]
    folder = write_sae(tmp_path / "sae", **config)
    if content is ...:
        (folder / "activation_scaler.json").write_text("{")
    elif content is not None:
        (folder / "activation_scaler.json").write_text(json.dumps(content))
    for attempt in (lambda: identity(folder, "sae.path"), lambda: read_sae(folder, "sae.path")):
        with pytest.raises(SaelinkError, match=r"^sae\.path: ") as refused:
            attempt()
        assert expected in str(refused.value) and "\n" not in str(refused.value)


def test_a_latent_that_nothing_decodes_is_never_active(tmp_path: Path) -> None:
    folder = write_sae(tmp_path / "lens", rescale_acts_by_decoder_norm=True, architecture="standard")
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors["W_dec"][3] = 0
    tensors["b_enc"][3] = 5
    save_file(tensors, folder / "sae_weights.safetensors")
    write_dictionary(tmp_path / "ae", "AutoEncoder")
    state = torch.load(tmp_path / "ae" / "ae.pt", weights_only=True)
    state["decoder.weight"][:, 3] = 0
    torch.save(state, tmp_path / "ae" / "ae.pt")
    for path, width in ((folder, 32), (tmp_path / "ae", D_IN)):
        sae = read_sae(path, "sae.path")
        latents = sae.encode(torch.randn(200, width))
        assert latents.isfinite().all() and not latents[:, 3].any() and latents.any()
    tensors["W_dec"][4] = torch.nan
    save_file(tensors, folder / "sae_weights.safetensors")
    with pytest.raises(SaelinkError, match="not all finite"):
        read_sae(folder, "sae.path")


# ----------------------------------------------------------------------------- where it belongs


class Said(Observer):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


OTHERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({}, []),
    "all fits": ({"hook_name": HOOK, "context_size": 16, "prepend_bos": False, "model_name": "me/LLAMA"}, []),
    "hook": ({"hook_name": "blocks.1.hook_resid_mid"}, ["hook_name=blocks.1.hook_resid_mid"]),
    "context": ({"context_size": 128}, ["context_size=128, and here it is data.context_size=16"]),
    "bos": ({"prepend_bos": True}, ["prepend_bos=true, and here it is data.prepend_bos=false"]),
    "model": ({"model_name": "gpt2-small"}, ["model_name=gpt2-small"]),
    "two": ({"context_size": 32, "prepend_bos": True}, ["context_size=32", "prepend_bos=true"]),
}


@pytest.mark.parametrize("how", OTHERS)
def test_what_an_sae_says_otherwise_is_a_line_each_and_refused_when_strict(
    config: Callable[..., Config], world: World, tmp_path: Path, how: str
) -> None:
    metadata, expected = OTHERS[how]
    write_sae(tmp_path / "saes" / HOOK, metadata=metadata)
    shared = Path(config().runtime.outputs)
    said = Said()
    cfg = config(f"sae.path={tmp_path / 'saes'}", f"model.path={world.llama}")
    EncodeStage(cfg, Store(shared, said), HOOK).pull()
    warned = [line for line in said.lines if line.startswith("warning: ")]
    assert len(warned) == len(expected)
    assert all(each in line for each, line in zip(expected, warned, strict=True))
    strict = config(f"sae.path={tmp_path / 'saes'}", f"model.path={world.llama}", "sae.strict=true")
    assert EncodeStage(strict, Store(shared), HOOK).key == EncodeStage(cfg, Store(shared), HOOK).key
    if expected:  # also where the latents are there already
        with pytest.raises(SaelinkError, match="its file says") as refused:
            EncodeStage(strict, Store(shared), HOOK).pull()
        assert expected[0] in str(refused.value) and "\n" not in str(refused.value)
    else:
        EncodeStage(strict, Store(shared), HOOK).pull()


def test_other_names_of_the_same_thing_fit(config: Callable[..., Config]) -> None:
    cfg = config()
    for model, name in (("gpt2-small", "gpt2"), ("gpt2", "gpt2-small"), ("pythia-70m", "EleutherAI/pythia-70m")):
        cfg.model.name = name
        assert mismatches(cfg, HOOK, {"model_name": model}) == []
    cfg.model.name = "gpt2-medium"
    assert len(mismatches(cfg, HOOK, {"model_name": "gpt2-small"})) == 1
    assert mismatches(cfg, "blocks.1.hook_resid_pre", {"hook_name": "blocks.0.hook_resid_post", "layer": 0}) == []
    assert mismatches(cfg, "blocks.0.hook_resid_post", {"hook_name": "blocks.1.hook_resid_pre"}) == []
    assert len(mismatches(cfg, HOOK, {"layer": 3})) == 1


def test_dictionary_learning_says_where_it_belongs(tmp_path: Path) -> None:
    sae = read_sae(write_dictionary(tmp_path, "AutoEncoderTopK"), "sae.path")
    assert sae.metadata == {"layer": 3, "context_size": 128} and not sae.transcodes


# ----------------------------------------------------------------------------- training


@pytest.mark.parametrize("lr", ["1e6", "1e30"])
def test_an_sae_that_diverged_is_not_kept(saelink: Run, tmp_path: Path, lr: str) -> None:
    pytest.importorskip("sae_lens")
    words = ["sae=train", "sae.path=null", "sae.d_sae=48", "sae.k=4", "sae.batch_tokens=128", "sae.epochs=1"]
    code, _, err = saelink("sae", *words, f"sae.lr={lr}")
    assert code == 1 and err.startswith(f"saelink: sae.lr={float(lr):g}: ") and "smaller sae.lr" in err, err
    assert len(err.strip().splitlines()) == 1 and not list((tmp_path / "outputs").glob("sae/*/manifest.json"))
    assert saelink("sae", *words)[0] == 0


def test_one_that_was_kept_before_is_named_with_the_way_out(
    config: Callable[..., Config], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = write_sae(tmp_path / "broken")
    save_file(
        {name: tensor * torch.nan for name, tensor in load_file(broken / "sae_weights.safetensors").items()},
        broken / "sae_weights.safetensors",
    )

    def train(*given: Any) -> dict[str, Any]:
        draft = given[-1]
        for path in broken.iterdir():
            shutil.copy(path, draft.folder)
            draft.adopt(path.name)
        return {"hook_name": HOOK, "training_tokens": 1, "steps": 1}

    monkeypatch.setattr("saelink.saes.training._train", train)
    with pytest.raises(SaelinkError, match=r"not all finite numbers; `saelink rm [0-9a-f]{12}` .* smaller sae.lr"):
        pull_sae(config("sae=train", "sae.path=null"), store, HOOK)
