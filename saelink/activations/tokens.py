"""Text to packed tokens: the stage `tokens`.

Documents are split by a hash of their text, so a held-out document stays held out for everybody. Each split is
packed by itself, so no sequence mixes splits and no held-out token ever attends to a training document.
"""

from __future__ import annotations

import hashlib
import itertools
from functools import cached_property
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
import torch

from saelink import memory
from saelink.activations.chat import rendered, template_digest
from saelink.activations.documents import Documents, text_identity
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.model.describe import model_info
from saelink.model.load import load_tokenizer, uncompared_window
from saelink.store.draft import Draft
from saelink.store.stage import Need, Stage
from saelink.store.store import Store

SPLITS = ("train", "validation", "test")

DOCUMENTS_PER_STEP = 512


def split_by_hash(text: str) -> str:
    """`train` (80%), `validation` (10%) or `test` (10%), decided by the text alone."""
    bucket = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") % 100
    return "train" if bucket < 80 else "validation" if bucket < 90 else "test"


class TokensFacts(TypedDict):
    """What is known of the packed tokens; each dict is by split."""

    sequences: dict[str, int]
    documents: dict[str, int]
    tokens: dict[str, int]
    context_size: int
    separator_id: int
    skipped: NotRequired[dict[str, int]]
    """Why texts were left out (null, missing, empty) -> how many, unless none was."""


class TokensStage(Stage[TokensFacts]):
    """The packed tokens of a model's tokenizer.

    Files `<split>.safetensors` with `ids` and `document`, both [sequences, context_size] int32; a document's
    number counts the non-empty documents in reading order. A token's position is its column.
    """

    name = "tokens"
    version = 1

    def __init__(self, cfg: Config, store: Store):
        """Raises SaelinkError for a context that is longer than the model's."""
        self.cfg, self.store = cfg, store
        self._model = model_info(cfg, store)
        longest = self._model.context_size
        if longest is not None and cfg.data.context_size > longest:
            raise SaelinkError(
                f"data.context_size={cfg.data.context_size}: the model {cfg.model.name} takes at most {longest}"
            )

    def recipe(self) -> dict[str, Any]:
        recipe: dict[str, Any] = {
            "text": text_identity(self.cfg.data),
            "context_size": self.cfg.data.context_size,
            "max_tokens": self.cfg.data.max_tokens,
            "separator": self.cfg.model.separator,
        }
        if self.cfg.data.chat:
            recipe["chat"] = self._template
        return recipe | ({"prepend_bos": True} if self.cfg.data.prepend_bos else {})

    @cached_property
    def _template(self) -> str:
        return template_digest(load_tokenizer(self.cfg.model, self._model.artifact))

    def inputs(self) -> dict[str, str]:
        return {"model": self._model.artifact.key}

    def about(self) -> str:
        return self.cfg.data.label

    def need(self) -> Need | None:
        limit = self.cfg.data.max_tokens
        return None if limit is None else Need(memory.tokens(limit), "read less text (data.max_tokens)")

    def make(self, draft: Draft) -> TokensFacts:
        tokenizer = load_tokenizer(self.cfg.model, self._model.artifact)
        window = uncompared_window(self.cfg.model, self._model.artifact)
        if window is not None and self.cfg.data.context_size > window:
            self.store.observer.say(
                f"tokens: data.context_size={self.cfg.data.context_size}: the attention of {self.cfg.model.name} sees "
                f"{window:,} tokens back; what TransformerLens makes of more was not compared with transformers"
            )
        separator = separator_id(tokenizer, self.cfg.model.separator)
        bos = _bos_id(self.cfg, tokenizer)
        self._model.check_ids([separator], f"model.separator={self.cfg.model.separator or 'null'}")
        self._model.check_ids([] if bos is None else [bos], "data.prepend_bos=true")
        read = self._read(tokenizer, separator)
        n_tokens = sum(map(len, itertools.chain(*read.ids.values())))
        largest = [int(piece.max()) for piece in itertools.chain(*read.ids.values())]
        self._model.check_ids(largest, f"model.path={self.cfg.model.path}")
        if not n_tokens:
            raise SaelinkError(
                f"data.path={self.cfg.data.path}: no document holds any text in column {self.cfg.data.text_column}"
                f"{_listed(read.skipped)}"
            )
        if read.skipped:
            self.store.observer.say(f"tokens: documents without text are left out{_listed(read.skipped)}")
        context = self.cfg.data.context_size
        room = context if bos is None else context - 1
        sequences: dict[str, int] = {}
        short = [split for split in SPLITS if sum(map(len, read.ids[split])) < room]
        if short:
            raise SaelinkError(self._too_little(read, n_tokens, min(short, key=lambda split: read.n_documents[split])))
        for split in SPLITS:
            text, document = _packed(read.ids[split], room), _packed(read.owner[split], room)
            if bos is not None:  # it counts to the document that follows it
                text = torch.nn.functional.pad(text, (1, 0), value=bos)
                document = torch.cat([document[:, :1], document], dim=1)
            draft.save_tensors(f"{split}.safetensors", {"ids": text, "document": document})
            sequences[split] = len(text)
        facts: TokensFacts = {
            "sequences": sequences,
            "documents": read.n_documents,
            "tokens": {split: sequences[split] * context for split in SPLITS},
            "context_size": context,
            "separator_id": separator,
        }
        if read.skipped:
            facts["skipped"] = read.skipped
        return facts

    def _too_little(self, read: _Read, n_tokens: int, split: str) -> str:
        """Why a split has no sequence, and what would help."""
        path, context, n = self.cfg.data.path, self.cfg.data.context_size, sum(read.n_documents.values())
        if n == 1:
            return (
                f"data.path={path}: all of it is one document of {n_tokens:,} tokens, and documents are what is split "
                "into training, validation and test: give several (a .txt file is one; in jsonl each line is one)"
            )
        room = f"{n_tokens:,} tokens in {n:,} documents leave less than one sequence of {context} for the {split} split"
        if not read.n_documents[split]:
            return f"data.path={path}: {room}, which no document fell into; use more documents"
        if self.cfg.data.max_tokens is not None and n_tokens >= self.cfg.data.max_tokens:
            return f"data.max_tokens={self.cfg.data.max_tokens}: {room}; use more, or a smaller data.context_size"
        return f"data.path={path}: {room}; use more text or a smaller data.context_size"

    def _read(self, tokenizer: Any, separator: int) -> _Read:
        """The documents' tokens by split, until data.max_tokens are reached."""
        limit = self.cfg.data.max_tokens
        read = _Read({split: [] for split in SPLITS}, {split: [] for split in SPLITS}, dict.fromkeys(SPLITS, 0), {})
        n_tokens = 0
        render = None
        if self.cfg.data.chat:
            render = rendered(tokenizer)
            if template_digest(tokenizer) != self._template:
                raise SaelinkError(
                    f"model.path={self.cfg.model.path}: its chat template was changed while it was read; run it again"
                )
        source = Documents(self.cfg.data, render)
        texts = iter(source)
        with self.store.observer.progress("tokens", limit or 0) as bar:
            while limit is None or n_tokens < limit:
                batch = list(itertools.islice(texts, DOCUMENTS_PER_STEP))
                if not batch:
                    break
                for text, piece in zip(batch, tokenizer(batch, add_special_tokens=False)["input_ids"], strict=True):
                    if limit is not None and n_tokens >= limit:
                        break
                    split = split_by_hash(text)
                    read.ids[split].append(np.asarray([*piece, separator], np.int32))
                    read.owner[split].append(np.full(len(piece) + 1, sum(read.n_documents.values()), np.int32))
                    read.n_documents[split] += 1
                    n_tokens += len(piece) + 1
                    bar.advance(len(piece) + 1)
        source.check()
        for line in source.remarks:
            self.store.observer.say(f"tokens: {self.cfg.data.path}: datasets remarks: {line}")
        if source.left_out:
            some = ", ".join(path.name for path in source.left_out[:3]) + (", ..." if source.left_out[3:] else "")
            self.store.observer.say(f"tokens: left out of {self.cfg.data.path}, because it is no text: {some}")
        return read._replace(skipped=source.skipped)


