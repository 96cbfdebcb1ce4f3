"""Makers of hostile files, a kind each: they fill the lair, and give what a user would do with it."""

from __future__ import annotations

import gzip
import io
import json
import operator
import os
import pickle
import random
import shutil
import struct
import subprocess
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

Use = Callable[[], Any]


class Trap(NamedTuple):
    """Where a case takes place."""

    lair: Path
    """The hostile files."""
    own: Path
    """Where saelink may write."""
    outside: Path
    """Where nothing may change."""


Maker = Callable[[random.Random, Trap], Use]

# --------------------------------------------------------------------------- pickles


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any):
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def payload(chance: random.Random, trap: Trap) -> Any:
    """An object that does something when it is unpickled the ordinary way."""
    import torch

    witness = trap.outside / f"ran{chance.randrange(10**6)}"
    inner = pickle.dumps(Calls(Path.touch, witness))
    return chance.choice([
        Calls(Path.touch, witness),
        Calls(os.system, f"touch {witness}"),
        Calls(subprocess.check_call, ["touch", str(witness)]),
        Calls(exec, f"open({str(witness)!r}, 'w')"),
        Calls(eval, f"open({str(witness)!r}, 'w')"),
        Calls(pickle.loads, inner),
        Calls(torch.storage._load_from_bytes, inner),  # noqa: SLF001 (a way around that was known once)
        Calls(__import__("socket").create_connection, ("127.0.0.1", 9)),
        Calls(shutil.rmtree, str(trap.outside)),
        Calls(operator.methodcaller("touch"), witness),
        Calls(partial(Path.touch, witness)),
        Calls(torch.hub.load_state_dict_from_url, "http://127.0.0.1:9/x"),
    ])  # fmt: skip


def packed(chance: random.Random, trap: Trap) -> bytes:
    """A payload as a file: torch's two forms, a bare pickle, alone or among tensors."""
    import torch

    bomb = payload(chance, trap)
    value = chance.choice(
        [bomb, {"encoder.weight": bomb}, {"bias": torch.zeros(3), "x": [bomb]}, [torch.zeros(2), bomb]]
    )
    if chance.random() < 0.2:
        return pickle.dumps(value, protocol=chance.randrange(6))
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=chance.random() < 0.6)
    return file.getvalue()


def pickles_as_saes(chance: random.Random, trap: Trap) -> Use:
    import numpy as np

    from saelink.saes.formats import identity, read_sae

    folder, data = trap.lair / "sae", packed(chance, trap)
    folder.mkdir()
    kind = chance.choice(["ae.pt", "x.pt", "params.npz", "sae_weights.safetensors", "sae.safetensors"])
    (folder / kind).write_bytes(data)
    if kind == "params.npz" and chance.random() < 0.7:
        np.savez(folder / kind, W_enc=np.array([payload(chance, trap)], dtype=object))
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoder", "k": 3}}))
    (folder / "cfg.json").write_text(json.dumps({"architecture": "topk", "k": 3, "d_in": 4, "d_sae": 8}))
    place = folder / kind if kind == "x.pt" else folder

    def use() -> None:
        identity(place)
        read_sae(place, "sae.path")

    return use


