"""Influence on the next tokens over all layers, what is kept by it, and how much of a graph is error.

Influence and pruning are those of E. Ameisen et al., "Circuit Tracing: Revealing Computational Graphs in Language
Models" (2025): each node's incoming weights as shares of their absolute sum, followed back from the next tokens'
probabilities. Links are made anew where they are needed and never held all at once, so that memory grows with the
nodes and not with their pairs. Constants are no nodes and take no share.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from saelink.circuits.prompt import Links, Prompt


class Scores(NamedTuple):
    """How much of a prompt's graph is explained."""

    replacement: float
    """Influence of tokens, of that of tokens and errors."""
    completeness: float
    """The share of a node's input that is no error, weighed by influence, over nodes that have an input."""
    completeness_all: float
    """The same as circuit-tracer has it: tokens and errors count as nodes without error."""


class Influence(NamedTuple):
    """Of a whole graph, before anything is left out."""

    value: torch.Tensor
    """[size] of each node on the next tokens."""
    error: torch.Tensor
    """[size] the share of its input that is error; 0 of what has no input."""
    whole: torch.Tensor
    """[size] the absolute sum of what leads into it."""
    scores: Scores


def rows_down(prompt: Prompt, wanted: torch.Tensor | None = None) -> Iterator[Links]:
    """All links, those into later nodes first: when a node is a target, all it leads to have been one before.

    `wanted` [size] bool: positions of attention at which none is wanted are passed over, and so are other writers than
    these in front of attention and MLPs.
    """
    yield prompt.into_logits()
    for layer in reversed(prompt.layers):
        yield from prompt.into_mlp(layer)
        yield from prompt.into_sources(layer, wanted)
        if prompt.parts[layer].attn is not None:
            positions = None
            if wanted is not None:
                latents = prompt.writers.latents_of((layer, "attn"))
                mine = torch.arange(latents.start, latents.stop)
                positions = prompt.position[mine[wanted[mine]]].unique()
            yield from prompt.into_attention(layer, positions, wanted)


def influence_of(prompt: Prompt) -> Influence:
    """The influence of every node of a prompt's graph."""
    assert prompt.gradients is not None
    value, error, whole = (torch.zeros(prompt.size, dtype=torch.float64) for _ in range(3))
    counted = torch.stack([torch.ones(prompt.size), prompt.is_error.float()], 1)
    chances = torch.tensor(prompt.gradients.probabilities, dtype=torch.float64)
    value[prompt.logit_begin :] = chances / chances.sum()
    for links in rows_down(prompt):
        size = links.weights.abs()
        rest = torch.zeros(len(size)) if links.rest is None else links.rest.abs()
        sums = size @ counted[links.sources]
        total = (sums[:, 0] + rest).clamp(min=1e-30)
        handed = (value[links.targets] / total).float()
        value.index_add_(0, links.sources, (handed @ size).double())
        wrong = sums[:, 1] + rest
        error[links.targets], whole[links.targets] = (wrong / total).double(), total.double()
        if links.rest is not None:
            value[links.rest_node] += float(handed @ rest)
    has_input = whole > 0
    tokens, wrong = value[: prompt.writers.context].sum(), value[prompt.is_error].sum()
    complete = (value * (1 - error))[has_input].sum() / value[has_input].sum()
    everything = (value * (1 - error)).sum() / value.sum()
    scores = Scores((tokens / (tokens + wrong)).item(), complete.item(), everything.item())
    return Influence(value, error, whole, scores)


class Kept(NamedTuple):
    """What is left of a graph."""

    nodes: torch.Tensor
    """[n] ascending; tokens and next tokens among them whatever their influence."""
    so_far: dict[int, float]
    """By latent or error that is kept the share of all influence up to it, the most influential first."""
    source: torch.Tensor
    """[links]"""
    target: torch.Tensor
    weight: torch.Tensor
    share: float
    """What the kept nodes have of all influence of latents, errors and tokens."""


def kept_of(prompt: Prompt, influence: Influence, node_share: float, edge_share: float, most: int) -> Kept:
    """The most influential nodes until they have `node_share` together, at most `most`; of their links `edge_share`."""
    n, value = prompt.writers.context, influence.value.clone()
    always = torch.zeros(prompt.size, dtype=torch.bool)
    always[:n] = True
    always[prompt.logit_begin :] = True
    value[prompt.logit_begin :] = 0
    order = value.argsort(descending=True)
    so_far = value[order].cumsum(0) / value.sum()
    enough = int((so_far < node_share).sum()) + 1
    chosen = order[:enough]
    chosen = chosen[(chosen >= n) & (value[chosen] > 0)][:most]
    wanted = always.clone()
    wanted[chosen] = True
    source, target, weight, score = _links_among(prompt, influence, wanted)
    by = score.argsort(descending=True)
    counted = score[by].cumsum(0) / score.sum().clamp(min=1e-30)
    by = by[: int((counted < edge_share).sum()) + 1]
    source, target, weight = source[by], target[by], weight[by]
    while True:  # what leads to nothing any more goes, and then what led to that
        leads = always.clone()
        leads[source] = True
        still = leads[target]
        if bool(still.all()):
            break
        source, target, weight = source[still], target[still], weight[still]
    joined = always.clone()
    joined[source] = joined[target] = True
    place = dict(zip(order.tolist(), so_far.tolist(), strict=True))
    nodes = joined.nonzero().flatten()
    share = (value[nodes].sum() / value.sum()).item()
    return Kept(nodes, {int(i): min(place[int(i)], node_share) for i in chosen}, source, target, weight, share)


def _links_among(
    prompt: Prompt, influence: Influence, wanted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Source, target, weight and score of the links between wanted nodes; a score is a share of all influence."""
    found: list[tuple[torch.Tensor, ...]] = []
    for links in rows_down(prompt, wanted):
        rows, columns = wanted[links.targets].nonzero().flatten(), wanted[links.sources].nonzero().flatten()
        weights = links.weights[rows][:, columns]
        row, column = weights.nonzero(as_tuple=True)
        target, source, weight = links.targets[rows][row], links.sources[columns][column], weights[row, column]
        if links.rest is not None and wanted[links.rest_node] and len(rows):
            target, weight = torch.cat([target, links.targets[rows]]), torch.cat([weight, links.rest[rows]])
            source = torch.cat([source, torch.full((len(rows),), links.rest_node)])
        score = weight.abs() / influence.whole[target] * influence.value[target]
        found.append((source, target, weight, score))
    source, target, weight, score = (torch.cat(column) for column in zip(*found, strict=True))
    return source, target, weight, score
