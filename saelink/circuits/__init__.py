"""Circuits over several layers: prompts as graphs, what these predict of interventions, ancestors of a latent."""