@cache
def model() -> Path:
    """A tiny model, made once."""
    import atexit

    from benchmarks.small_world import write_model

    folder = Path(tempfile.mkdtemp(prefix="saelink-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_model(folder)
    return folder


def read_model(folder: Path) -> None:
    from saelink.config.schema import ModelConfig, ModelSource
    from saelink.model.load import load_hf

    load_hf(ModelConfig(source=ModelSource.folder, path=str(folder), file=None))


def changed(path: Path, **entries: Any) -> None:
    """A JSON file with other entries."""
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def pickles_as_models(chance: random.Random, trap: Trap) -> Use:
    folder = shutil.copytree(model(), trap.lair / "model")
    weights, data = folder / "model.safetensors", packed(chance, trap)
    kind = chance.choice(["bin", "safetensors", "index", "beside"])
    if kind == "safetensors":
        weights.write_bytes(data)
    else:
        (folder / "pytorch_model.bin").write_bytes(data)
    if kind == "index":
        (folder / "pytorch_model.bin").rename(folder / "part.bin")
        index = {"metadata": {}, "weight_map": {"lm_head.weight": "part.bin"}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    if kind in ("bin", "index"):
        weights.unlink()
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).write_bytes(data)
    return partial(read_model, folder)


# --------------------------------------------------------------------------- headers


def header(chance: random.Random, trap: Trap) -> bytes:
    """A safetensors file that says something impossible of itself."""
    body = bytes(64)
    entry: Any = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    huge = 2 ** chance.choice([31, 32, 40, 62, 63])
    entries: Any = chance.choice([
        {"a": {**entry, "data_offsets": [0, huge]}},
        {"a": {**entry, "shape": [huge, huge]}},
        {"a": {**entry, "shape": [-1]}},
        {"a": entry, "b": entry},
        {"a": {**entry, "data_offsets": [16, 0]}},
        {"a": {**entry, "dtype": "F999"}},
        {f"../../{trap.outside.name}/x": entry},
        {str(trap.outside / "x"): entry},
        {"__metadata__": {"a": {"b": 1}}, "a": entry},
        {"a": {**entry, "shape": [[[1]]]}},
        {"a": {**entry, "shape": ["4"]}},
        [entry],
        "\x1b[2J",
        {"W_enc\x1b[31m\n": entry},
        {"a" * 10_000: entry},
    ])  # fmt: skip
    text = json.dumps(entries).encode()
    text = chance.choice([text, text, text, b"[" * 100_000, b'{"a":' * 30_000, b"\xff\xfe", b"", text + b" " * 200])
    length = chance.choice([len(text)] * 4 + [0, 1, len(text) + 10**6, 2**32, 2**63, 2**64 - 1])
    return struct.pack("<Q", length) + text + body


def headers(chance: random.Random, trap: Trap) -> Use:
    from saelink.connectors.exported import load_connector
    from saelink.saes.formats import read_sae
    from saelink.store.files import read_tensors

    data, kind = header(chance, trap), chance.choice(["sae", "model", "connector", "tensors"])
    folder = trap.lair / "files"
    if kind == "model":
        shutil.copytree(model(), folder)
        (folder / "model.safetensors").write_bytes(data)
        return partial(read_model, folder)
    folder.mkdir()
    if kind == "sae":
        (folder / "sae_weights.safetensors").write_bytes(data)
        (folder / "cfg.json").write_text(json.dumps({"architecture": "topk", "k": 3, "d_in": 4, "d_sae": 8}))
        return partial(read_sae, folder, "sae.path")
    (folder / "connector.safetensors").write_bytes(data)
    if kind == "tensors":
        return partial(read_tensors, folder / "connector.safetensors")
    from saelink.connectors.exported import exported_config
    from saelink.store.files import file_sha256, json_bytes

    hostile = str(trap.outside / "x")
    config = {"connector": {"name": chance.choice(["linear", hostile, "../../x", "${oc.env:HOME}", "os.system"])}}
    sides = {"sources": [{"d": chance.choice([4, -1, 2**62, "4"]), "scale": 1.0}], "target": {"scale": 1.0}}
    sealed = exported_config({**config, **sides}, file_sha256(folder / "connector.safetensors"))
    (folder / "cfg.json").write_bytes(json_bytes(sealed))
    return partial(load_connector, folder)


# --------------------------------------------------------------------------- code and templates


def code_beside_models(chance: random.Random, trap: Trap) -> Use:
    folder = shutil.copytree(model(), trap.lair / "model")
    witness = trap.outside / "ran"
    source = f"open({str(witness)!r}, 'w')\nclass Mine: pass\nclass MineConfig: pass\n"
    for name in ("modeling_mine", "configuration_mine", "tokenization_mine", "json", "torch", "__init__", "generate"):
        (folder / f"{name}.py").write_text(source)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate/generate.py").write_text(source)
    classes = {"AutoConfig": "configuration_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.Mine"}
    kind = chance.choice(["config", "kind", "tokenizer", "fetched", "generation", "adapter"])
    if kind == "config":
        changed(folder / "config.json", auto_map=classes)
    elif kind == "kind":
        changed(folder / "config.json", auto_map=classes, model_type="mine", architectures=["Mine"])
    elif kind == "tokenizer":
        tokenizer = {"AutoTokenizer": ["tokenization_mine.Mine", "tokenization_mine.Mine"]}
        changed(folder / "tokenizer_config.json", auto_map=tokenizer, tokenizer_class="Mine")
    elif kind == "fetched":
        elsewhere = {name: f"evil/repository--{place}" for name, place in classes.items()}
        changed(folder / "config.json", auto_map=elsewhere, _name_or_path="evil/repository", model_type="mine")
    elif kind == "generation":
        changed(folder / "config.json", custom_generate="evil/repository", trust_remote_code=True, auto_map=classes)
    else:
        adapter = {"peft_type": "LORA", "base_model_name_or_path": "evil/repository", "auto_mapping": classes}
        (folder / "adapter_config.json").write_text(json.dumps(adapter))
    return partial(read_model, folder)


def chat_templates(chance: random.Random, trap: Trap) -> Use:
    witness = str(trap.outside / "ran")
    attack = chance.choice([
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch W') }}",
        "{{ messages.__class__.__base__.__subclasses__()[0] }}",
        "{% set x = lipsum.__globals__['os'].popen('touch W') %}",
        "{{ raise_exception.__globals__['__builtins__']['open']('W', 'w') }}",
        "{{ strftime_now.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
        "{{ messages.append(messages) }}{{ messages }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ '%s' | format(messages.__init__.__globals__) }}",
        "{{ joiner.__init__.__globals__ }}",
        "{{ (''|attr('__class__')|attr('__mro__')) }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
    ]).replace("W", witness)  # fmt: skip
    from saelink.activations.chat import rendered
    from saelink.activations.documents import Documents
    from saelink.config.data import DataConfig, DataSource
    from saelink.model.load import load_tokenizer

    folder = shutil.copytree(model(), trap.lair / "model")
    (folder / "chat_template.jinja").write_text(attack)
    (trap.lair / "a.jsonl").write_text(json.dumps({"text": [{"role": "user", "content": "{{ 7 * 7 }}"}]}) + "\n")

    def use() -> None:
        from saelink.config.schema import ModelConfig, ModelSource

        tokenizer = load_tokenizer(ModelConfig(source=ModelSource.folder, path=str(folder), file=None))
        cfg = DataConfig(source=DataSource.files, path=str(trap.lair / "a.jsonl"), chat=True)
        assert "__subclasses__" not in "".join(Documents(cfg, rendered(tokenizer)))

    return use


def yaml_files(chance: random.Random, trap: Trap) -> Use:
    from saelink import configure

    witness = str(trap.outside / "ran")
    text = chance.choice([
        f"layer: !!python/object/apply:os.system ['touch {witness}']",
        f"layer: !!python/object/new:subprocess.Popen [[touch, {witness}]]",
        "layer: !!python/name:os.system",
        "layer: !!python/module:os",
        f"connector: {{_target_: os.system, command: 'touch {witness}'}}",
        f"data: {{_target_: pathlib.Path.touch, path: {witness}}}",
        "layer: ${oc.create:{a: 1}}",
        "data: {path: '${oc.decode:${oc.env:HOME}}'}",
        "sae: {files: {a: '${evil:1}'}}",
        "layer: ${oc.env:HOME}",
        "layer: " + "[" * 5000,
        "defaults: [../../../../etc/passwd]",
        f"defaults: [{trap.outside}/precious]",
        "defaults: [/hydra/callbacks@_global_: evil]",
        "layer: \x07",
        "runtime: {outputs: " + witness + "}\nlayer: -3",
        "wandb: {project: \"\\e[31m\"}",
        "%YAML 9.9\n---\nlayer: 1",
        "--- a\n--- b",
    ])  # fmt: skip
    (trap.lair / "budget").mkdir()
    (trap.lair / "budget/mine.yaml").write_text(chance.choice(["", "# @package _global_\n"]) + text + "\n")
    return partial(configure, f"hydra.searchpath=[{trap.lair.as_uri()}]", "budget=mine")


# --------------------------------------------------------------------------- text


def data_files(chance: random.Random, trap: Trap) -> Use:
    import pyarrow
    import pyarrow.parquet

    from saelink.activations.documents import Documents
    from saelink.config.data import DataConfig, DataSource

    folder = trap.lair / "data"
    folder.mkdir()
    (folder / "data.py").write_text(f"open({str(trap.outside / 'ran')!r}, 'w')")
    (folder / "dataset_infos.json.py").write_text(f"open({str(trap.outside / 'ran')!r}, 'w')")
    kind = chance.choice(["extension", "bomb", "link", "nested", "csv", "zip", "url", "pipe", "escape"])
    if kind == "extension":  # pyarrow once unpickled what a column's metadata holds
        field = pyarrow.field("text", pyarrow.string(), metadata={
            "ARROW:extension:name": "arrow.py_extension_type",
            "ARROW:extension:metadata": pickle.dumps(payload(chance, trap)),
        })  # fmt: skip
        table = pyarrow.table({"text": ["a b"]}, schema=pyarrow.schema([field]))
        pyarrow.parquet.write_table(table, folder / "a.parquet")
    elif kind == "bomb":
        line = json.dumps({"text": " " * 10**6}).encode() + b"\n"
        (folder / "a.jsonl.gz").write_bytes(gzip.compress(line * 20))
    elif kind == "link":
        (folder / "a.txt").symlink_to(chance.choice(["/proc/self/environ", "/dev/null", "a.txt", trap.outside]))
    elif kind == "nested":
        (folder / "a.jsonl").write_text('{"text":' * 50_000 + "\n")
    elif kind == "csv":
        (folder / "a.csv").write_text('text\n"' + "x" * 300_000 + '\n=cmd|"/c calc"!A1\n')
    elif kind == "zip":
        with zipfile.ZipFile(folder / "a.jsonl.gz", "w") as file:
            file.writestr(f"../../{trap.outside.name}/x", "x")
    elif kind == "url":
        (folder / "a.jsonl").write_text(json.dumps({"text": {"path": "http://127.0.0.1:9/x", "bytes": None}}) + "\n")
    elif kind == "pipe":
        os.mkfifo(folder / "a.jsonl")
    else:
        (folder / "a\x1b[2J\n.jsonl").write_text("{")
    cfg = DataConfig(source=DataSource.files, path=str(folder))

    def use() -> int:
        return sum(map(len, Documents(cfg)))

    return use


def marks(chance: random.Random) -> str:
    """A token or name that means something to whoever shows it."""
    return chance.choice([" ", "", "\t", "\N{ZERO WIDTH SPACE}"] * 2 + ["\n"]) + chance.choice([
        '=HYPERLINK("http://127.0.0.1:9/?"&A1,"x")', "+1+cmd|'/c calc'!A0", "-2+3", "@SUM(A1:A9)", "=1+1", "\uff1d1+1",
        "<script>alert(1)</script>", "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "]]>",
        "<!--", "'\"><svg onload=alert(1)>", "&lt;script&gt;", "\x1b]0;x\x07", "\x1b[2J\x1b[31m", "\x9b31m",
        "\u202egnp.exe", "a\rb", "a;b", 'a"b', "[x](javascript:alert(1))", "`x`", "![x](http://127.0.0.1:9/x.png)",
        "{{ 7 * 7 }}", "${HOME}", "\ud800", "\x00", "|cell|",
    ])  # fmt: skip
