"""Sparse latents: rows in memory and on disk, encoding, links between hooks, what latents fire on."""
