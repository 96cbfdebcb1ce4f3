"""Gemma Scope: `params.npz` (the first) or `params.safetensors` (the second), JumpReLU SAEs and transcoders."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelink.saes.formats.base import UnreadableError
from saelink.saes.sae import SAE

if TYPE_CHECKING:
    import torch


FOLDERS = [("params.npz",), ("params.safetensors",)]

SUFFIXES = (".npz",)

BESIDE = ("config.json",)

DESCRIPTIVE = ()


def read(path: Path) -> SAE:
    tensors = _tensors(path)
    config: dict[str, Any] = {}
    if path.is_dir() and (path / "config.json").is_file():
        config = json.loads((path / "config.json").read_bytes())
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise UnreadableError(f"has architecture {config['architecture']}; jump_relu works")
    factor = tensors.get("scaling_factor")
    if factor is not None and not bool((factor == 1).all()):
        raise UnreadableError("has a scaling_factor other than 1")
    metadata = {"hook_name_out": config.get("hf_hook_point_out", "")} if config.get("type") == "transcoder" else {}
    W_enc, b_enc, W_dec, b_dec = (tensors[name] for name in ("w_enc", "b_enc", "w_dec", "b_dec"))
    skip = tensors.get("affine_skip_connection")
    return SAE(W_enc, b_enc, W_dec, b_dec, None, tensors["threshold"], "none", skip, metadata)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """By names in small letters: the two generations spell them differently."""
    import numpy as np
    import torch
    from safetensors.torch import load_file

    if path.is_dir() and (path / "params.safetensors").is_file():
        loaded = load_file(path / "params.safetensors")
        return {name.lower(): tensor.float() for name, tensor in loaded.items()}
    file = path / "params.npz" if path.is_dir() else path
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name.lower(): torch.from_numpy(np.asarray(arrays[name], dtype=np.float32)) for name in arrays}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise UnreadableError(f"is refused: {file.name} holds no plain arrays ({error})") from None
