"""How time grows with tokens, active latents, targets and sources, and memory with the tokens."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.steps import ACTIVE, BATCH, connector_of, ours
from benchmarks.work import Row, in_turn, latents, split_of
from saelink.fit.products.dense import gram_of

STEPS = 2


def rows() -> Iterator[Row]:
    def step(d_source: int, d_target: int, active: int) -> Callable[[], object]:
        source, target = latents(BATCH * STEPS, d_source, active, 1), latents(BATCH * STEPS, d_target, active, 2)
        return ours(connector_of("linear", d_source, d_target), source, target, STEPS)

    def products(tokens: int) -> Callable[[], object]:
        split = split_of(latents(tokens, 1024, 20, 1), latents(tokens, 1024, 20, 2))
        return lambda: gram_of(split)

    yield _slope("Gram pass, tokens", [50_000, 100_000, 200_000], products, "linear: slope 1")
    yield _slope(
        "linear Adam step, active latents", [20, 40, 80, 160], lambda n: step(4096, 2048, n), "linear: slope at most 1"
    )
    yield _slope("linear Adam step, targets", [1024, 2048, 4096], lambda n: step(4096, n, ACTIVE), "linear: slope 1")
    yield _slope(
        f"linear Adam step, sources (1,024 targets, {ACTIVE} active)",
        [2048, 4096, 8192, 16384, 32768],
        lambda n: step(n, 1024, ACTIVE),
        "linear: slope at most 1",
    )


def _slope(what: str, sizes: list[int], side: Callable[[int], Callable[[], object]], target: str) -> Row:
    """Sizes against seconds, and the slope of their logarithms by least squares: 1 is linear."""
    spent = in_turn({f"{size:,}": side(size) for size in sizes}, 5)
    slope = float(np.polyfit(np.log(sizes), np.log(list(spent.values())), 1)[0])
    return Row(
        f"growth: {what}", target, f"slope {slope:.2f}", slope <= 1.1, {f"seconds at {k}": v for k, v in spent.items()}
    )


def memory(few: int = 1_000_000, many: int = 10_000_000) -> Iterator[Row]:
    """Peak memory of the processes that encode and that train, on a small model's text of two lengths."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_world(folder)
        for tokens in (few, many):
            found.append(_peaks(folder, tokens))
            for path in folder.glob("outputs"):
                path.rename(folder / f"outputs-{tokens}")
    for stage in found[0]:
        less, more = (peaks[stage] for peaks in found)
        yield Row(
            f"peak memory of {stage}, {many:,} tokens against {few:,}",
            "within 10%",
            f"{more / less - 1:+.1%}",
            more <= 1.1 * less,
            {f"bytes at {few:,}": less, f"bytes at {many:,}": more},
        )


WORDS = [f"w{i}" for i in range(500)]
D_MODEL, D_SAE, K = 16, 256, 16


def _write_world(folder: Path) -> None:
    """A small random Llama with its tokenizer, and random SAEs for the hooks of its MLPs."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": D_MODEL,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    shape |= {"max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0}
    config = LlamaConfig(vocab_size=len(WORDS) + 2, **shape)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    vocabulary = {word: i for i, word in enumerate(["<eot>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eot>", unk_token="<unk>")
    fast.save_pretrained(folder / "model")
    for hook in ("resid_mid", "mlp_out"):
        sae = folder / "saes" / f"blocks.1.hook_{hook}"
        sae.mkdir(parents=True)
        W = torch.nn.functional.normalize(torch.randn(D_SAE, D_MODEL), dim=1)
        zero = {"b_enc": torch.zeros(D_SAE), "b_dec": torch.zeros(D_MODEL)}
        save_file({"W_enc": W.T.contiguous(), "W_dec": W, **zero}, sae / "sae_weights.safetensors")
        facts = {"architecture": "topk", "d_in": D_MODEL, "d_sae": D_SAE, "k": K, "apply_b_dec_to_input": True}
        facts |= {"dtype": "float32", "device": "cpu", "normalize_activations": "none"}
        (sae / "cfg.json").write_text(json.dumps(facts))
    words = random.Random(0)
    with (folder / "text.jsonl").open("w") as file:
        for _ in range(60_000):
            file.write(json.dumps({"text": " ".join(words.choices(WORDS, k=200))}) + "\n")


def _peaks(folder: Path, tokens: int) -> dict[str, int]:
    settings = [
        "model=folder", f"model.path={folder}/model", "data=files", f"data.path={folder}/text.jsonl",
        "data.context_size=128", f"data.max_tokens={tokens}", "sae=folder", f"sae.path={folder}/saes",
        f"runtime.outputs={folder}/outputs", "wandb.mode=disabled", "layer=1",
    ]  # fmt: skip
    adam = ["solver=adam", "solver.tokens=2000000"]
    for command in (["cache"], ["encode"], ["train"], ["train", *adam], ["train", "connector=mlp", *adam]):
        subprocess.run([sys.executable, "-m", "saelink", *command, *settings], check=True, capture_output=True)
    peaks: dict[str, int] = {}
    for path in (folder / "outputs").glob("*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        name = manifest["stage"]
        if name == "train":
            recipe = manifest["recipe"]
            name = f"train, {recipe['connector']['name']} by {recipe['solver']['name']}"
        if name == "encode" or name.startswith("train"):
            peaks[name] = max(peaks.get(name, 0), manifest["provenance"]["peak_memory_bytes"])
    return peaks
