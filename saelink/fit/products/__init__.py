"""Products of source and target latents over the training tokens: dense, and of the pairs that meet alone."""
