"""A tiny model, text and SAEs on disk, for benches that run whole commands."""

from __future__ import annotations

import json
import random
from pathlib import Path

WORDS = ["the", "cat", "dog", "sat", "on", "mat", "old", "young", "former", "king", "of", "a", "ran", "to", "sea", "."]

D_MODEL = 16


def write_model(folder: Path) -> Path:
    """A random Llama of two blocks with a tokenizer of words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["<eot>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eot>", unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=D_MODEL, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.3, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_sae(folder: Path, seed: int, d_sae: int = 24, k: int = 4) -> Path:
    """A random TopK SAE in SAELens' format."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, D_MODEL, generator=generator), dim=1)
    tensors = {
        "W_enc": W_dec.T.contiguous(),
        "W_dec": W_dec,
        "b_enc": torch.zeros(d_sae),
        "b_dec": torch.zeros(D_MODEL),
    }
    save_file(tensors, folder / "sae_weights.safetensors")
    config = {"architecture": "topk", "d_in": D_MODEL, "d_sae": d_sae, "k": k, "apply_b_dec_to_input": True}
    config |= {"dtype": "float32", "device": "cpu", "normalize_activations": "none"}
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def write_world(folder: Path) -> Path:
    write_model(folder / "model")
    chance = random.Random(0)
    with (folder / "text.jsonl").open("w") as file:
        for _ in range(300):
            text = " ".join(chance.choices(WORDS, k=chance.randint(5, 40)))
            file.write(json.dumps({"text": text}) + "\n")
    for layer in range(2):
        for seed, hook in enumerate(("hook_resid_mid", "hook_mlp_out")):
            write_sae(folder / "saes" / f"blocks.{layer}.{hook}", 10 * layer + seed)
    return folder


def overrides(world: Path, outputs: Path | str) -> list[str]:
    """The settings that point a command at it."""
    return [
        "model=folder", f"model.path={world}/model", "data=files", f"data.path={world}/text.jsonl",
        "data.context_size=16", "sae=folder", f"sae.path={world}/saes", "sae.check=false", "eval.circuits=2",
        "runtime.forward_tokens=512", f"runtime.outputs={outputs}",
    ]  # fmt: skip
