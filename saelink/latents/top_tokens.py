"""The tokens that carry most of every latent's activation: the stage `top_tokens`, one artifact per set of latents.

The first of them is what a latent is labelled by, wherever it is named (see evidence/names.py).
"""

# torch has no types for from_numpy.
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
from saelink.latents.stream import LATENTS, Stream, pieces_of, stream_of, text_of
from saelink.progress import Observer
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.stage import Need, Stage
from saelink.store.store import Store

TOP_TOKENS_FILE = "top_tokens.safetensors"

SLOTS = 24
"""Tokens that are kept for each latent."""


class TopTokens(NamedTuple):
    """Of every latent of a hook [d] the tokens of the vocabulary it fires on."""

    token: torch.Tensor
    """[d, SLOTS] by the sum of its activations on them, falling; -1 where there are no more. Every token with more than
    1/(SLOTS + 1) of the sum of all activations is among them."""
    weight: torch.Tensor
    """[d, SLOTS] that sum, exact."""
    fires: torch.Tensor
    """[d, SLOTS] on how many of the token's occurrences it fires."""
    occurs: torch.Tensor
    """[d, SLOTS] how often the token occurs."""
    total: torch.Tensor
    """[d] float64: the sum of all its activations."""


class TopTokensFacts(TypedDict):
    hook_name: str
    n_tokens: int
    """Those that count."""


class TopTokensStage(Stage[TopTokensFacts]):
    """The tokens that a hook's latents fire on, over all documents, without the first data.drop_positions positions.

    File `top_tokens.safetensors`: the tensors of `TopTokens`.
    """

    name = "top_tokens"
    version = 1

    def __init__(self, cfg: Config, store: Store, hook_name: str):
        self.cfg, self.store = cfg, store
        self._latents, self._tokens = EncodeStage(cfg, store, hook_name), TokensStage(cfg, store)

    def recipe(self) -> dict[str, Any]:
        return {"drop_positions": self.cfg.data.drop_positions}

    def inputs(self) -> dict[str, str]:
        return {"latents": self._latents.key, "tokens": self._tokens.key}

    def about(self) -> str:
        return self._latents.about()

    def need(self) -> Need:
        facts = self._latents.pull().facts
        n_tokens = sum(facts["sequences"].values()) * facts["context_size"]
        return Need(memory.top_tokens(facts["d_sae"], facts["l0"], n_tokens), "use less text (data.max_tokens)")

    def make(self, draft: Draft) -> TopTokensFacts:
        latents, drop = self._latents.pull(), self.cfg.data.drop_positions
        stream = stream_of(latents, drop)
        found = count_tokens(self.store.observer, stream, text_of(self._tokens.pull()), drop)
        draft.save_tensors(TOP_TOKENS_FILE, found._asdict())
        return {"hook_name": latents.facts["hook_name"], "n_tokens": stream.counted(drop)}


def load_top_tokens(artifact: Artifact[Any]) -> TopTokens:
    return TopTokens(**artifact.tensors(TOP_TOKENS_FILE))


def count_tokens(observer: Observer, stream: Stream, text: np.ndarray[Any, Any], drop: int) -> TopTokens:
    """The heaviest tokens of a stream's latents; `text` is all splits' tokens, see text_of.

    Two passes: the first finds the tokens, the second weighs them exactly.
    """
    from saelink.kernels.top_tokens import find_heaviest, weigh

    d = stream.d
    token, weight, sums = np.full((d, SLOTS), -1), np.zeros((d, SLOTS)), np.zeros(d)
    with observer.progress("top tokens", 2 * stream.n_tokens) as bar:
        for piece in pieces_of(stream, text, drop):
            pairs = (piece.begins, piece.row_of, piece.values, piece.tokens)
            in_parts(d, LATENTS, lambda first, last, p=pairs: find_heaviest(first, last, *p, token, weight))
            sums += piece.sums
            bar.advance(len(piece.tokens))
        token[weight == 0] = -1
        weight[:] = 0
        count = np.zeros((d, SLOTS), np.int64)
        for piece in pieces_of(stream, text, drop):
            pairs = (piece.begins, piece.row_of, piece.values, piece.tokens)
            in_parts(d, LATENTS, lambda first, last, p=pairs: weigh(first, last, *p, token, weight, count))
            bar.advance(len(piece.tokens))
    order = np.argsort(-weight, axis=1, kind="stable")
    token, count = np.take_along_axis(token, order, 1), np.take_along_axis(count, order, 1)
    weight = np.take_along_axis(weight, order, 1)
    context = stream.context
    seen = [text[stream.begins[split] :][: stream.sequences[split] * context] for split in stream.splits]
    occurrences = np.bincount(np.concatenate(seen).reshape(-1, context)[:, drop:].ravel())
    tables: list[Any] = [token, weight, count, np.where(token >= 0, occurrences[token], 0), sums]
    return TopTokens(*(torch.from_numpy(table) for table in tables))