class _Read(NamedTuple):
    """What was read of each split."""

    ids: dict[str, list[np.ndarray[Any, Any]]]
    owner: dict[str, list[np.ndarray[Any, Any]]]
    """The number of the document each token belongs to."""
    n_documents: dict[str, int]
    skipped: dict[str, int]
    """Why texts were left out -> how many."""


def _listed(skipped: dict[str, int]) -> str:
    """` (3 null, 1 empty)`, or nothing."""
    told = ", ".join(f"{n:,} {why}" for why, n in sorted(skipped.items()))
    return f" ({told})" if told else ""


def _packed(pieces: list[np.ndarray[Any, Any]], length: int) -> torch.Tensor:
    """[sequences, length] the pieces behind one another; what does not fill a last sequence is left out."""
    flat = np.concatenate(pieces)
    return torch.from_numpy(flat[: len(flat) // length * length].reshape(-1, length))


def separator_id(tokenizer: Any, separator: str | None) -> int:
    """Token id that joins documents. Raises SaelinkError when the tokenizer has no such token."""
    if separator is None:
        if tokenizer.eos_token_id is None:
            raise SaelinkError("model.separator=null: the tokenizer has no end-of-text token; name one of its tokens")
        return int(tokenizer.eos_token_id)
    found = tokenizer.convert_tokens_to_ids(separator)
    if found is None or (found == tokenizer.unk_token_id and separator != tokenizer.unk_token):
        raise SaelinkError(f"model.separator={separator}: the tokenizer has no such token")
    return int(found)


def _bos_id(cfg: Config, tokenizer: Any) -> int | None:
    """The token every sequence begins with, if there is to be one."""
    if cfg.data.prepend_bos and tokenizer.bos_token_id is None:
        raise SaelinkError("data.prepend_bos=true: the tokenizer has no begin-of-text token")
    return int(tokenizer.bos_token_id) if cfg.data.prepend_bos else None
