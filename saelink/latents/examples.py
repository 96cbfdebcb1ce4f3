"""What every latent of a hook fires on: the stage `examples`, one artifact per set of latents.

Passes over the latents of all splits; what is kept is so much for each latent, however long the text. The sample
depends on the text alone, not on how it is cut into shards. Hidden units of a connector are looked at in the same way.
"""

# torch leaves arguments of some of its methods without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch

from saelink import memory
from saelink.activations.tokens import TokensStage
from saelink.config.schema import Config
from saelink.kernels import in_parts
from saelink.latents.encode import EncodeStage
from saelink.latents.stream import LATENTS, WIDTH, WINDOW, Stream, pieces_of, stream_of, text_of
from saelink.progress import Observer
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.stage import Need, Stage
from saelink.store.store import Store

EXAMPLES_FILE = "examples.safetensors"

OCTAVES = 12
"""Sizes of activation, each twice the one before, the unit in the middle; the histogram's bins are quarters of them."""


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

    def places(self) -> torch.Tensor:
        """[d, top + OCTAVES * per_size + random] all places, in the order of `around`."""
        return torch.cat([self.top_place, self.size_place.flatten(1), self.any_place], 1)


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
    version = 3

    def __init__(self, cfg: Config, store: Store, hook_name: str):
        self.cfg, self.store = cfg, store
        self._latents, self._tokens = EncodeStage(cfg, store, hook_name), TokensStage(cfg, store)

    def recipe(self) -> dict[str, Any]:
        return examples_recipe(self.cfg)

    def inputs(self) -> dict[str, str]:
        return {"latents": self._latents.key, "tokens": self._tokens.key}

    def about(self) -> str:
        return self._latents.about()

    def need(self) -> Need:
        facts, kept = self._latents.pull().facts, self.cfg.report
        places = kept.top + OCTAVES * kept.per_size + kept.random
        n_tokens = sum(facts["sequences"].values()) * facts["context_size"]
        size = memory.examples(facts["d_sae"], places, facts["l0"], n_tokens)
        return Need(size, "keep fewer examples (report.top, report.per_size, report.random)")

    def make(self, draft: Draft) -> ExamplesFacts:
        latents = self._latents.pull()
        stream = stream_of(latents, self.cfg.data.drop_positions)
        text = text_of(self._tokens.pull())
        return collect_examples(self.cfg, self.store.observer, stream, text, draft, latents.facts["hook_name"])


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


def tokens_around(text: np.ndarray[Any, Any], places: np.ndarray[Any, Any], context: int) -> np.ndarray[Any, Any]:
    """[..., WIDTH] the tokens around each place, -1 outside its sequence and for place -1."""
    around = places[..., None] + np.arange(-WINDOW, WINDOW + 1)
    inside = (around // context == places[..., None] // context) & (places[..., None] >= 0)
    return np.where(inside, text[np.where(inside, around, 0)], -1)


def collect_examples(
    cfg: Config, observer: Observer, stream: Stream, text: np.ndarray[Any, Any], draft: Draft, hook_name: str
) -> ExamplesFacts:
    """Look at a stream and write what `Examples` says; its facts, in which it is called `hook_name`."""
    from saelink.kernels.examples import collect

    d, context, drop, unit = stream.d, stream.context, cfg.data.drop_positions, stream.unit
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
    with observer.progress("examples", stream.n_tokens) as bar:
        for piece in pieces_of(stream, text, drop):
            arguments = (
                piece.begins, piece.row_of, piece.values, piece.start, context, unit, OCTAVES, histogram,
                places["top"], values["top"], tickets["size"], places["size"], values["size"],
                tickets["any"], places["any"], values["any"],
            )  # fmt: skip
            in_parts(d, LATENTS, lambda first, last, a=arguments: collect(first, last, *a))
            bar.advance(len(piece.tokens))
    everywhere = np.concatenate([places[name].reshape(d, -1) for name in ("top", "size", "any")], 1)
    latents = np.broadcast_to(np.arange(d)[:, None], everywhere.shape)
    around = stream.windows(everywhere.ravel(), latents.ravel()).reshape(*everywhere.shape, WIDTH)
    tables: list[Any] = [
        histogram, places["top"], values["top"], places["size"], values["size"], places["any"], values["any"], around,
    ]  # fmt: skip
    found = Examples(*(torch.from_numpy(table) for table in tables))
    draft.save_tensors(EXAMPLES_FILE, found._replace(around=found.around.bfloat16())._asdict())
    return {
        "hook_name": hook_name,
        "unit": unit,
        "context_size": context,
        "sequences": stream.sequences,
        "n_tokens": stream.counted(drop),
    }
