"""A transcoder's folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from helpers.world import D_MODEL

D_SAE = 24


def write_transcoder(folder: Path, d_in: int = D_MODEL, skip: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    sizes = {"W_enc": (d_in, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_MODEL), "b_dec": (D_MODEL,)}
    sizes |= {"W_skip": (D_MODEL, d_in)} if skip else {}
    tensors = {name: torch.randn(size, generator=generator) / 8 for name, size in sizes.items()}
    folder.mkdir(parents=True)
    config = {"architecture": "skip_transcoder" if skip else "transcoder", "apply_b_dec_to_input": False}
    (folder / "cfg.json").write_text(json.dumps(config | {"d_in": d_in, "d_sae": D_SAE, "d_out": D_MODEL}))
    save_file(tensors, folder / "sae_weights.safetensors")
    return tensors
