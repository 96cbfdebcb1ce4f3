"""The SAEs of the original work: torch files that hold an object of one of two classes, read without running code.

The files name classes of a package that is not needed here. torch's weights-only reader refuses every class it is
not told of; it is told of two stand-ins, which have no code, and what it put into them is checked attribute by
attribute.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saelink.saes.formats.base import UnreadableError
from saelink.saes.sae import SAE

SUFFIXES = (".pt",)

MODULE = "autoencoders.learned_dict"


class TiedSAE:
    """Stand-in: relu(encoder x + encoder_bias), decoded by the row-normalised encoder."""


class UntiedSAE:
    """Stand-in: the same with a decoder of its own."""


TENSORS = {"encoder": 2, "decoder": 2, "encoder_bias": 1}
"""Attribute -> dimensions."""

FLAGS: dict[str, type] = {"norm_encoder": bool, "n_feats": int, "activation_size": int}


def read(path: Path) -> SAE:
    """The SAE of one file.

    Raises UnreadableError for a broken one, and for all but a TiedSAE or UntiedSAE with the attributes above.
    """
    import torch

    stand_ins: list[Any] = [(kind, f"{MODULE}.{kind.__name__}") for kind in (TiedSAE, UntiedSAE)]
    try:
        with torch.serialization.safe_globals(stand_ins):
            # The files exist in no other form. weights_only: nothing in them is called but the two stand-ins above.
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every way in which a hostile or broken file can fail ends here, with nothing run
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise UnreadableError(f"is refused: it is no plain TiedSAE or UntiedSAE ({reason})") from None
    if type(loaded) not in (TiedSAE, UntiedSAE):
        raise UnreadableError(f"is refused: it holds {type(loaded).__name__}, no TiedSAE or UntiedSAE")
    attributes = dict(vars(loaded))
    for name, value in attributes.items():
        if name in TENSORS:
            good = isinstance(value, torch.Tensor) and value.layout is torch.strided and value.is_floating_point()
            good = good and value.dim() == TENSORS[name]
        else:
            good = name in FLAGS and type(value) is FLAGS[name]
        if not good:
            raise UnreadableError(f"is refused: attribute {name} is a {type(value).__name__}")
    wanted = ["encoder", "encoder_bias"] + (["decoder"] if isinstance(loaded, UntiedSAE) else [])
    missing = [name for name in wanted if name not in attributes]
    if missing:
        raise UnreadableError(f"is refused: it has no {', '.join(missing)}")
    encoder = attributes["encoder"].detach().float()
    bias = attributes["encoder_bias"].detach().float()
    decoder = attributes["decoder"].detach().float() if isinstance(loaded, UntiedSAE) else encoder
    if decoder.shape != encoder.shape or bias.shape != encoder.shape[:1]:
        raise UnreadableError("is refused: the shapes of its tensors do not fit together")
    unit = torch.nn.functional.normalize
    if isinstance(loaded, TiedSAE) and attributes.get("norm_encoder"):
        encoder = unit(encoder, dim=1)
    return SAE(encoder.T.contiguous(), bias, unit(decoder, dim=1), torch.zeros(encoder.shape[1]))
