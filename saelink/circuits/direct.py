"""Links of one latent on a prompt, summed over the places where it is active: into it, and out of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from saelink.circuits.nodes import Latent, nodes_of
from saelink.circuits.prompt import Links, Prompt, Reader
from saelink.latents.rows import Rows


@dataclass
class Sums:
    """What leads into a latent, summed over all its places."""

    places: int = 0
    activation: float = 0.0
    absolute: float = 0.0
    """The sum of absolute links,"""
    tokens: float = 0.0
    error: float = 0.0
    """and of those from tokens and errors."""
    latents: dict[Latent, float] = field(default_factory=dict[Latent, float])

    def strongest(self, most: int) -> list[tuple[Latent, float]]:
        """The latents that add or take most, each with its part of the activation."""
        order = sorted(self.latents, key=lambda each: -abs(self.latents[each]))[:most]
        return [(each, self.latents[each] / max(self.activation, 1e-30)) for each in order]


def links_into(prompt: Prompt, latent: Latent) -> Iterator[Links]:
    """The links into a latent's nodes alone."""
    nodes = nodes_of(prompt, latent)
    if not len(nodes):
        return
    if latent.kind == "attn":
        rows = prompt.into_attention(latent.layer, prompt.position[nodes])
    else:
        rows = prompt.into_mlp(latent.layer) if latent.kind == "mlp" else prompt.into_sources(latent.layer)
    for links in rows:
        mine = torch.isin(links.targets, nodes)
        if bool(mine.any()):
            rest = None if links.rest is None else links.rest[mine]
            yield links._replace(
                targets=links.targets[mine], weights=links.weights[mine], rest=rest, constant=links.constant[mine]
            )


def sums_into(prompt: Prompt, latent: Latent, sums: Sums) -> None:
    """Add what leads into a latent on one prompt."""
    for links in links_into(prompt, latent):
        sums.places += len(links.targets)
        sums.activation += float(prompt.activation[links.targets].sum())
        size = links.weights.abs().sum(0)
        wrong = float(size[prompt.is_error[links.sources]].sum())
        rest = 0.0 if links.rest is None else float(links.rest.abs().sum())
        sums.absolute += float(size.sum()) + rest
        sums.error += wrong + rest
        sums.tokens += float(size[links.sources < prompt.writers.context].sum())
        _by_latent(prompt, links.sources, links.weights.sum(0), sums.latents)


def _by_latent(prompt: Prompt, nodes: torch.Tensor, values: torch.Tensor, into: dict[Latent, float]) -> None:
    """Add values by node to those of the latents that the nodes are."""
    for kind, layer, first, rows in latent_spans(prompt):
        mine = (nodes >= first) & (nodes < first + len(rows.values))
        if not bool(mine.any()):
            continue
        numbers, place = torch.unique(rows.indices[nodes[mine] - first], return_inverse=True)
        sums = torch.zeros(len(numbers)).index_add_(0, place, values[mine].float())
        for number, value in zip(numbers.tolist(), sums.tolist(), strict=True):
            if value:
                latent = Latent(kind, layer, number)
                into[latent] = into.get(latent, 0.0) + value


def latent_spans(prompt: Prompt) -> Iterator[tuple[str, int, int, Rows]]:
    """Kind, layer, first node and rows of every set of latents."""
    for (layer, part), piece in prompt.writers.pieces.items():
        if layer in prompt.parts:
            yield part, layer, prompt.writers.begin[layer, part], piece.latents
    for layer, rows in prompt.sources.items():
        yield "source", layer, prompt.source_begin[layer], rows


def direct_links(prompt: Prompt, latent: Latent, into: dict[Latent, tuple[float, float]]) -> None:
    """By latent that it leads to directly what it adds there, and that latent's activation where it adds something.

    Both are sums over places, added to what `into` has.
    """
    nodes = nodes_of(prompt, latent)
    if not len(nodes):
        return
    added = torch.zeros(prompt.size)
    if latent.kind == "source":
        layer, first = latent.layer, prompt.source_begin[latent.layer]
        change = torch.zeros(len(prompt.sources[layer].values))
        change[nodes - first] = prompt.activation[nodes]
        span = prompt.writers.latents_of((layer, "mlp"))
        added[span.start : span.stop] = prompt.parts[layer].inside.moved(prompt.here(layer), change)
    else:
        _along_the_stream(prompt, nodes, added)
    touched = (added.abs() > 1e-6 * added.abs().max().clamp(min=1e-30)).nonzero().flatten()
    gained: dict[Latent, float] = {}
    held: dict[Latent, float] = {}
    _by_latent(prompt, touched, added[touched], gained)
    _by_latent(prompt, touched, prompt.activation[touched], held)
    for other, value in gained.items():
        before = into.get(other, (0.0, 0.0))
        into[other] = (before[0] + value, before[1] + held.get(other, 0.0))


def _along_the_stream(prompt: Prompt, nodes: torch.Tensor, added: torch.Tensor) -> None:
    """What writers add to the latents that read the stream behind them, into `added`."""
    writers = prompt.writers
    stream = torch.zeros_like(prompt.acts[0].resid_pre)
    stream.index_add_(0, writers.position[nodes], writers.vectors[nodes])
    for layer, parts in prompt.parts.items():
        if parts.attn is not None and int(nodes[0]) < writers.begin[layer, "attn"]:
            span, rows = writers.latents_of((layer, "attn")), writers.pieces[layer, "attn"].latents
            gain = prompt.moving(layer).moved(stream)
            added[span.start : span.stop] = gain[rows.row_of, rows.indices]
        if int(nodes[0]) < prompt.read_before(layer):
            rows, first = prompt.sources[layer], prompt.source_begin[layer]
            reader = Reader(parts.source)
            read = stream / reader.scale(prompt.here(layer).x)[:, None]
            added[first : first + len(rows.values)] = (read[rows.row_of] * reader.E.T[rows.indices]).sum(1)
