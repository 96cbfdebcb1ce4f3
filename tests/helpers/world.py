"""A small world: random two-layer models, a word-level tokenizer, made-up text, random SAEs; no download."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import save_file

from saelink.compose import register
from saelink.config.files import conf_dir
from saelink.config.schema import Config

TESTS = Path(__file__).parent.parent
"""What a process that uses these helpers needs on its path."""


WORDS = ["the", "cat", "dog", "sat", "on", "mat", "old", "young", "former", "king", "of", "a", "ran", "to", "sea", "."]


D_MODEL = 32


ANYWHERE = "outputs-of-no-test"
"""The folder of artifacts that a composed configuration has until a test gives it one."""


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<eot>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eot>", unk_token="<unk>")
    fast.save_pretrained(folder)


def write_llama(folder: Path, seed: int = 0) -> Path:
    """A sequential block: the MLP reads resid_mid."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS) + 2,
        hidden_size=D_MODEL,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_neox(folder: Path, seed: int = 0) -> Path:
    """A parallel block: attention and MLP both read resid_pre."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=len(WORDS) + 2,
        hidden_size=D_MODEL,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,
        use_parallel_residual=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_text(path: Path, n: int = 400, seed: int = 0) -> Path:
    words = random.Random(seed)
    with path.open("w") as file:
        for _ in range(n):
            text = " ".join(words.choices(WORDS, k=words.randint(5, 40)))
            file.write(json.dumps({"text": text, "number": 1}) + "\n")
    return path


class Bomb:
    """What a malicious file does when it is loaded the ordinary way."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def write_sae(folder: Path, d_in: int = D_MODEL, d_sae: int = 48, k: int = 4, seed: int = 0, **config: Any) -> Path:
    """A random TopK SAE in SAELens' format."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
    tensors = {"W_enc": W_dec.T.contiguous(), "W_dec": W_dec, "b_enc": torch.zeros(d_sae), "b_dec": torch.zeros(d_in)}
    if config.get("architecture") == "jumprelu":
        tensors["threshold"] = torch.full((d_sae,), 0.1)
    save_file(tensors, folder / "sae_weights.safetensors")
    full = {"architecture": "topk", "d_in": d_in, "d_sae": d_sae, "k": k, "apply_b_dec_to_input": True}
    full |= {"dtype": "float32", "device": "cpu", "normalize_activations": "none", **config}
    (folder / "cfg.json").write_text(json.dumps(full))
    return folder


class World:
    """Files of the small world and the overrides that point saelink at them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.llama = write_llama(folder / "llama")
        self.neox = write_neox(folder / "neox")
        self.text = write_text(folder / "text.jsonl")
        for layer in range(2):
            for seed, hook in enumerate(("hook_resid_pre", "hook_resid_mid", "hook_mlp_out", "hook_attn_out")):
                write_sae(folder / "saes" / f"blocks.{layer}.{hook}", seed=10 * layer + seed)
        write_sae(folder / "saes" / "blocks.1.hook_resid_post", seed=20)  # layer 0's is layer 1's resid_pre

    def overrides(self, outputs: Path | str, model: str = "llama") -> list[str]:
        return [
            "model=folder",
            f"model.path={self.folder / model}",
            "data=files",
            f"data.path={self.text}",
            "data.context_size=16",
            "sae=folder",
            f"sae.path={self.folder}/saes",
            "sae.check=false",  # random SAEs: they may reconstruct worse than the mean
            "solver=adam",
            "solver.tokens=32768",
            "solver.lr=1e-2",
            "solver.batch_tokens=256",
            "solver.validate_every=8192",
            "eval.circuits=3",
            "runtime.forward_tokens=512",
            f"runtime.outputs={outputs}",
            "wandb.mode=disabled",
        ]

    def config(self, outputs: Path | str, *overrides: str, model: str = "llama") -> Config:
        words = with_solver(self.overrides(ANYWHERE, model), overrides)
        cfg = deepcopy(_composed_once(tuple(words)))
        if cfg.runtime.outputs == ANYWHERE:
            cfg.runtime.outputs = str(outputs)
        return cfg


def with_solver(base: list[str], overrides: Sequence[str]) -> list[str]:
    """Both, without the base's solver where another is chosen."""
    other = any(override.startswith("solver=") for override in overrides)
    return [*(override for override in base if not (other and override.startswith("solver"))), *overrides]


@cache
def _composed_once(words: tuple[str, ...]) -> Config:
    """Hydra takes a fifth of a second; most tests ask for what another has asked for, in a folder of their own."""
    return composed(list(words))


def composed(overrides: list[str]) -> Config:
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = OmegaConf.to_object(compose("config", overrides))
    assert isinstance(cfg, Config)
    return cfg


Run = Callable[..., tuple[int, str, str]]
