"""A prompt as a graph: measured, pruned, written."""
