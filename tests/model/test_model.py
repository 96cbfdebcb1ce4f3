"""The hooks in Hugging Face's own modules against the TransformerBridge, on one small model of several families."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saelink.activations.tokens import TokensStage
from saelink.errors import SaelinkError
from saelink.latents.link import link_of
from saelink.model.block import load_attended
from saelink.model.describe import model_info
from saelink.model.forward import load_forward
from saelink.model.load import load_bridge
from saelink.model.probe import BLOCK_HOOKS
from saelink.model.weights import permute_weights
from saelink.store.store import Store

from helpers.families import FAMILIES, HEADED, write_family
from helpers.world import D_MODEL, WORDS, Run, World, write_sae, write_tokenizer

FEW = ("llama", "neox", "gpt2", "gemma2", "qwen2")
"""The others are slow."""

OPENED = [
    pytest.param(name, marks=[] if name in FEW else pytest.mark.slow)
    for name, family in FAMILIES.items()
    if family.attn is not None and family.refused is None
]


@pytest.mark.parametrize("family", FEW)
def test_hooks_by_the_models_own_modules_are_the_bridges(
    family: str, world: World, store: Store, tmp_path: Path
) -> None:
    write_family(FAMILIES[family], tmp_path / family)
    cfg = world.config(store.root, f"model.path={tmp_path / family}")
    info = model_info(cfg, store)
    names = [name for name in BLOCK_HOOKS if f"blocks.1.{name}" in info.hooks]
    assert {"hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post"} <= set(names)
    assert set(names) <= set(info.places), "every hook is found in the model itself"
    ids = torch.randint(0, len(WORDS), (3, 16), generator=torch.Generator().manual_seed(1))
    for layer in range(2):
        hooks = [f"blocks.{layer}.{name}" for name in names]
        with torch.inference_mode():
            own = load_forward(cfg, info, hooks, "cpu")(ids)
            bridge = load_forward(cfg, replace(info, places={}), hooks, "cpu")(ids)
        assert own.keys() == bridge.keys() == set(hooks)
        for hook in hooks:
            assert own[hook].shape == (3, 16, D_MODEL)
            assert torch.allclose(own[hook], bridge[hook], rtol=1e-4, atol=1e-5 * bridge[hook].abs().max().item())


def test_the_forward_pass_stops_behind_the_last_hook(world: World, store: Store) -> None:
    cfg = world.config(store.root)
    info = model_info(cfg, store)
    forward = load_forward(cfg, info, ["blocks.0.hook_resid_pre"], "cpu")
    with torch.inference_mode():
        first = forward(torch.zeros(1, 4, dtype=torch.int64))
        again = forward(torch.ones(2, 4, dtype=torch.int64))
    assert first["blocks.0.hook_resid_pre"].shape == (1, 4, D_MODEL), "what was seen before is not overwritten"
    assert again["blocks.0.hook_resid_pre"].shape == (2, 4, D_MODEL)
    with pytest.raises(IndexError), torch.inference_mode():  # a token the model doesn't know is no reason to stop
        forward(torch.full((1, 4), 10_000))


@pytest.mark.parametrize("model", ["llama", "neox"])
def test_a_random_mlp_has_the_same_weights_in_another_order(world: World, store: Store, model: str) -> None:
    cfg = world.config(store.root, model=model)
    other = world.config(store.root, "model.random_mlp=1", model=model)
    infos = model_info(cfg, store), model_info(other, store)
    assert infos[0].artifact.key != infos[1].artifact.key
    bridges = [load_bridge(each, info, "cpu") for each, info in zip((cfg, other), infos, strict=True)]
    hooks = ["blocks.0.hook_mlp_out", "blocks.1.hook_attn_out", "blocks.1.hook_mlp_out"]
    with torch.inference_mode():
        seen = [
            bridge.run_with_cache(torch.arange(12)[None], names_filter=hooks, return_cache_object=False)[1]
            for bridge in bridges
        ]
    assert all(torch.allclose(seen[0][hook], seen[1][hook], atol=1e-6) for hook in hooks[:2])
    assert not torch.allclose(seen[0][hooks[2]], seen[1][hooks[2]], atol=1e-3)
    module = torch.nn.Linear(5, 3)
    before = module.weight.detach().clone(), module.bias.detach().clone()
    permute_weights(module)
    assert torch.equal(module.weight.flatten().sort().values, before[0].flatten().sort().values)
    assert not torch.equal(module.weight, before[0]) and torch.equal(module.bias, before[1])


def test_no_such_block_for_a_random_mlp(saelink: Run) -> None:
    code, _, err = saelink("cache", "model.random_mlp=7")
    assert code == 1 and "model.random_mlp=7: " in err and "no MLP in such a block" in err


@pytest.mark.parametrize("family", ["gpt2", "neox"])
def test_centred_weights_say_the_same_and_write_no_mean(
    family: str, world: World, store: Store, tmp_path: Path
) -> None:
    folder = write_family(FAMILIES[family], tmp_path / family)
    ids = torch.arange(24).view(2, 12) % (len(WORDS) + 2)
    logits, streams = [], []
    for centred in ("false", "true"):
        overrides = [f"model.path={folder}", f"model.center_writing_weights={centred}"]
        cfg = world.config(store.root, *overrides)
        info = model_info(cfg, store)
        with torch.inference_mode():
            logits.append(load_bridge(cfg, info, "cpu")(ids).log_softmax(-1))
            hooks = [f"blocks.{layer}.{name}" for layer in range(2) for name in ("hook_resid_post", "hook_mlp_out")]
            streams.append(load_forward(cfg, info, hooks, "cpu")(ids))
    assert torch.allclose(*logits, atol=1e-4)
    for hook, plain in streams[0].items():
        assert plain.mean(-1).abs().max() > 1e-2
        centred_stream = plain - plain.mean(-1, keepdim=True)
        assert torch.allclose(streams[1][hook], centred_stream, atol=1e-4), hook


def test_a_model_without_layer_norm_is_not_centred(saelink: Run) -> None:
    code, _, err = saelink("cache", "model.center_writing_weights=true")
    assert code == 1 and err.count("\n") == 1
    assert "model.center_writing_weights=true: the model normalises by LlamaRMSNorm" in err


def test_centred_weights_that_say_something_else_are_refused(world: World, store: Store, tmp_path: Path) -> None:
    """An MLP as wide as the stream: what reads it looks like what writes into it."""
    family = replace(FAMILIES["stablelm"], settings=FAMILIES["stablelm"].settings | {"intermediate_size": D_MODEL})
    folder = write_family(family, tmp_path / "model")
    cfg = world.config(store.root, f"model.path={folder}", "model.center_writing_weights=true")
    with pytest.raises(SaelinkError, match="center_writing_weights=true: with them this model says something else"):
        model_info(cfg, store)


def test_every_sequence_may_begin_with_bos(world: World, store: Store, tmp_path: Path, saelink: Run) -> None:
    import json
    import shutil

    folder = shutil.copytree(world.llama, tmp_path / "with-bos")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": "<unk>"}))
    plain, begun = (
        TokensStage(world.config(store.root, f"model.path={folder}", f"data.prepend_bos={value}"), store).pull()
        for value in ("false", "true")
    )
    one, two = (artifact.tensors("train.safetensors") for artifact in (plain, begun))
    assert (two["ids"][:, 0] == 1).all() and two["ids"].shape[1] == one["ids"].shape[1]
    n = min(one["ids"].numel(), two["ids"][:, 1:].numel())
    for name in ("ids", "document"):
        assert torch.equal(two[name][:, 1:].flatten()[:n], one[name].flatten()[:n])
    assert torch.equal(two["document"][:, 0], two["document"][:, 1])
    code, _, err = saelink("cache", "data.prepend_bos=true")
    assert code == 1 and "data.prepend_bos=true: the tokenizer has no begin-of-text token" in err


def test_heads_outputs_are_a_hook_as_wide_as_all_of_them(tmp_path: Path, saelink: Run) -> None:
    """attn.hook_z [*, heads, d_head] as source and as target: encoded, explained, spliced back into the model."""
    import json

    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path / "wide"
    LlamaForCausalLM(LlamaConfig(**{**HEADED, "head_dim": 16})).save_pretrained(folder)
    write_tokenizer(folder)
    saes = tmp_path / "saes"
    for hook, width in (("attn.hook_z", 64), ("hook_resid_pre", D_MODEL), ("hook_mlp_out", D_MODEL)):
        write_sae(saes / f"blocks.1.{hook}", d_in=width)
    base = [f"model.path={folder}", f"sae.path={saes}", "sae.check=false", "connector=linear", "solver=exact"]
    code, _, err = saelink("evaluate", *base, "link=mlp_from_parts")
    assert code == 0, err
    target = ["link.name=heads", "link.sources=[hook_resid_pre]", "link.target=attn.hook_z"]
    code, _, err = saelink("evaluate", *base, *target, "eval.ce=true", "eval.ce_tokens=512", "eval.bootstrap=10")
    assert code == 0, err
    encoded = [artifact.facts for artifact in Store(tmp_path / "outputs").artifacts() if artifact.stage == "encode"]
    widths = {facts["hook_name"]: facts["width"] for facts in encoded}
    assert widths["blocks.1.attn.hook_z"] == 64 and widths["blocks.0.hook_resid_post"] == D_MODEL
    (ce,) = (json.loads(path.read_text()) for path in tmp_path.glob("outputs/evaluate/*/ce.json"))
    assert ce["zero"]["ce"] != ce["clean"]["ce"] != ce["sae"]["ce"]


UNMEASURED = {
    "bloom": "this model's block gives something else for copies of tokens",
    "mpt": "this model's block gives something else for copies of tokens",
    "gptneo": "this model's block gives something else for copies of tokens",
    "granite": "does not run from outputs of one block's modules",
}
"""What is said of links of which no effects can be measured."""


@pytest.mark.parametrize("link", ["attn", "block"])
@pytest.mark.parametrize("family", OPENED)
def test_a_copy_behind_its_sequence_is_the_token_with_something_taken_out(
    family: str, link: str, world: World, store: Store, tmp_path: Path
) -> None:
    """Against the bridge, one token at a time, every source hook held as it was."""
    write_family(FAMILIES[family], tmp_path / family)
    cfg = world.config(store.root, f"model.path={tmp_path / family}", f"link={link}")
    info = model_info(cfg, store)
    sources, target = link_of(cfg, store)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, len(WORDS), (3, 11), generator=generator)
    hooks = [*sources, target]
    with torch.inference_mode():
        acts = load_forward(cfg, info, hooks, "cpu")(ids)
        flat = [acts[hook].flatten(0, 1) for hook in hooks]
        given = cfg, info, sources, target, ids, torch.arange(33), flat[:-1], flat[-1], "cpu"
        if family in UNMEASURED:
            with pytest.raises(SaelinkError, match=UNMEASURED[family]):
                load_attended(*given)
            return
        block = load_attended(*given)
        token = torch.tensor([2, 2, 9, 10, 13, 30])
        side = torch.arange(6) % len(sources)
        taken = torch.randn(6, flat[0].shape[1], generator=generator)
        found = block.without(token, side, taken)
        bridge = load_bridge(cfg, info, "cpu")
        for number in range(6):
            sequence, at = divmod(int(token[number]), 11)
            kept: list[torch.Tensor] = []

            def hold(name: str, number: int = number, at: int = at, sequence: int = sequence) -> Any:
                def hook(tensor: torch.Tensor, **_: object) -> torch.Tensor:
                    tensor = tensor.clone()
                    tensor[0, at] = acts[name][sequence, at]
                    if name == sources[int(side[number])]:
                        tensor[0, at] -= taken[number]
                    return tensor

                return hook

            def keep(tensor: torch.Tensor, kept: list[torch.Tensor] = kept, **_: object) -> torch.Tensor:
                kept.append(tensor)
                return tensor

            held = [(name, hold(name)) for name in sources]
            bridge.run_with_hooks(ids[sequence][None], fwd_hooks=[*held, (target, keep)])
            expected = kept[0][0, at]
            assert torch.allclose(found[number], expected, atol=1e-4 * float(expected.norm())), number
            assert not torch.allclose(expected, acts[target][sequence, at], atol=1e-3), "taking it out does something"
