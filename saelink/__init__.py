"""saelink: how one set of SAE latents computes the next."""

__version__ = "0.1.0"
