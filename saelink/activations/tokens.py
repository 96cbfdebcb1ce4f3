"""Text to packed tokens: the stage `tokens`.

Documents are split by a hash of their text, so a held-out document stays held out for everybody. Each split is
packed by itself, so no sequence mixes splits and no held-out token ever attends to a training document.
"""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import numpy as np

from saelink.activations.documents import documents, text_identity
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.model.describe import model_info
from saelink.model.info import ModelInfo
from saelink.model.load import load_tokenizer
from saelink.progress import Progress
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.recipe import Plan
from saelink.store.store import Store

VERSION = 1

SPLITS = ("train", "validation", "test")

DOCUMENTS_PER_STEP = 512


def split_by_hash(text: str) -> str:
    """`train` (80%), `validation` (10%) or `test` (10%), decided by the text alone."""
    bucket = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") % 100
    return "train" if bucket < 80 else "validation" if bucket < 90 else "test"


def tokens_plan(cfg: Config, info: ModelInfo) -> Plan:
    """Plan of the packed tokens. Raises SaelinkError for a context that is longer than the model's."""
    if info.context_size is not None and cfg.data.context_size > info.context_size:
        raise SaelinkError(
            f"data.context_size={cfg.data.context_size}: the model {cfg.model.name} takes at most {info.context_size}"
        )
    recipe: dict[str, Any] = {
        "text": text_identity(cfg.data),
        "context_size": cfg.data.context_size,
        "max_tokens": cfg.data.max_tokens,
        "separator": cfg.model.separator,
    }
    if cfg.data.prepend_bos:
        recipe["prepend_bos"] = True
    return Plan("tokens", VERSION, recipe, {"model": info.artifact.key}, cfg.data.label)


def pull_tokens(cfg: Config, store: Store) -> Artifact:
    """Pull the packed tokens.

    Files `<split>.safetensors` with `ids` and `document`, both [sequences, context_size] int32; a document's
    number counts the non-empty documents in reading order. A token's position is its column.
    """
    info = model_info(cfg, store)
    plan = tokens_plan(cfg, info)
    return store.up_to_date(plan) or store.build(plan, lambda draft: _tokenise(cfg, info, draft))


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


def _tokenise(cfg: Config, info: ModelInfo, draft: Draft) -> dict[str, Any]:
    import torch

    tokenizer = load_tokenizer(cfg.model, info.artifact)
    separator = separator_id(tokenizer, cfg.model.separator)
    limit = cfg.data.max_tokens
    ids: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    owner: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    n_documents: dict[str, int] = dict.fromkeys(SPLITS, 0)
    n_tokens = 0
    texts = documents(cfg.data)
    with Progress("tokens", limit or 0) as bar:
        while limit is None or n_tokens < limit:
            batch = list(itertools.islice(texts, DOCUMENTS_PER_STEP))
            if not batch:
                break
            for text, piece in zip(batch, tokenizer(batch, add_special_tokens=False)["input_ids"], strict=True):
                if limit is not None and n_tokens >= limit:
                    break
                split = split_by_hash(text)
                ids[split].append(np.asarray([*piece, separator], np.int32))
                owner[split].append(np.full(len(piece) + 1, sum(n_documents.values()), np.int32))
                n_documents[split] += 1
                n_tokens += len(piece) + 1
                bar.advance(len(piece) + 1)
    if not n_tokens:
        raise SaelinkError(f"data.path={cfg.data.path}: no document holds any text in column {cfg.data.text_column}")
    context = cfg.data.context_size
    bos = _bos_id(cfg, tokenizer)
    room = context if bos is None else context - 1
    sequences = {}
    for split in SPLITS:
        length = sum(map(len, ids[split])) // room * room
        if not length:
            raise SaelinkError(
                f"data.path={cfg.data.path}: {n_tokens:,} tokens in {sum(n_documents.values()):,} documents leave less "
                f"than one sequence of {context} for the {split} split; use more text or a smaller data.context_size"
            )

        def packed(pieces: list[np.ndarray], length: int = length) -> torch.Tensor:
            return torch.from_numpy(np.concatenate(pieces)[:length].reshape(-1, room))

        text, document = packed(ids[split]), packed(owner[split])
        if bos is not None:  # it counts to the document that follows it
            text = torch.nn.functional.pad(text, (1, 0), value=bos)
            document = torch.cat([document[:, :1], document], dim=1)
        draft.save_tensors(f"{split}.safetensors", {"ids": text, "document": document})
        sequences[split] = len(text)
    return {
        "sequences": sequences,
        "documents": n_documents,
        "tokens": {split: sequences[split] * context for split in SPLITS},
        "context_size": context,
        "separator_id": separator,
    }
