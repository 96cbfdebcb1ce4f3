"""Text to tokens, tokens to activations, how large these are."""
