"""One prompt's graph over several layers, its links row by row: each target's are found when they are asked for.

With u a writer of the stream (see written), c_u what it writes at its position, t a position:

- into a source latent j of an MLP, at t:   c_u . e_j / n_j(t)                  u at t, written before the MLP reads
- into a latent i of attn_out, at q:        sum_h A^h(q, k) (c_u * g) W_V W_O e_i / (s(k) s'(q) n_i(q))   u at k <= q
- into a latent i of mlp_out, at t:         what circuit.edges says, from the MLP's source latents at t
- into a next token's logit:                c_u . gradient of (logit - mean logit) behind the last layer

n is what an SAE divides by that normalises what it reads, s and s' the norms in front of and behind attention, A the
pattern: all held as they are on the prompt. The first two are exact: with a constant (biases, b_dec) a latent's links
sum to its pre-activation. The third has a rest, which is an error. The fourth is of first order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from saelink.attention.heads import Heads, Seen
from saelink.circuits.inside import Here, Inside
from saelink.circuits.opened import Acts, Gradients, OpenModel
from saelink.circuits.written import Writers, without_first, wrote
from saelink.latents.rows import Rows
from saelink.latents.shards import encode_rows
from saelink.saes.sae import LAYER_NORM_EPS, SAE


class Reader:
    """How an SAE's latents read a stream: pre-activation = x . E / scale + b_enc."""

    def __init__(self, sae: SAE):
        self.sae = sae
        centred = sae.input_norm == "layer_norm"
        self.E = sae.W_enc - sae.W_enc.mean(0, keepdim=True) if centred else sae.W_enc

    def scale(self, acts: torch.Tensor) -> torch.Tensor:
        """[context] what activations [context, d] are divided by."""
        units = self.sae.units(acts)
        if units is None:
            return acts.new_ones(len(acts))
        return units.scale[:, 0] + (LAYER_NORM_EPS if self.sae.input_norm == "layer_norm" else 0.0)


class LayerParts(NamedTuple):
    """What one layer of the graph is explained by."""

    source: SAE
    """Of what the MLP reads,"""
    target: SAE
    """of what it gives,"""
    attn: SAE | None
    """and of what attention gives."""
    inside: Inside


class Links(NamedTuple):
    """Links into some nodes."""

    targets: torch.Tensor
    """[m] nodes."""
    sources: torch.Tensor
    """[n] nodes."""
    weights: torch.Tensor
    """[m, n] what each source adds to each target."""
    rest: torch.Tensor | None
    """[m] what the node `rest_node` adds, an error that is none of the sources; None where nothing is left."""
    constant: torch.Tensor
    """[m] biases: what is no node."""
    rest_node: int = -1


