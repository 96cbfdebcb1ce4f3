"""Attention between latents: what a head is, the latents it moves, where it looks."""
