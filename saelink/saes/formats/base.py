"""What the formats share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saelink.errors import SaelinkError

if TYPE_CHECKING:
    import torch


class UnreadableError(SaelinkError):
    """Why an SAE can't be read; goes behind "the SAE in <folder>"."""


def without_b_dec(W_enc: torch.Tensor, b_enc: torch.Tensor, b_dec: torch.Tensor) -> torch.Tensor:
    """b_enc of an SAE that subtracts b_dec from its input: (x - b_dec) W + b = x W + (b - b_dec W)."""
    if b_dec.shape != W_enc.shape[:1]:
        raise UnreadableError(f"has b_dec {list(b_dec.shape)}, which can't be taken from its input of {len(W_enc)}")
    return b_enc - b_dec @ W_enc


def with_unit_decoder(
    W_enc: torch.Tensor, b_enc: torch.Tensor, W_dec: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Encoder and decoder with the decoder's rows at length 1, their lengths in the latents.

    A latent whose row is zero, which nothing decodes, is never active.
    """
    lengths = W_dec.norm(dim=1)
    return W_enc * lengths, b_enc * lengths, W_dec / lengths.where(lengths > 0, 1)[:, None]
