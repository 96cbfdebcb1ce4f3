"""What a prompt's graph says of a change: handed on from node to node by the graph's links, to the next tokens.

A latent that gains b of its activation a hands on b / a of each of its links. Latents that are silent on the prompt
stay silent, those that are active don't fall below 0, and what is held in the graph (patterns, norms, errors, which
latents are active) stays as it is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from saelink.circuits.prompt import Prompt, Reader


class Predicted(NamedTuple):
    """What changes by the graph."""

    change: torch.Tensor
    """[size] of every latent's activation, raw."""
    logits: torch.Tensor
    """[next tokens] of their logits, each less the mean logit."""


def predicted(prompt: Prompt, changes: dict[int, float], clamped: bool = True) -> Predicted:
    """What changes where the activations of some latents, by node, change by so much; nothing else moves these nodes.

    With `clamped` false latents may fall below 0: the plain sum over all paths of the graph.
    """
    writers = prompt.writers
    change = torch.zeros(prompt.size)
    stream = torch.zeros_like(prompt.acts[0].resid_pre)
    for layer in prompt.acts:
        parts = prompt.parts.get(layer)
        if parts is None:
            continue
        before = stream.clone()
        if parts.attn is not None:
            nodes = writers.latents_of((layer, "attn"))
            latents = writers.pieces[layer, "attn"].latents
            gain = torch.zeros(len(latents.values))
            if bool(stream.any()):
                gain = prompt.moving(layer).moved(stream)[latents.row_of, latents.indices]
            _settle(prompt, change, nodes, gain, changes, clamped)
            _write(prompt, change, nodes, stream)
        rows, first = prompt.sources[layer], prompt.source_begin[layer]
        reader, read = Reader(parts.source), before if prompt.model.parallel else stream
        scale = reader.scale(prompt.here(layer).x)
        gain = ((read / scale[:, None])[rows.row_of] * reader.E.T[rows.indices]).sum(1)
        sources = range(first, first + len(rows.values))
        _settle(prompt, change, sources, gain, changes, clamped)
        nodes = writers.latents_of((layer, "mlp"))
        gain = parts.inside.moved(prompt.here(layer), change[sources.start : sources.stop])
        _settle(prompt, change, nodes, gain, changes, clamped)
        _write(prompt, change, nodes, stream)
    logits = torch.zeros(0)
    if prompt.gradients is not None:
        logits = (prompt.gradients.gradient.to(stream) * stream).sum((1, 2))
    return Predicted(change, logits)


def _settle(
    prompt: Prompt, change: torch.Tensor, nodes: range, gain: torch.Tensor, changes: dict[int, float], clamped: bool
) -> None:
    """Put what some latents gain into `change`, in place."""
    part = slice(nodes.start, nodes.stop)
    change[part] = torch.maximum(gain, -prompt.activation[part]) if clamped else gain
    for node, value in changes.items():
        if node in nodes:
            change[node] = value


def _write(prompt: Prompt, change: torch.Tensor, nodes: range, stream: torch.Tensor) -> None:
    """Add to the stream what changed latents write, in place."""
    part = slice(nodes.start, nodes.stop)
    share = change[part] / prompt.activation[part].clamp(min=1e-30)
    moved = share != 0
    vectors = prompt.writers.vectors[part][moved] * share[moved][:, None]
    stream.index_add_(0, prompt.writers.position[part][moved], vectors)
