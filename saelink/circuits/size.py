"""What a graph over several layers takes in memory, from sizes alone."""

from __future__ import annotations

from typing import NamedTuple

from saelink import memory


class LayersSize(NamedTuple):
    """What a graph over several layers takes."""

    mlp: list[memory.Side]
    """Source and target of each layer's MLP,"""
    attention: list[memory.Side]
    """the SAEs of attn_out,"""
    shapes: list[memory.Shape]
    """and the connectors; none where edges are gradients."""
    depth: int
    """Blocks up to the last layer."""
    context: int
    """Tokens of the prompt."""

    @property
    def l0(self) -> float:
        """Latents that are active on a token, at all hooks."""
        return sum(max(side.l0, 1.0) for side in (*self.mlp, *self.attention))

    @property
    def written(self) -> float:
        """Pieces that are written into the stream."""
        return self.context * (self.l0 + 2 * self.depth + 1)


def over_layers(size: memory.ModelSize, n_layers: int, graph: LayersSize) -> float:
    """A prompt's graph over several layers: the model with what all its layers keep for the way back, SAEs and
    connectors, latents of attention as heads read them, and what every piece writes, with what reads it."""
    weights = sum(side.weights for side in (*graph.mlp, *graph.attention))
    weights += sum(8.0 * shape.weights + memory.EDGES_OF_TARGET * shape.d_target for shape in graph.shapes)
    weights += sum(4.0 * side.d_sae * size.d_model for side in graph.attention)
    kept = memory.gradients(size, n_layers, graph.context, graph.context)
    return memory.COMPILED + kept + weights + 4.0 * graph.written * (2.2 * size.d_model + 12)


def over_text(size: memory.ModelSize, n_layers: int, graph: LayersSize, rows: int) -> float:
    """Graphs of single sequences, one after another, and the model run with so many ablations at once: activations of
    all its parts up to the last layer."""
    ablated = size.passed(rows * graph.context, graph.context)
    ablated += 4.0 * rows * graph.context * 6 * size.d_model * graph.depth
    return over_layers(size, n_layers, graph) + ablated