@dataclass
class Prompt:
    """A prompt in an opened model. Nodes are numbered: writers, source latents of MLPs, rests, next tokens."""

    model: OpenModel
    parts: dict[int, LayerParts]
    """By layer of the graph."""
    ids: torch.Tensor
    """[context]"""
    acts: dict[int, Acts]
    """By layer up to the last of the graph, [context, d] each."""
    drop: int
    """At so many first positions there are no latents."""
    gradients: Gradients | None = None
    """Of the next tokens behind the last layer; None where they are no nodes."""

    def __post_init__(self) -> None:
        n = len(self.ids)
        pieces = {}
        for layer, acts in self.acts.items():
            here = self.parts.get(layer)
            pieces[layer, "attn"] = wrote(here.attn if here else None, acts.attn_out, self.drop)
            pieces[layer, "mlp"] = wrote(here.target if here else None, acts.mlp_out, self.drop)
        self.writers = Writers(self.acts[0].resid_pre, pieces)
        self.sources: dict[int, Rows] = {}
        """By layer the source latents of its MLP, raw."""
        self.source_begin: dict[int, int] = {}
        at = len(self.writers)
        for layer, here in self.parts.items():
            rows = encode_rows(here.source, self.acts[layer].mlp_in(self.model.parallel))
            self.sources[layer] = without_first(rows, self.drop)
            self.source_begin[layer] = at
            at += len(self.sources[layer].values)
        self.rest_begin = {layer: at + i * n for i, layer in enumerate(self.parts)}
        self.logit_begin = at + len(self.parts) * n
        self.size = self.logit_begin + (0 if self.gradients is None else len(self.gradients.tokens))
        self._seen: dict[int, Seen] = {}
        self._here: dict[int, Here] = {}
        self._moving: dict[int, Moving] = {}

    @property
    def layers(self) -> list[int]:
        return list(self.parts)

    def seen(self, layer: int) -> Seen:
        """What the attention of a layer is given and does."""
        if layer not in self._seen:
            with torch.inference_mode():
                self._seen[layer] = self.model.attention(layer).look(self.ids[None].to(self.model.device))
        return self._seen[layer]

    def moving(self, layer: int) -> Moving:
        """What the heads of a layer make of the stream, as its latents of attn_out read it."""
        if layer not in self._moving:
            sae = self.parts[layer].attn
            assert sae is not None
            heads, out = self.model.attention(layer).heads, self.acts[layer].attn_out
            self._moving[layer] = Moving(heads, self.seen(layer), Reader(sae), out)
        return self._moving[layer]

    def here(self, layer: int) -> Here:
        """The MLP of a layer."""
        if layer not in self._here:
            acts, mlp = self.acts[layer], self.writers.pieces[layer, "mlp"].latents
            x = acts.mlp_in(self.model.parallel)
            self._here[layer] = Here(x, acts.mlp_out, self.sources[layer], mlp, {})
        return self._here[layer]

    def read_before(self, layer: int) -> int:
        """The writers below this number are what the MLP of a layer reads."""
        return self.writers.begin[layer, "attn" if self.model.parallel else "mlp"]

    @cached_property
    def activation(self) -> torch.Tensor:
        """[size] of the latents, raw; 0 of other nodes."""
        found = torch.zeros(self.size)
        for place, piece in self.writers.pieces.items():
            latents = self.writers.latents_of(place)
            found[latents.start : latents.stop] = piece.latents.values
        for layer, rows in self.sources.items():
            found[self.source_begin[layer] : self.source_begin[layer] + len(rows.values)] = rows.values
        return found

    @cached_property
    def position(self) -> torch.Tensor:
        """[size]"""
        n = len(self.ids)
        found = [self.writers.position, *(rows.row_of for rows in self.sources.values())]
        found += [torch.arange(n).repeat(len(self.parts)), torch.full((self.size - self.logit_begin,), n - 1)]
        return torch.cat(found)

    @cached_property
    def is_error(self) -> torch.Tensor:
        """[size] bool"""
        found = torch.zeros(self.size, dtype=torch.bool)
        found[: len(self.writers)] = self.writers.is_error
        first = min(self.rest_begin.values(), default=self.logit_begin)
        found[first : self.logit_begin] = True
        return found

    def into_logits(self) -> Links:
        """Links from all writers into the next tokens."""
        assert self.gradients is not None
        gradient = self.gradients.gradient.to(self.writers.vectors)
        weights = torch.empty(len(gradient), len(self.writers))
        for p in range(len(self.ids)):
            here = self.writers.at(p, len(self.writers))
            weights[:, here] = gradient[:, p] @ self.writers.vectors[here].T
        everything = self.writers.constant(len(self.writers))
        constant = torch.stack([(everything * g).sum() for g in gradient])
        targets = torch.arange(self.logit_begin, self.size)
        return Links(targets, torch.arange(len(self.writers)), weights, None, constant)

    def into_mlp(self, layer: int) -> Iterator[Links]:
        """Links into the latents of mlp_out, position by position; from the MLP's source latents."""
        here, latents = self.here(layer), self.writers.latents_of((layer, "mlp"))
        by_position = self.parts[layer].inside.weights(here)
        for p, weights in enumerate(by_position):
            first, last = int(here.target.offsets[p]), int(here.target.offsets[p + 1])
            if first == last:
                continue
            sources = torch.arange(int(here.source.offsets[p]), int(here.source.offsets[p + 1]))
            rest = here.target.values[first:last] - weights.sum(1)
            targets = torch.arange(latents.start + first, latents.start + last)
            nothing, node = torch.zeros(last - first), self.rest_begin[layer] + p
            yield Links(targets, sources + self.source_begin[layer], weights, rest, nothing, node)

    def into_sources(self, layer: int, among: torch.Tensor | None = None) -> Iterator[Links]:
        """Links into the source latents of an MLP, position by position; from the writers there.

        With `among` [size] bool from those that it has alone.
        """
        rows, before = self.sources[layer], self.read_before(layer)
        reader = Reader(self.parts[layer].source)
        scale = reader.scale(self.here(layer).x)
        constants = self.writers.constant(before)
        for p in range(len(self.ids)):
            first, last = int(rows.offsets[p]), int(rows.offsets[p + 1])
            if first == last:
                continue
            latent = rows.indices[first:last]
            E = reader.E[:, latent]
            sources = self.writers.at(p, before, among)
            weights = (self.writers.vectors[sources] @ E / scale[p]).T
            constant = constants[p] @ E / scale[p] + reader.sae.b_enc[latent]
            targets = torch.arange(first, last) + self.source_begin[layer]
            yield Links(targets, sources, weights, None, constant)

    def into_attention(
        self, layer: int, wanted: torch.Tensor | None = None, among: torch.Tensor | None = None
    ) -> Iterator[Links]:
        """Links into the latents of attn_out, position by position; from all writers that attention reads.

        `wanted` [positions] are the only positions that are asked for, `among` [size] bool the only writers.
        """
        if self.parts[layer].attn is None:
            return
        before, rows = self.writers.begin[layer, "attn"], self.writers.pieces[layer, "attn"].latents
        moving = self.moving(layer)
        by_position = [self.writers.at(p, before, among) for p in range(len(self.ids))]
        values = moving.values([self.writers.vectors[here] for here in by_position])
        everything = torch.cat(by_position)
        counts = torch.tensor([len(here) for here in by_position]).cumsum(0)
        constants = moving.constant(self.writers.constant(before))
        first_latent = self.writers.begin[layer, "attn"]
        for q in range(len(self.ids)) if wanted is None else wanted.tolist():
            first, last = int(rows.offsets[q]), int(rows.offsets[q + 1])
            if first == last:
                continue
            n, latent = int(counts[q]), rows.indices[first:last]
            weights = moving.read(values, q, latent)
            targets = torch.arange(first, last) + first_latent
            yield Links(targets, everything[:n], weights, None, constants[q, latent])


