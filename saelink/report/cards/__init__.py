"""The cards of latents: what they fire on, what they are wired to, both side by side."""
