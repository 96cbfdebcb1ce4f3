"""Settings of graphs, interventions and circuits over several layers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class InnerEdges(Enum):
    """What the edges inside an MLP are."""

    causal = "causal"
    lasso = "lasso"
    connector = "connector"
    gradient = "gradient"


@dataclass
class CircuitConfig:
    """Graphs over several layers: saelink graph, intervene and circuit with layers=..."""

    edges: InnerEdges = InnerEdges.causal
    """Inside an MLP: causal (connector=linear solver=causal), lasso (solver=exact), the connector that the settings
    name, or gradient, which needs no fit: the MLP's own derivative on the prompt."""
    attention: bool = True
    """Latents of attn_out, and what heads move into them; false leaves attention's output unexplained."""
    nodes: int = 2000
    """At most this many latents and errors are kept in a graph."""
    alike: float = 0.8
    """Latents of the same hook, layer and token are one supernode of a prompt's graph where the cosines between their
    incoming and between their outgoing links are at least so much; 1 leaves each by itself."""
    inputs: int = 4
    """circuit: what is kept of what leads into a latent, and of what a latent leads to."""
    steps: int = 4
    """circuit: steps back from the latent, and forward."""
    sequences: int = 24
    """circuit: test sequences it is measured on, those in which the latent is most active."""
