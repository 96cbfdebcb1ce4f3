"""dictionary_learning: `ae.pt` and `config.json`; of the torch file only plain tensors are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from saelink.saes.formats.base import UnreadableError, with_unit_decoder, without_b_dec
from saelink.saes.sae import SAE

if TYPE_CHECKING:
    import torch


FOLDERS = [("config.json", "ae.pt")]

DESCRIPTIVE = ("buffer",)

UNREAD = ("eval_results.json", "checkpoints")
"""What may lie beside it: its measurements, earlier states. Encoding depends on none of it."""

CLASSES = (
    "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
)  # fmt: skip


def read(folder: Path) -> SAE:
    config = json.loads((folder / "config.json").read_bytes())
    trainer = config.get("trainer", config)
    kind = trainer["dict_class"]
    if kind not in CLASSES:
        raise UnreadableError(f"has dict_class {kind}; {', '.join(CLASSES)} work")
    tensors = _tensors(folder / "ae.pt")
    W_enc = tensors["W_enc"] if "W_enc" in tensors else tensors["encoder.weight"].T.contiguous()
    W_dec = tensors["W_dec"] if "W_dec" in tensors else tensors["decoder.weight"].T.contiguous()
    b_dec = next(tensors[name] for name in ("b_dec", "bias", "decoder_bias", "decoder.bias") if name in tensors)
    zero, threshold, k = b_dec.new_zeros(W_enc.shape[1]), None, None
    if kind == "GatedAutoEncoder":
        r, shift = tensors["r_mag"].exp(), without_b_dec(W_enc, zero, b_dec)
        gate, b_enc = tensors["gate_bias"] + shift, tensors["mag_bias"] + shift * r
        W_enc, threshold = W_enc * r, b_enc - gate * r
    else:
        b_enc = tensors["b_enc"] if "b_enc" in tensors else tensors.get("encoder.bias", zero)
        if kind in ("JumpReluAutoEncoder", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
            threshold = tensors["threshold"].expand(W_enc.shape[1]).contiguous()
        if kind not in ("JumpReluAutoEncoder", "AutoEncoderNew"):  # these two leave the input as it is
            b_enc = without_b_dec(W_enc, b_enc, b_dec)
        if kind == "AutoEncoder":  # which it brings to decoder directions of length 1 when it loads one
            W_enc, b_enc, W_dec = with_unit_decoder(W_enc, b_enc, W_dec)
        if kind == "AutoEncoderTopK":
            k = int(tensors["k"]) if "k" in tensors else int(trainer["k"])
    places = {"model_name": trainer.get("lm_name"), "layer": trainer.get("layer")}
    places["context_size"] = (config.get("buffer") or {}).get("ctx_len")
    metadata = {name: value for name, value in places.items() if value is not None}
    return SAE(W_enc, b_enc, W_dec, b_dec, k, threshold, metadata=metadata)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        # The files exist in no other form. weights_only: tensors and plain containers, nothing in them is called.
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every way in which a hostile or broken file can fail ends here, with nothing run
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise UnreadableError(f"is refused: {path.name} holds more than tensors ({reason})") from None
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise UnreadableError(f"is refused: {path.name} is no dict of tensors")
    return {name: tensor.detach().float() for name, tensor in loaded.items()}
