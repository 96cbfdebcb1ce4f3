"""What a change does where things move that a prompt's graph holds: the ladder between graph and model.

A graph hands changes on by its latents alone; the errors of its SAEs, attention's patterns and its norms stay as they
are. Here any of these move too, to first order: the stream is followed as vectors, through the MLPs' own derivatives.
With nothing free it is the graph with gradient edges, with everything free the first order of the model itself. So the
steps between say what a graph loses by what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from saelink.circuits.prompt import Prompt, Reader
from saelink.latents.rows import Rows
from saelink.saes.sae import SAE


class Free(NamedTuple):
    """What moves."""

    mlp_in: bool = False
    """The error of what MLPs read,"""
    mlp: bool = False
    """of what they give,"""
    attn: bool = False
    """and of what attention gives."""
    norms: bool = False
    """The scales of the norms around attention, and what SAEs divide by that normalise what they read."""
    patterns: bool = False
    """Where heads look; with it the norms around attention."""


ERRORS = Free(mlp_in=True, mlp=True, attn=True)
"""All errors move."""

EVERYTHING = Free(True, True, True, True, True)


def unheld(prompt: Prompt, changes: dict[int, float], free: Free) -> torch.Tensor:
    """[size] what active latents gain, to first order, where those of some nodes change by so much."""
    writers, change = prompt.writers, torch.zeros(prompt.size)
    stream = torch.zeros_like(prompt.acts[0].resid_pre)
    for layer, acts in prompt.acts.items():
        parts = prompt.parts.get(layer)
        before = stream
        place = (layer, "attn")
        if bool(stream.any()) or any(node in writers.latents_of(place) for node in changes):
            out = _attention(prompt, layer, stream, free)
            sae = None if parts is None else parts.attn
            rows, span = writers.pieces[place].latents, writers.latents_of(place)
            stream = stream + _settled(
                sae, acts.attn_out, rows, span.start, out, changes, change, free.attn, free.norms
            )
        x = acts.mlp_in(prompt.model.parallel)
        read = before if prompt.model.parallel else stream
        if parts is not None:
            rows, first = prompt.sources[layer], prompt.source_begin[layer]
            read = _settled(parts.source, x, rows, first, read, changes, change, free.mlp_in, free.norms)
        out = torch.zeros_like(read)
        if bool(read.any()):
            out = _pushed(prompt.model.mlp(layer), x, read)
        place = (layer, "mlp")
        rows, first = writers.pieces[place].latents, writers.begin[place]
        sae = None if parts is None else parts.target
        # Gradient edges are of the pre-activation, an SAE's own scale among what moves.
        stream = stream + _settled(sae, acts.mlp_out, rows, first, out, changes, change, free.mlp, True)
    return change


def _attention(prompt: Prompt, layer: int, stream: torch.Tensor, free: Free) -> torch.Tensor:
    """[context, d] what attention's output gains where the stream in front of it gains `stream`."""
    attention, seen = prompt.model.attention(layer), prompt.seen(layer)
    heads, opened, x = attention.heads, attention.opened, seen.x[0]
    position = torch.arange(len(x))
    if not (free.norms or free.patterns):
        values = (heads.values(stream) / heads.scale(x)[..., None])[:, heads.kv_of]
        z = torch.einsum("hqk,khe->qhe", seen.pattern[0], values)
        out = torch.einsum("qhe,hed->qd", z, heads.W_O)
        if heads.post is None:
            return out
        return heads.post.centre(out) / heads.post.scale(seen.before[0]) * heads.post.gain

    def whole(x: torch.Tensor) -> torch.Tensor:
        normed = x if heads.norm is None else heads.norm(x)
        pattern = seen.pattern[0]
        if free.patterns:
            made = opened.project(normed, position)
            query, key = (part.transpose(0, 1)[None] for part in (made.query, made.key))
            pattern = seen.given._replace(query=query, key=key).pattern()[0]
        values = torch.einsum("td,kde->tke", normed, heads.W_V) + heads.value_bias
        return heads.out(torch.einsum("hqk,khe->qhe", pattern, values[:, heads.kv_of]))

    return _pushed(whole, x.clone(), stream)


def _pushed(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """What a function's value at x gains, to first order, where x gains `moved`."""
    return torch.func.jvp(function, (x,), (moved,))[1]


def _settled(
    sae: SAE | None, acts: torch.Tensor, rows: Rows, first: int, moved: torch.Tensor, changes: dict[int, float],
    change: torch.Tensor, free: bool, scaled: bool,
) -> torch.Tensor:  # fmt: skip
    """[context, d] what is handed on of what a hook gains, `moved`; its latents' gains go into `change`, in place.

    A node in `changes` gains what it says there and nothing else.
    """
    if sae is None:  # all of it is error
        return moved if free else torch.zeros_like(moved)
    reader = Reader(sae)
    if scaled and sae.input_norm != "none":
        gain = _pushed(sae.pre_acts, acts, moved)[rows.row_of, rows.indices]
    else:
        gain = ((moved / reader.scale(acts)[:, None])[rows.row_of] * reader.E.T[rows.indices]).sum(1)
    wanted = gain.clone()
    for node, value in changes.items():
        if first <= node < first + len(gain):
            wanted[node - first] = value
    change[first : first + len(gain)] = wanted
    units = sae.units(acts)
    direction = sae.W_dec[rows.indices]
    if units is not None:
        direction = direction * units.scale[rows.row_of]
    given = wanted - gain if free else wanted
    handed = torch.zeros_like(moved).index_add_(0, rows.row_of, direction * given[:, None])
    return moved + handed if free else handed
