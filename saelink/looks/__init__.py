"""Where heads look: pairs of latents at query and key, and what they do to a head's pattern."""
