"""Attention between latents: where a head looks (QK)."""
