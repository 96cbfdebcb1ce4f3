"""The SAEs of the original work: torch files that hold an object of one of two classes, read without running code.

The files name classes of a package that is not needed here. torch's weights-only reader refuses every class it is
not told of; it is told of two stand-ins, which have no code, and what it put into them is checked attribute by
attribute.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelink.store import SaelinkError

if TYPE_CHECKING:
    import torch

MODULE = "autoencoders.learned_dict"


class TiedSAE:
    """Stand-in: relu(encoder x + encoder_bias), decoded by the row-normalised encoder."""


class UntiedSAE:
    """Stand-in: the same with a decoder of its own."""


TENSORS = {"encoder": 2, "decoder": 2, "encoder_bias": 1}
"""Attribute -> dimensions."""

FLAGS: dict[str, type] = {"norm_encoder": bool, "n_feats": int, "activation_size": int}


def read_learned_dict(path: Path, field: str) -> dict[str, torch.Tensor]:
    """W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in], b_dec [d_in], float32, of one file.

    Raises SaelinkError, naming `field`, for a missing or broken file and for anything in it but a TiedSAE or an
    UntiedSAE with the attributes listed above.
    """
    import torch

    stand_ins: list[Any] = [(kind, f"{MODULE}.{kind.__name__}") for kind in (TiedSAE, UntiedSAE)]
    try:
        with torch.serialization.safe_globals(stand_ins):
            # The files exist in no other form. weights_only: nothing in them is called but the two stand-ins above.
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SaelinkError(f"{field}: {path} is missing") from None
    except Exception as error:  # every way in which a hostile or broken file can fail ends here, with nothing run
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise SaelinkError(f"{field}: {path.name} is refused: it is no plain TiedSAE or UntiedSAE ({reason})") from None
    if type(loaded) not in (TiedSAE, UntiedSAE):
        raise SaelinkError(
            f"{field}: {path.name} is refused: it holds {type(loaded).__name__}, no TiedSAE or UntiedSAE"
        )
    attributes = dict(vars(loaded))
    for name, value in attributes.items():
        if name in TENSORS:
            good = isinstance(value, torch.Tensor) and value.layout is torch.strided and value.is_floating_point()
            good = good and value.dim() == TENSORS[name]
        else:
            good = name in FLAGS and type(value) is FLAGS[name]
        if not good:
            raise SaelinkError(f"{field}: {path.name} is refused: attribute {name} is a {type(value).__name__}")
    wanted = ["encoder", "encoder_bias"] + (["decoder"] if isinstance(loaded, UntiedSAE) else [])
    missing = [name for name in wanted if name not in attributes]
    if missing:
        raise SaelinkError(f"{field}: {path.name} is refused: it has no {', '.join(missing)}")
    encoder = attributes["encoder"].detach().float()
    bias = attributes["encoder_bias"].detach().float()
    decoder = attributes["decoder"].detach().float() if isinstance(loaded, UntiedSAE) else encoder
    if decoder.shape != encoder.shape or bias.shape != encoder.shape[:1]:
        raise SaelinkError(f"{field}: {path.name} is refused: the shapes of its tensors do not fit together")
    unit = torch.nn.functional.normalize
    if isinstance(loaded, TiedSAE) and attributes.get("norm_encoder"):
        encoder = unit(encoder, dim=1)
    return {
        "W_enc": encoder.T.contiguous(),
        "b_enc": bias,
        "W_dec": unit(decoder, dim=1),
        "b_dec": torch.zeros(encoder.shape[1]),
    }