class Values(NamedTuple):
    """What heads make of pieces of the stream, by the pieces' position."""

    by_position: torch.Tensor
    """[context, most at one position, n_kv * d_head], the rest 0."""
    counts: list[int]
    """By position how many pieces there are."""
    filled: torch.Tensor | None
    """[pieces] which of the first two dimensions, taken as one, are pieces; None for all."""


class Moving:
    """What a layer's heads make of pieces of the stream on one prompt, as the latents of attn_out read it."""

    def __init__(self, heads: Heads, seen: Seen, reader: Reader, out: torch.Tensor):
        """out [context, d] at attn_out."""
        self.heads, self._reader = heads, reader
        self._pattern = seen.pattern[0]
        self._scale = heads.scale(seen.x[0])[:, 0]
        after = reader.scale(out)
        if heads.post is not None:
            after = after * heads.post.scale(seen.before[0])[:, 0]
        self._after, self._own = after, reader.scale(out)
        self._readers = heads.readers(reader.E)  # [n_heads, d_head, d_sae]

    def values(self, pieces: list[torch.Tensor]) -> Values:
        """What heads make of pieces, [pieces, d] by position."""
        counts = [len(each) for each in pieces]
        made = pieces[0].new_zeros(len(pieces), max(counts), self.heads.W_V[:, 0].numel())
        for p, each in enumerate(pieces):
            made[p, : len(each)] = self.heads.values(each).flatten(1) / self._scale[p]
        if min(counts) == max(counts):
            return Values(made, counts, None)
        filled = [torch.arange(n) + p * max(counts) for p, n in enumerate(counts)]
        return Values(made, counts, torch.cat(filled))

    def read(self, values: Values, q: int, latent: torch.Tensor) -> torch.Tensor:
        """[latents, pieces] what each piece up to q adds to these latents' pre-activations at q.

        What all heads read at a position is put together first: one product of it with the pieces there.
        """
        n_kv, m = self.heads.n_kv, len(latent)
        readers = self._readers[:, :, latent].view(n_kv, -1, self._readers.shape[1] * m)  # [n_kv, group, d_head * m]
        amount = self._pattern[:, q, : q + 1].view(n_kv, -1, q + 1).transpose(1, 2) / self._after[q]
        reads = (amount @ readers).view(n_kv, q + 1, -1, m).transpose(0, 1).flatten(1, 2)  # [q + 1, n_kv * d_head, m]
        found = torch.bmm(values.by_position[: q + 1], reads).view(-1, m)
        if values.filled is not None:
            found = found[values.filled[: sum(values.counts[: q + 1])]]
        return found.T

    def moved(self, stream: torch.Tensor) -> torch.Tensor:
        """[context, d_sae] the same of a whole stream [context, d], at every position and for all latents."""
        values = (self.heads.values(stream) / self._scale[:, None, None])[:, self.heads.kv_of]
        z = torch.einsum("hqk,khe->qhe", self._pattern, values)
        return z.flatten(1) @ self._readers.flatten(0, 1) / self._after[:, None]

    def constant(self, stream: torch.Tensor) -> torch.Tensor:
        """[context, d_sae] what is no writer's: a constant stream, and the biases of norms, heads and SAE."""
        heads, E = self.heads, self._reader.E
        found = self.moved(stream)
        for constant in heads.constant_values().values():
            everywhere = constant[heads.kv_of].flatten() @ self._readers.flatten(0, 1)
            found = found + everywhere / self._after[:, None]
        found = found + (heads.out_bias @ heads.post_encoder(E)) / self._after[:, None]
        shift = 0.0 if heads.post is None else heads.post.shift @ E / self._own[:, None]
        return found + shift + self._reader.sae.b_enc
