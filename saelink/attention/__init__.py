"""Attention between latents: what a head is, and the latents that it moves."""
