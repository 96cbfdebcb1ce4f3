"""What every latent of a hook fires on: the stage `examples`, one artifact per set of latents.

Passes over the latents of all splits; what is kept is so much for each latent, however long the text. The sample
depends on the text alone, not on how it is cut into shards. Hidden units of a connector are looked at in the same way.
"""

# torch leaves arguments of some of its methods without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch

from saelink.activations.cache import Shard
from saelink.activations.tokens import SPLITS, TokensFacts
from saelink.config.schema import Config
from saelink.kernels import in_parts
from saelink.latents.encode import EncodeFacts
from saelink.latents.rows import Rows
from saelink.latents.split import latent_shards, scale_of
from saelink.progress import Observer
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.stage import Stage
from saelink.store.store import Store

EXAMPLES_FILE = "examples.safetensors"

OCTAVES = 12
"""Sizes of activation, each twice the one before, the unit in the middle; the histogram's bins are quarters of them."""

SLOTS = 24
"""Tokens that are counted for each latent."""

LATENTS = 64
"""Latents that one thread goes through in one go."""

WINDOW = 10
"""Tokens of an example on either side of the one it is about."""

WIDTH = 2 * WINDOW + 1


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
    around: torch.Tensor
    """[d, top + OCTAVES * per_size + random, WIDTH] bfloat16: the latent's activations on the tokens around those
    places, all of them in the order above; 0 outside the sequence."""
    total: torch.Tensor
    """[d] float64: the sum of all its activations."""
    token: torch.Tensor
    """[d, SLOTS] tokens by the sum of its activations on them, falling; -1 where there are no more. Every token with
    more than 1/(SLOTS + 1) of the sum of all activations is among them."""
    token_weight: torch.Tensor
    """[d, SLOTS] that sum, exact."""
    token_count: torch.Tensor
    """[d, SLOTS] on how many of the token's occurrences it fires."""
    token_total: torch.Tensor
    """[d, SLOTS] how often the token occurs."""

    def places(self) -> torch.Tensor:
        """[d, top + OCTAVES * per_size + random] all places, in the order of `around`."""
        return torch.cat([self.top_place, self.size_place.flatten(1), self.any_place], 1)


