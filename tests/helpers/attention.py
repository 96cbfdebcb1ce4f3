"""Attention of random models of many families."""

from __future__ import annotations

from pathlib import Path

import torch

from saelink.attention.heads import Attention, load_attention
from saelink.model.describe import model_info
from saelink.saes.sae import SAE
from saelink.store.store import Store

from helpers.families import FAMILIES, write_family
from helpers.world import D_MODEL, World

LAYER = 1

OPENED = ("gpt2", "neox", "neox sequential", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")

MORE = ("phi", "phi3", "stablelm", "olmo2", "opt", "starcoder2", "smollm3", "exaone4", "mixtral", "glm4")


def opened(name: str, world: World, store: Store, folder: Path, *overrides: str) -> Attention:
    """The attention of layer 1 of a random model, written into `folder`/model."""
    path = write_family(FAMILIES[name], folder / "model")
    cfg = world.config(store.root, f"model.path={path}", f"layer={LAYER}", *overrides)
    return load_attention(cfg, model_info(cfg, store), LAYER, "cpu")


def some_sae(seed: int, d_sae: int = 48, norm: str = "none") -> SAE:
    """A TopK SAE whose biases are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    W_enc, W_dec = (torch.randn(*s, generator=generator) for s in ((D_MODEL, d_sae), (d_sae, D_MODEL)))
    b_enc, b_dec = (torch.randn(n, generator=generator) for n in (d_sae, D_MODEL))
    return SAE(W_enc, b_enc, W_dec, b_dec, k=6, input_norm=norm)
