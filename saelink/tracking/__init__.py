"""Runs and sweeps in Weights & Biases, and the tables at a sweep's end."""