class Stream(NamedTuple):
    """Latents of all splits, laid end to end, to be looked at."""

    d: int
    unit: float
    """What activations are measured in: the mean active value on training tokens."""
    context: int
    sequences: dict[str, int]
    shards: Callable[[], Iterator[tuple[Shard, Rows]]]
    splits: tuple[str, ...] = SPLITS
    """Those that `shards` goes through."""

    @property
    def begins(self) -> dict[str, int]:
        """The place of each split's first token."""
        sizes = [self.sequences[split] * self.context for split in SPLITS]
        return dict(zip(SPLITS, np.cumsum([0, *sizes]).tolist(), strict=False))

    def windows(self, places: np.ndarray[Any, Any], latents: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """[m, WIDTH] float32: activations of latents[r] on the tokens around places[r] (-1 for none), in one pass."""
        from saelink.kernels.examples import look

        order = np.argsort(places, kind="stable")
        ranked = places[order]
        out = np.zeros((len(places), WIDTH), np.float32)
        for shard, rows in self.shards():
            start = self.begins[shard.split] + shard.first * self.context
            here = order[slice(*np.searchsorted(ranked, [start, start + len(rows)]))]
            found = np.zeros((len(here), WIDTH), np.float32)
            arguments = (rows.offsets.numpy(), rows.indices.numpy(), rows.values.numpy())
            asked = (places[here] - start, latents[here], self.context, WINDOW, found)
            in_parts(len(here), 4096, lambda low, high, a=(*arguments, *asked): look(low, high, *a))
            out[here] = found
        return out


def stream_of(latents: Artifact[EncodeFacts], drop: int) -> Stream:
    """The latents of an encode artifact."""
    facts = latents.facts

    def shards() -> Iterator[tuple[Shard, Rows]]:
        for shard, rows, _ in latent_shards(latents, SPLITS):
            yield shard, rows

    return Stream(facts["d_sae"], scale_of(latents, drop), facts["context_size"], facts["sequences"], shards)


class ExamplesFacts(TypedDict):
    hook_name: str
    unit: float
    """The mean active value on training tokens."""
    context_size: int
    sequences: dict[str, int]
    """By split."""
    n_tokens: int
    """Those that count."""


class ExamplesStage(Stage[ExamplesFacts]):
    """What a hook's latents fire on. File `examples.safetensors`: the tensors of `Examples`."""

    name = "examples"
    version = 2

    def __init__(self, cfg: Config, store: Store, latents: Artifact[EncodeFacts], tokens: Artifact[TokensFacts]):
        self.cfg, self.store, self._latents, self._tokens = cfg, store, latents, tokens

    def recipe(self) -> dict[str, Any]:
        return examples_recipe(self.cfg)

    def inputs(self) -> dict[str, str]:
        return {"latents": self._latents.key, "tokens": self._tokens.key}

    def about(self) -> str:
        return self._latents.manifest["about"]

    def make(self, draft: Draft) -> ExamplesFacts:
        stream = stream_of(self._latents, self.cfg.data.drop_positions)
        hook = self._latents.facts["hook_name"]
        return collect_examples(self.cfg, self.store.observer, stream, self._tokens, draft, hook)


def examples_recipe(cfg: Config) -> dict[str, Any]:
    """The settings that examples depend on."""
    return {
        "top": cfg.report.top,
        "per_size": cfg.report.per_size,
        "random": cfg.report.random,
        "drop_positions": cfg.data.drop_positions,
    }


def load_examples(artifact: Artifact[Any]) -> Examples:
    return Examples(**artifact.tensors(EXAMPLES_FILE))


def text_of(tokens: Artifact[TokensFacts]) -> np.ndarray[Any, Any]:
    """All splits' tokens laid end to end, int32: what a place is an index of."""
    splits = [tokens.tensors(f"{split}.safetensors")["ids"].flatten() for split in SPLITS]
    return torch.cat(splits).numpy()


def tokens_around(text: np.ndarray[Any, Any], places: np.ndarray[Any, Any], context: int) -> np.ndarray[Any, Any]:
    """[..., WIDTH] the tokens around each place, -1 outside its sequence and for place -1."""
    around = places[..., None] + np.arange(-WINDOW, WINDOW + 1)
    inside = (around // context == places[..., None] // context) & (places[..., None] >= 0)
    return np.where(inside, text[np.where(inside, around, 0)], -1)


class _Piece(NamedTuple):
    """One shard's pairs, sorted by latent."""

    start: int
    begins: np.ndarray[Any, Any]
    row_of: np.ndarray[Any, Any]
    values: np.ndarray[Any, Any]
    tokens: np.ndarray[Any, Any]
    sums: np.ndarray[Any, Any]
    """[d] of each latent's activations."""


def _pieces(stream: Stream, text: np.ndarray[Any, Any], drop: int) -> Iterator[_Piece]:
    from saelink.kernels.examples import by_latent

    for shard, rows in stream.shards():
        start = stream.begins[shard.split] + shard.first * stream.context
        begins, sums = np.zeros(rows.d + 1, np.int64), np.zeros(rows.d)
        row_of, values = np.empty(len(rows.values), np.int32), np.empty(len(rows.values), np.float32)
        arguments = (rows.offsets.numpy(), rows.indices.numpy(), rows.values.numpy(), stream.context, drop)
        n = by_latent(*arguments, begins, row_of, values, sums)
        tokens = text[start : start + len(rows)].astype(np.int64)
        yield _Piece(start, begins, row_of[:n], values[:n], tokens, sums)


def collect_examples(
    cfg: Config, observer: Observer, stream: Stream, tokens: Artifact[TokensFacts], draft: Draft, hook_name: str
) -> ExamplesFacts:
    """Look at a stream and write what `Examples` says; its facts, in which it is called `hook_name`."""
    from saelink.kernels.examples import collect, weigh

    d, context, drop, unit = stream.d, stream.context, cfg.data.drop_positions, stream.unit
    text = text_of(tokens)
    histogram = np.zeros((d, 4 * OCTAVES), np.int64)
    tickets: dict[str, np.ndarray[Any, Any]] = {}
    places: dict[str, np.ndarray[Any, Any]] = {}
    values: dict[str, np.ndarray[Any, Any]] = {}
    for name, shape in (
        ("top", (d, cfg.report.top)),
        ("size", (d, OCTAVES, cfg.report.per_size)),
        ("any", (d, cfg.report.random)),
    ):
        tickets[name] = np.full(shape, np.iinfo(np.int64).max)
        places[name], values[name] = np.full(shape, -1), np.zeros(shape, np.float32)
    token, weight, sums = np.full((d, SLOTS), -1), np.zeros((d, SLOTS)), np.zeros(d)
    n_tokens = sum(stream.sequences[split] for split in stream.splits) * context
    with observer.progress("examples", 2 * n_tokens) as bar:
        for piece in _pieces(stream, text, drop):
            arguments = (
                piece.begins, piece.row_of, piece.values, piece.tokens, piece.start, context, unit,
                OCTAVES, histogram, places["top"], values["top"], tickets["size"], places["size"], values["size"],
                tickets["any"], places["any"], values["any"], token, weight,
            )  # fmt: skip
            in_parts(d, LATENTS, lambda first, last, a=arguments: collect(first, last, *a))
            sums += piece.sums
            bar.advance(len(piece.tokens))
        token[weight == 0] = -1
        weight[:] = 0
        count = np.zeros((d, SLOTS), np.int64)
        for piece in _pieces(stream, text, drop):
            pairs = (piece.begins, piece.row_of, piece.values, piece.tokens)
            in_parts(d, LATENTS, lambda first, last, p=pairs: weigh(first, last, *p, token, weight, count))
            bar.advance(len(piece.tokens))
    everywhere = np.concatenate([places[name].reshape(d, -1) for name in ("top", "size", "any")], 1)
    latents = np.broadcast_to(np.arange(d)[:, None], everywhere.shape)
    around = stream.windows(everywhere.ravel(), latents.ravel()).reshape(*everywhere.shape, WIDTH)
    order = np.argsort(-weight, axis=1, kind="stable")
    token, count = np.take_along_axis(token, order, 1), np.take_along_axis(count, order, 1)
    weight = np.take_along_axis(weight, order, 1)
    seen = [text[stream.begins[split] :][: stream.sequences[split] * context] for split in stream.splits]
    occurrences = np.bincount(np.concatenate(seen).reshape(-1, context)[:, drop:].ravel())
    tables: list[Any] = [
        histogram, places["top"], values["top"], places["size"], values["size"], places["any"], values["any"],
        around, sums, token, weight, count, np.where(token >= 0, occurrences[token], 0),
    ]  # fmt: skip
    found = Examples(*(torch.from_numpy(table) for table in tables))
    draft.save_tensors(EXAMPLES_FILE, found._replace(around=found.around.bfloat16())._asdict())
    return {
        "hook_name": hook_name,
        "unit": unit,
        "context_size": context,
        "sequences": stream.sequences,
        "n_tokens": n_tokens // context * (context - drop),
    }
