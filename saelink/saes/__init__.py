"""Sparse autoencoders: what one computes, the files they come in, which one a hook has, training one."""
