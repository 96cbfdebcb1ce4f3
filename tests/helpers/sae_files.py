"""SAEs as other tools save them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

D_IN, D_SAE, K = 12, 40, 5


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = numbers(300, D_IN, seed=9) * 2 + 0.7


def top_k(pre: torch.Tensor, k: int = K) -> torch.Tensor:
    values, places = pre.relu().topk(k, dim=1)
    return torch.zeros_like(pre).scatter(1, places, values)


def parts() -> dict[str, torch.Tensor]:
    return {
        "W_enc": numbers(D_IN, D_SAE, seed=1) / 3, "b_enc": numbers(D_SAE, seed=2) / 3,
        "W_dec": numbers(D_SAE, D_IN, seed=3), "b_dec": numbers(D_IN, seed=4),
    }  # fmt: skip


def write_sparsify(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    p = parts()
    fields = {"activation": "topk", "expansion_factor": 32, "num_latents": D_SAE, "k": K, "d_in": D_IN}
    (folder / "cfg.json").write_text(json.dumps(fields | {"normalize_decoder": True, "multi_topk": False} | config))
    tensors = {"encoder.weight": p["W_enc"].T, "encoder.bias": p["b_enc"], "W_dec": p["W_dec"], "b_dec": p["b_dec"]}
    if config.get("skip_connection"):
        tensors["W_skip"] = numbers(D_IN, D_IN, seed=5)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae.safetensors")
    return folder


def dictionary(kind: str) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """State dict, latents and reconstructions on X, by what dictionary_learning's classes do."""
    p = parts()
    linear = {"encoder.weight": p["W_enc"].T, "encoder.bias": p["b_enc"], "decoder.weight": p["W_dec"].T}
    centred = (X - p["b_dec"]) @ p["W_enc"]
    if kind == "AutoEncoder":  # its loader brings the decoder to unit length
        lengths = p["W_dec"].norm(dim=1)
        latents = (centred + p["b_enc"]).relu() * lengths
        return linear | {"bias": p["b_dec"]}, latents, latents / lengths @ p["W_dec"] + p["b_dec"]
    if kind == "AutoEncoderNew":
        latents = (X @ p["W_enc"] + p["b_enc"]).relu()
        state = linear | {"decoder.bias": p["b_dec"]}
    elif kind == "GatedAutoEncoder":
        r, gate, mag = (numbers(D_SAE, seed=seed) / 2 for seed in (5, 6, 7))
        latents = ((centred + gate) > 0) * (centred * r.exp() + mag).relu()
        state = {name: linear[name] for name in ("encoder.weight", "decoder.weight")}
        state |= {"decoder_bias": p["b_dec"], "r_mag": r, "gate_bias": gate, "mag_bias": mag}
    elif kind == "JumpReluAutoEncoder":
        threshold = numbers(D_SAE, seed=5).abs()
        pre = X @ p["W_enc"] + p["b_enc"]
        latents, state = (pre * (pre > threshold)).relu(), {**p, "threshold": threshold}
    elif kind == "AutoEncoderTopK":
        latents = top_k(centred + p["b_enc"])
        state = linear | {"b_dec": p["b_dec"], "k": torch.tensor(K), "threshold": torch.tensor(-1.0)}
    else:
        pre = (centred + p["b_enc"]).relu()
        latents = pre * (pre > 0.8)
        matryoshka = {**p, "group_sizes": torch.tensor([10, 30])}
        state = linear | {"b_dec": p["b_dec"]} if kind == "BatchTopKSAE" else matryoshka
        state |= {"k": torch.tensor(K), "threshold": torch.tensor(0.8)}
    return state, latents, latents @ p["W_dec"] + p["b_dec"]


def write_dictionary(folder: Path, kind: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    trainer = {"dict_class": kind, "activation_dim": D_IN, "dict_size": D_SAE, "k": K, "layer": 3}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    torch.save(dictionary(kind)[0], folder / "ae.pt")
    return folder


def gemma() -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    p = parts()
    threshold = numbers(D_SAE, seed=5).abs()
    pre = X @ p["W_enc"] + p["b_enc"]
    latents = pre.relu() * (pre > threshold)
    return {**p, "threshold": threshold}, latents, latents @ p["W_dec"] + p["b_dec"]


def write_gemma(folder: Path, generation: int, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    state, _, _ = gemma()
    if generation == 1:
        arrays: Any = {name: tensor.numpy() for name, tensor in state.items()}
        np.savez(folder / "params.npz", **arrays)
        return folder
    (folder / "config.json").write_text(json.dumps({"architecture": "jump_relu", "type": "sae", "l0": 60} | config))
    if config.get("affine_connection"):
        state["affine_skip_connection"] = numbers(D_IN, D_IN, seed=6)
    save_file({name.lower(): tensor for name, tensor in state.items()}, folder / "params.safetensors")
    return folder
