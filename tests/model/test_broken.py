"""Models that are broken or can't be used get one line and nothing is computed; what is computed is all the model's."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from saelink.errors import reason_of
from saelink.model.agreement import check_attention, compare
from saelink.model.describe import model_info
from saelink.model.forward import load_forward
from saelink.model.load import load_bridge, load_hf
from saelink.model.probe import look_inside
from saelink.store.store import Store

from helpers.families import FAMILIES, VOCABULARY, write_family
from helpers.world import Bomb, Run, World, write_llama

WEIGHTS = "model.safetensors"

CODE = {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"}

Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def changed(folder: Path, change: Change) -> Path:
    """The model folder with other tensors in its file."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(change(tensors), folder / WEIGHTS, {"format": "pt"})
    return folder


def renamed(old: str, new: str) -> Change:
    return lambda tensors: {name.replace(old, new, 1): tensor for name, tensor in tensors.items()}


def without(part: str) -> Change:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def filled(name: str, value: float) -> Change:
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[name].view(-1)[7] = value
        return tensors

    return change


def configured(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def cut(share: float) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(data[: int(len(data) * share)])

    return change


def own_tokenizer(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "MyTokenizer", "auto_map": {"AutoTokenizer": ["mine.MyTokenizer", None]}})
    )
    (folder / "tokenizer.json").unlink()
    configured(folder, model_type="mine", auto_map=CODE)


def code_in_weights(folder: Path) -> None:
    """A pickle that would make a file."""
    (folder / WEIGHTS).unlink()
    torch.save({"model.norm.weight": Bomb(folder.parent / "ran")}, folder / "pytorch_model.bin")


NORM = "model.layers.1.input_layernorm.weight"

BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "torch.compile": (
        lambda f: changed(f, lambda t: {f"_orig_mod.{name}": tensor for name, tensor in t.items()}),
        "21 of the model's 21 tensors have no values in its files: lm_head.weight, model.embed_tokens.weight, "
        "model.layers.0.input_layernorm.weight and 18 more; its files have them with _orig_mod. in their names: save "
        "the model without it, as model._orig_mod.save_pretrained(FOLDER) does",
    ),
    "parallel training": (
        lambda f: changed(f, lambda t: {f"module.{name}": tensor for name, tensor in t.items()}),
        "with module. in their names: save the model without it, as model.module.save_pretrained(FOLDER) does",
    ),
    "an unknown wrapper": (
        lambda f: changed(f, lambda t: {f"net.inner.{name}": tensor for name, tensor in t.items()}),
        "as model.net.inner.save_pretrained(FOLDER) does",
    ),
    "layers compiled by themselves": (
        lambda f: changed(f, renamed("layers.1.", "layers.1._orig_mod.")),
        "9 of the model's 21 tensors have no values in its files: model.layers.1.input_layernorm.weight, "
        "model.layers.1.mlp.down_proj.weight, model.layers.1.mlp.gate_proj.weight and 6 more; its files have them with "
        "_orig_mod. in their names: save the model without it",
    ),
    "a norm that is missing": (
        lambda f: changed(f, without(NORM)),
        f"1 of the model's 21 tensors has no values in its files: {NORM}; some of its files are missing",
    ),
    "an unembedding that is missing and not tied": (
        lambda f: changed(f, without("lm_head")),
        "1 of the model's 21 tensors has no values in its files: lm_head.weight",
    ),
    "another architecture": (
        lambda f: changed(f, renamed("mlp.up_proj", "mlp.fc1")),
        "its files have others, such as model.layers.0.mlp.fc1.weight",
    ),
    "a layer more than in the file": (lambda f: configured(f, num_hidden_layers=3), "9 of the model's 30 tensors have"),
    "a shape that does not fit": (
        lambda f: configured(f, vocab_size=VOCABULARY + 2),
        "2 of the model's 21 tensors have another shape in its files than its config.json says: lm_head.weight "
        "[18, 32] there, [20, 32] here; and model.embed_tokens.weight",
    ),
    "an MLP that does not fit": (lambda f: configured(f, intermediate_size=48), "6 of the model's 21 tensors have"),
    "a vocabulary that no file holds": (
        lambda f: configured(f, vocab_size=10**10),
        "its files are too small for its config.json (vocab_size=10000000000, hidden_size=32)",
    ),
    "layers that no file holds": (
        lambda f: configured(f, num_hidden_layers=10**8),
        "(num_hidden_layers=100000000, hidden",
    ),
    "an MLP that no file holds": (
        lambda f: configured(f, intermediate_size=10**9),
        "(intermediate_size=1000000000, h",
    ),
    "a config 100,000 deep": (
        lambda f: (f / "config.json").write_text('{"a": ' * 100_000 + "1" + "}" * 100_000),
        "can't be read (",
    ),
    "code in the weights": (code_in_weights, "its weights can't be read ("),
    "a file cut in the weights": (cut(0.6), "its weights can't be read (SafetensorError: "),
    "a file cut in the header": (cut(0.001), "its files are too small for its config.json"),
    "an empty file": (cut(0), "its weights can't be read (SafetensorError: "),
    "a file of something else": (
        lambda f: (f / WEIGHTS).write_bytes(b"<html>404</html>" * 100),
        "its weights can't be read (SafetensorError: ",
    ),
    "NaN": (
        lambda f: changed(f, filled(NORM, float("nan"))),
        f"1 of the model's 21 tensors has values that are not finite: {NORM}",
    ),
    "infinity": (lambda f: changed(f, filled("lm_head.weight", float("inf"))), "values that are not finite: lm_head"),
    "overflow": (lambda f: changed(f, lambda t: {n: x * 1e19 for n, x in t.items()}), "logits on a few tokens are not"),
    "quantised by what is not installed": (
        lambda f: configured(f, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "its weights can't be read (",
    ),
    "quantised by gptq": (
        lambda f: configured(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        "its weights can't be read (it needs a Python package that is not installed; ImportError: ",
    ),
    "code of its own": (
        lambda f: configured(f, model_type="mine", auto_map=CODE),
        "it brings code of its own, which is never run",
    ),
    "a tokenizer with code of its own": (
        own_tokenizer,
        "its tokenizer can't be read (it brings code of its own, which is never run",
    ),
    "an adapter beside the weights": (lambda f: (f / "adapter_config.json").write_text("{}"), "that is an adapter"),
    "an unknown architecture": (
        lambda f: configured(f, model_type="nothing"),
        "can't be read (ValueError: The checkpoint you are trying to load has model type `nothing` but",
    ),
    "sizes that are no numbers": (lambda f: configured(f, hidden_size="many"), "can't be read ("),
    "sizes that don't divide": (lambda f: configured(f, num_attention_heads=5, head_dim=None), "can't be read ("),
    "a config that is no object": (lambda f: (f / "config.json").write_text("[1]"), "can't be read ("),
    "a config that is no JSON": (lambda f: (f / "config.json").write_text("{"), "can't be read ("),
    "a tokenizer that is no JSON": (lambda f: (f / "tokenizer.json").write_text("{"), "its tokenizer can't be read ("),
    "a seq2seq model": (lambda f: configured(f, model_type="t5", auto_map={}), "can't be read ("),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_model_gets_one_line(
    fault: str, world: World, saelink: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(world.llama, tmp_path / "model")
    change, expected = BROKEN[fault]
    change(folder)
    (folder / "mine.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 10))
    code, out, err = saelink("cache", f"model.path={folder}")
    assert code == 1, out + err
    assert err.startswith(f"saelink: model.path={folder}: ") and err.count("\n") == 1, err
    assert expected in err
    assert not any(word in err for word in ("trust_remote_code", "pip install", "ignore_mismatched", "Please"))
    assert not (tmp_path / "ran").exists() and not list(tmp_path.glob("outputs/*/*/manifest.json"))


def test_a_broken_gguf_gets_one_line(world: World, saelink: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(world.llama, tmp_path / "model")
    for data in (b"", b"GGUF", b"GGUF" + bytes(range(256)) * 10, b"<html>404</html>" * 100):
        (folder / "x.gguf").write_bytes(data)
        code, _, err = saelink("cache", f"model.path={folder}", "model.file=x.gguf")
        assert code == 1 and err.startswith(f"saelink: model.path={folder}: its ") and err.count("\n") == 1, err


def test_the_cure_that_is_offered_cures(world: World, store: Store, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    class Wrapper(torch.nn.Module):
        def __init__(self, module: torch.nn.Module):
            super().__init__()
            self.module = module

    plain: Any = AutoModelForCausalLM.from_pretrained(world.llama)
    compiled: Any = torch.compile(plain)
    wrappers: list[Any] = [compiled.get_submodule("_orig_mod"), Wrapper(plain).module]
    for number, wrapped in enumerate(wrappers):
        folder = shutil.copytree(world.llama, tmp_path / str(number))
        (folder / WEIGHTS).unlink()
        wrapped.save_pretrained(folder)
        _, hf_model, _ = load_hf(world.config(store.root, f"model.path={folder}").model)
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), hf_model.parameters(), strict=True))


def overwritten(folder: Path, other: Path) -> None:
    """Its weights replaced by another model's, under the same name, size and time."""
    path = folder / WEIGHTS
    before = path.stat()
    path.write_bytes((other / WEIGHTS).read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns


def test_weights_replaced_meanwhile_are_noticed(world: World, store: Store, tmp_path: Path) -> None:
    """In one process: another model under the same path has another key, or is an error where the old one is meant."""
    other = write_llama(tmp_path / "other", seed=7)
    folder = shutil.copytree(world.llama, tmp_path / "model")
    cfg = world.config(store.root, f"model.path={folder}")
    info = model_info(cfg, store)
    overwritten(folder, other)
    with pytest.raises(ValueError, match="its files have changed since they were identified; run it again"):
        load_forward(cfg, info, ["blocks.1.hook_mlp_out"], "cpu")
    assert model_info(cfg, store).artifact.key != info.artifact.key


def test_weights_replaced_while_they_are_read(
    world: World, saelink: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    other = write_llama(tmp_path / "other", seed=7)
    folder = shutil.copytree(world.llama, tmp_path / "model")
    load = AutoModelForCausalLM.from_pretrained

    def slow(*args: Any, **settings: Any) -> Any:
        overwritten(folder, other)
        return load(*args, **settings)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", slow)
    code, _, err = saelink("cache", f"model.path={folder}")
    assert code == 1 and err.count("\n") == 1 and "its files have changed since they were identified" in err
    assert not list(tmp_path.glob("outputs/model/*/manifest.json"))


def test_tied_weights_are_one(world: World, store: Store, tmp_path: Path) -> None:
    """Whichever of the two names the file has."""
    folder = shutil.copytree(world.llama, tmp_path / "model")
    configured(folder, tie_word_embeddings=True)
    embedding = load_file(folder / WEIGHTS)["model.embed_tokens.weight"]
    changed(folder, lambda t: {n: x for n, x in t.items() if n != "lm_head.weight"})
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        _, hf_model, _ = load_hf(world.config(store.root, f"model.path={folder}").model)
        assert torch.equal(hf_model.lm_head.weight, embedding) and torch.equal(
            hf_model.model.embed_tokens.weight, embedding
        )
        changed(folder, renamed(name, "lm_head.weight"))
    changed(folder, without("lm_head"))
    with pytest.raises(ValueError, match=r"tensors have no values in its files: lm_head\.weight, model\.embed"):
        load_hf(world.config(store.root, f"model.path={folder}").model)


def test_what_libraries_remark_is_said(world: World, tmp_path: Path, saelink: Run) -> None:
    """And of a sound model nothing."""
    code, out, err = saelink("cache")
    assert code == 0 and "remark" not in out + err and "not part of the model" not in out + err
    folder = shutil.copytree(world.llama, tmp_path / "model")
    changed(folder, lambda t: t | {"model.extra.weight": torch.zeros(3)})
    configured(folder, tie_word_embeddings=True)  # the file has both, and they differ
    configured(folder, quantization_config={"quant_method": "folding"})
    code, out, err = saelink("cache", f"model.path={folder}")
    assert code == 0, err
    assert "1 tensors of its files are not part of the model: model.extra.weight\n" in out
    remarks = [line for line in out.splitlines() if "remark of a library: " in line]
    expected = ["Unknown quantization type, got folding", "both are present in the checkpoints with different values"]
    assert len(remarks) == 2 and all(any(text in line for line in remarks) for text in expected), remarks


@pytest.mark.parametrize("tokens", [1, 3, 7])
def test_a_vocabulary_of_few_tokens(tokens: int, world: World, store: Store, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = shutil.copytree(world.llama, tmp_path / "model")
    config = LlamaConfig.from_pretrained(folder)
    config.vocab_size = tokens
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    info = model_info(world.config(store.root, f"model.path={folder}"), store)
    assert info.vocabulary == tokens and "blocks.1.hook_mlp_out" in info.hooks


def test_tokens_beyond_the_embedding(world: World, tmp_path: Path, saelink: Run) -> None:
    """Of the text, and the one that joins documents."""
    from transformers import LlamaConfig, LlamaForCausalLM

    for lost, overrides, expected in (
        (1, [], "model.path={folder}: the tokenizer gives token 17, the model's embedding ends at 16"),
        (
            5,
            ["model.separator=sea"],
            "model.separator=sea: the tokenizer gives token 16, the model's embedding ends at 12",
        ),
        (18 - 1, [], "model.path={folder}: the tokenizer gives token 17, the model's embedding ends at 0"),
    ):
        folder = shutil.copytree(world.llama, tmp_path / f"model{lost}")
        config = LlamaConfig.from_pretrained(folder)
        config.vocab_size -= lost
        LlamaForCausalLM(config).save_pretrained(folder)
        code, _, err = saelink("cache", f"model.path={folder}", *overrides)
        assert code == 1 and err.count("\n") == 1 and expected.format(folder=folder) in err, err
    folder = shutil.copytree(world.llama, tmp_path / "added")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(folder)
    code, _, err = saelink("cache", f"model.path={folder}")
    assert code == 1 and err.count("\n") == 1
    assert f"model.separator=null: the tokenizer gives token {VOCABULARY}, the model's embedding ends at" in err


def test_a_model_of_more_than_text_does_not_install_anything(
    saelink: Run, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    folder = shutil.copytree(world.llama, tmp_path / "model")
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    started: list[Any] = []
    monkeypatch.setattr(subprocess, "check_call", lambda *args, **_: started.append(args))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = saelink("cache", f"model.path={folder}")
    assert code == 1 and "reads more than text, for which torchvision is needed" in err and err.count("\n") == 1, err
    assert not started


IN_PLACE = ("falcon", "llama", "granite", "opt", "gpt2")


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_hooks_acts_do_not_depend_on_what_else_is_asked_for(
    name: str, world: World, store: Store, tmp_path: Path
) -> None:
    folder = write_family(FAMILIES[name], tmp_path / "model")
    cfg = world.config(store.root, f"model.path={folder}")
    info = model_info(cfg, store)
    hooks = [f"blocks.{layer}.{hook}" for layer in range(2) for hook in (
        "hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post", "ln1.hook_normalized",
        "attn.hook_z")]  # fmt: skip
    hooks = [hook for hook in hooks if hook in info.hooks]
    ids = torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together = load_forward(cfg, info, hooks, "cpu")(ids)
        for hook in hooks:
            alone = load_forward(cfg, info, [hook], "cpu")(ids)
            assert torch.equal(alone[hook], together[hook]), hook


def test_one_key_has_one_content_whichever_link_made_it(saelink: Run, tmp_path: Path) -> None:
    """Falcon adds attention's output to the MLP's in place, behind its hook."""
    folder = write_family(FAMILIES["falcon"], tmp_path / "model")
    made = []
    for link in ("mlp", "block"):
        code, _, err = saelink("cache", f"model.path={folder}", f"link={link}", f"runtime.outputs={link}")
        assert code == 0, err
        artifacts = [a for a in Store(tmp_path / link).artifacts() if a.stage == "cache"]
        made.append({a.key: a for a in artifacts if a.manifest["recipe"]["hook_name"] == "blocks.1.hook_mlp_out"})
    ((key, one),), ((other, two),) = made[0].items(), made[1].items()
    assert key == other and one.manifest["files"] == two.manifest["files"]


def test_a_link_with_a_hook_that_can_not_be_compared(saelink: Run) -> None:
    code, _, err = saelink("cache", "sae=train", "link.target=attn.hook_rot_q")
    assert code == 1 and err.count("\n") == 1
    assert "link: blocks.1.attn.hook_rot_q is nothing that Hugging Face's own modules take or give" in err
    assert saelink("cache", "sae=train", "link.target=ln2.hook_normalized")[0] == 0, "up to the norm's gain it is"


def test_experts_can_be_verified(saelink: Run, tmp_path: Path) -> None:
    folder = write_family(FAMILIES["mixtral"], tmp_path / "model")
    small = ["l1_alpha=1e-3", "solver=exact", "verify.tokens=512", "verify.fit_tokens=512"]
    code, _, err = saelink("verify", f"model.path={folder}", *small)
    assert code == 0, err


@pytest.mark.parametrize("hook", ["attn.hook_out", "mlp.hook_out", "hook_out"])
@pytest.mark.parametrize("size", [1e-2, 3e-3])
def test_a_bridge_that_is_a_little_off_is_refused(hook: str, size: float, world: World, store: Store) -> None:
    """Whatever part of a block it is in; 1e-3 of a token's norm is allowed."""
    cfg = world.config(store.root)
    info = model_info(cfg, store)
    inside = look_inside(load_hf(cfg.model, info.artifact).hf_model)
    for factor, refused in ((size, True), (1e-5, False)):
        bridge = load_bridge(cfg, info, "cpu")
        point = bridge.hook_dict[f"blocks.0.{hook}"]
        point.add_hook(lambda x, factor=factor, **_: x * (1 + factor), is_permanent=True)
        if not refused:
            assert "blocks.1.hook_mlp_out" in compare("where", bridge, inside).names
            continue
        with pytest.raises(ValueError, match=r"^where: TransformerLens computes something else for Llama"):
            compare("where", bridge, inside)


def test_windows_are_seen_past(world: World, store: Store, tmp_path: Path) -> None:
    """A bridge that is right only on sequences shorter than the window of attention is refused."""
    from dataclasses import replace

    family = FAMILIES["mistral"]
    folders = [
        write_family(replace(family, settings=family.settings | {"sliding_window": window}), tmp_path / str(window))
        for window in (20, 60)
    ]
    cfgs = [world.config(store.root, f"model.path={folder}") for folder in folders]
    short, long = (look_inside(load_hf(cfg.model).hf_model) for cfg in cfgs)
    assert torch.allclose(short.logits, long.logits, atol=1e-5), "on the short probe they are the same"
    bridge = load_bridge(cfgs[1], model_info(cfgs[1], store), "cpu")
    with pytest.raises(ValueError, match="logits by "):
        compare("where", bridge, short)
    check_attention("where", "sdpa", short, short)


def test_a_librarys_advice_is_not_passed_on() -> None:
    said = reason_of(ValueError("\x1b[31mIt is broken.\x1b[0m\nPlease pass `trust_remote_code=True`. Or not."))
    assert said == "ValueError: It is broken"
    assert reason_of(KeyError()) == "KeyError" and len(reason_of(ValueError("x" * 999))) < 230
    assert reason_of(RuntimeError("You should do this")) == "RuntimeError"
