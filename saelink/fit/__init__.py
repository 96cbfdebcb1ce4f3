"""Fitting connectors: the products of latents, the lasso, solvers, penalties, warm starts."""
