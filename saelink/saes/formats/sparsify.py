"""EleutherAI's sparsify: `cfg.json` and `sae.safetensors`, TopK SAEs and (skip) transcoders."""

from __future__ import annotations

import json
from pathlib import Path

from saelink.saes.formats.base import UnreadableError, without_b_dec
from saelink.saes.sae import SAE

FOLDERS = [("cfg.json", "sae.safetensors")]

DESCRIPTIVE = ("init_seeds", "expansion_factor", "num_latents", "d_in")

UNREAD = ("optimizer_0.pt", "lr_scheduler.pt", "state.pt", "config.json")
"""What may lie beside it or above: the optimiser, the run's settings. Encoding depends on none of it."""

UNSUPPORTED = (
    "normalize_io",
    "divide_cross_layer",
    "train_post_encoder",
    "post_encoder_scale",
    "n_targets",
    "n_sources",
)


def read(folder: Path) -> SAE:
    from safetensors.torch import load_file

    config = json.loads((folder / "cfg.json").read_bytes())
    tensors = {name: tensor.float() for name, tensor in load_file(folder / "sae.safetensors").items()}
    activation = config.get("activation", "topk")
    if activation != "topk":
        raise UnreadableError(f"has activation={activation}; topk works")
    unknown = [name for name in UNSUPPORTED if config.get(name)]
    if unknown:
        raise UnreadableError(f"has {', '.join(unknown)}, settings of an unreleased version")
    if config.get("signed"):
        raise UnreadableError("has signed=true: latents of either sign are not what saelink explains")
    # Earlier versions kept a Linear: [d_out, d_sae].
    W_dec = tensors["W_dec"] if "W_dec" in tensors else tensors["decoder.weight"].T.contiguous()
    W_enc, b_enc, b_dec = tensors["encoder.weight"].T.contiguous(), tensors["encoder.bias"], tensors["b_dec"]
    transcodes = bool(config.get("transcode") or config.get("skip_connection"))
    skip = tensors["W_skip"].T.contiguous() if "W_skip" in tensors else None
    if not transcodes:
        b_enc = without_b_dec(W_enc, b_enc, b_dec)
    metadata = {"hook_name_out": ""} if transcodes else {}
    return SAE(W_enc, b_enc, W_dec, b_dec, int(config["k"]), None, "none", skip, metadata)
