"""What every latent of a hook fires on: the stage `examples`, one artifact per set of latents.

Two passes over the latents of all splits; what is kept is so much for each latent, however long the text. The sample
depends on the text alone, not on how it is cut into shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from saelink.cache import Shard
from saelink.config import Config
from saelink.data import SPLITS
from saelink.kernels import in_parts
from saelink.latents import latent_shards, scale_of
from saelink.progress import Progress
from saelink.store import Artifact, Draft, Plan, Store

VERSION = 1

TENSORS_FILE = "examples.safetensors"

OCTAVES = 12
"""Sizes of activation, each twice the one before, the unit in the middle; the histogram's bins are quarters of them."""

SLOTS = 24
"""Tokens that are counted for each latent."""

LATENTS = 64
"""Latents that one thread goes through in one go."""


class Examples(NamedTuple):
    """Of every latent of a hook [d]. A place is sequence * context + position in the splits laid end to end."""

    histogram: torch.Tensor
    """[d, 4 * OCTAVES] activations by size: bin b holds unit * 2^((b - 2 OCTAVES) / 4) up to the next one's."""
    top_place: torch.Tensor
    """[d, top] where it fires most, one place a sequence, falling; -1 where there are no more."""
    top_value: torch.Tensor
    size_place: torch.Tensor
    """[d, OCTAVES, per_size] places at random among the activations of each size; -1 as above."""
    size_value: torch.Tensor
    any_place: torch.Tensor
    """[d, random] places at random among all its activations; -1 as above."""
    any_value: torch.Tensor
    token: torch.Tensor
    """[d, SLOTS] tokens by the sum of its activations on them, falling; -1 where there are no more. Every token with
    more than 1/(SLOTS + 1) of the sum of all activations is among them."""
    token_weight: torch.Tensor
    """[d, SLOTS] that sum, exact."""
    token_count: torch.Tensor
    """[d, SLOTS] on how many of the token's occurrences it fires."""
    token_total: torch.Tensor
    """[d, SLOTS] how often the token occurs."""


def examples_plan(cfg: Config, latents: Artifact, tokens: Artifact) -> Plan:
    """Plan of the examples of one encode artifact."""
    recipe = {
        "top": cfg.report.top,
        "per_size": cfg.report.per_size,
        "random": cfg.report.random,
        "drop_positions": cfg.data.drop_positions,
    }
    return Plan("examples", VERSION, recipe, {"latents": latents.key, "tokens": tokens.key}, latents.manifest["about"])


def examples(cfg: Config, store: Store, latents: Artifact, tokens: Artifact) -> Artifact:
    """Pull the examples of a hook's latents.

    Files: `examples.safetensors`, the tensors of `Examples`. Facts: `unit`, the mean active value on training tokens;
    `n_tokens` that count, `context_size`, `sequences` of each split.
    """
    plan = examples_plan(cfg, latents, tokens)
    found = store.up_to_date(plan)
    if found is not None:
        return found
    return store.build(plan, lambda draft: _examples(cfg, latents, tokens, draft))


def load_examples(artifact: Artifact) -> Examples:
    return Examples(**artifact.tensors(TENSORS_FILE))


class _Piece(NamedTuple):
    """One shard's pairs, sorted by latent."""

    shard: Shard
    start: int
    begins: np.ndarray[Any, Any]
    pairs: np.ndarray[Any, Any]
    row_of: np.ndarray[Any, Any]
    values: np.ndarray[Any, Any]
    tokens: np.ndarray[Any, Any]


def _pieces(latents: Artifact, ids: dict[str, torch.Tensor], drop: int) -> Iterator[_Piece]:
    context, sequences = latents.facts["context_size"], latents.facts["sequences"]
    begin: dict[str, int] = dict(
        zip(SPLITS, np.cumsum([0, *(sequences[split] for split in SPLITS)]).tolist(), strict=False)
    )
    for shard, rows, _ in latent_shards(latents, SPLITS):
        row_of = rows.row_of
        counts = row_of % context >= drop
        indices, kept = rows.indices[counts], counts.nonzero().squeeze(1)
        begins = torch.zeros(rows.d + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(indices, minlength=rows.d), 0, out=begins[1:])
        yield _Piece(
            shard,
            (begin[shard.split] + shard.first) * context,
            begins.numpy(),
            kept[torch.sort(indices, stable=True).indices].numpy(),
            row_of.numpy(),
            rows.values.numpy(),
            ids[shard.split][shard.first : shard.last].flatten().long().numpy(),
        )


def _examples(cfg: Config, latents: Artifact, tokens: Artifact, draft: Draft) -> dict[str, Any]:
    from saelink.kernels.examples import collect, weigh

    facts = latents.facts
    d, context, drop = facts["d_sae"], facts["context_size"], cfg.data.drop_positions
    unit = scale_of(latents, drop)
    ids = {split: tokens.tensors(f"{split}.safetensors")["ids"] for split in SPLITS}
    histogram = np.zeros((d, 4 * OCTAVES), np.int64)
    tickets, places, values = {}, {}, {}
    for name, shape in (
        ("top", (d, cfg.report.top)),
        ("size", (d, OCTAVES, cfg.report.per_size)),
        ("any", (d, cfg.report.random)),
    ):
        tickets[name] = np.full(shape, np.iinfo(np.int64).max)
        places[name], values[name] = np.full(shape, -1), np.zeros(shape, np.float32)
    token, weight = np.full((d, SLOTS), -1), np.zeros((d, SLOTS))
    total = sum(facts["sequences"].values()) * context
    with Progress("examples", 2 * total) as bar:
        for piece in _pieces(latents, ids, drop):
            arguments = (
                piece.begins, piece.pairs, piece.row_of, piece.values, piece.tokens, piece.start, context, unit,
                OCTAVES, histogram, places["top"], values["top"], tickets["size"], places["size"], values["size"],
                tickets["any"], places["any"], values["any"], token, weight,
            )  # fmt: skip
            in_parts(d, LATENTS, lambda first, last, a=arguments: collect(first, last, *a))
            bar.advance((piece.shard.last - piece.shard.first) * context)
        token[weight == 0] = -1
        weight[:] = 0
        count = np.zeros((d, SLOTS), np.int64)
        for piece in _pieces(latents, ids, drop):
            pairs = (piece.begins, piece.pairs, piece.row_of, piece.values, piece.tokens)
            in_parts(d, LATENTS, lambda first, last, p=pairs: weigh(first, last, *p, token, weight, count))
            bar.advance((piece.shard.last - piece.shard.first) * context)
    order = np.argsort(-weight, axis=1, kind="stable")
    token, count = np.take_along_axis(token, order, 1), np.take_along_axis(count, order, 1)
    weight = np.take_along_axis(weight, order, 1)
    every = torch.cat([split[:, drop:].flatten().long() for split in ids.values()])
    occurrences = torch.bincount(every).numpy()
    tables: list[Any] = [
        histogram, places["top"], values["top"], places["size"], values["size"], places["any"], values["any"],
        token, weight, count, np.where(token >= 0, occurrences[token], 0),
    ]  # fmt: skip
    found = Examples(*map(torch.from_numpy, tables))
    draft.save_tensors(TENSORS_FILE, found._asdict())
    return {
        "hook_name": facts["hook_name"],
        "unit": unit,
        "context_size": context,
        "sequences": facts["sequences"],
        "n_tokens": sum(facts["sequences"].values()) * (context - drop),
    }
