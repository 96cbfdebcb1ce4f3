"""Local files of text: which there are, and the rows of one, read by its own suffix and never from a cache.

Nothing is kept between runs: a library's cache that goes by path and time would give the old text of a file that was
replaced by another of the same time.
"""

from __future__ import annotations

import bz2
import csv
import glob
import gzip
import hashlib
import io
import itertools
import json
import lzma
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from saelink.errors import SaelinkError

READERS = {
    ".parquet": "parquet", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "tsv",
    ".txt": "text",
}  # fmt: skip
"""By suffix how a file is read."""

PACKED = {".gz": "gz", ".bz2": "bz2", ".xz": "xz", ".zst": "zst", ".zstd": "zst"}
"""By suffix how a file is compressed; it stands behind one of READERS."""

SETTLED = 2.0
"""Seconds after its last change from which on a file's times tell whether it was changed again."""


class UnreadableTextError(SaelinkError):
    """Why a file can't be read; goes behind `data.path=...: <file>`."""


class TextFile(NamedTuple):
    """A file of text, and how it is read."""

    path: Path
    reader: str
    """One of READERS' values."""
    packed: str
    """One of PACKED's values, or empty."""

    @property
    def how(self) -> str:
        """How it is read, as a part of what it is: json, csv.gz."""
        return f"{self.reader}.{self.packed}" if self.packed else self.reader


class Row(NamedTuple):
    """A row of a file."""

    value: Any
    """A dict by column, else what stands in its place."""
    place: str
    """Where it is: `text.jsonl, line 7`."""


def text_file(path: Path) -> TextFile | None:
    """How a file is read by its suffixes; None for no kind of text that is known."""
    packed = PACKED.get(path.suffix.lower(), "")
    suffix = (Path(path.stem) if packed else path).suffix.lower()
    return TextFile(path, READERS[suffix], packed) if suffix in READERS else None


def text_files(place: str) -> tuple[list[TextFile], list[Path]]:
    """The files of a path, folder or pattern in the order of their names, and those in a folder that are no text.

    A path that exists is taken as it is, whatever characters are in it. Hidden files don't count. Raises SaelinkError,
    naming data.path, where there is none and for a file of an unknown kind.
    """
    place = os.path.expanduser(place)  # noqa: PTH111 (a pattern is no path)
    others: list[Path] = []
    if Path(place).is_dir():
        all_files = sorted(path for path in Path(place).rglob("*") if path.is_file() and not _hidden(path, Path(place)))
        others = [path for path in all_files if text_file(path) is None]
        paths = [path for path in all_files if text_file(path) is not None] or all_files
    elif Path(place).exists():
        paths = [Path(place)]
    else:
        paths = [Path(name) for name in sorted(glob.glob(place, recursive=True))]  # noqa: PTH207 (absolute patterns)
        paths = [path for path in paths if path.is_file()]
    if not paths:
        raise SaelinkError(f"data.path={place}: no file matches")
    found: list[TextFile] = []
    for path in paths:
        file = text_file(path)
        if file is None:
            kinds = f"{', '.join(READERS)}, or one of them with {', '.join(PACKED)} behind it"
            raise SaelinkError(f"data.path={place}: {path.name} is none of {kinds}")
        found.append(file)
    return found, others


def _hidden(path: Path, above: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(above).parts)


# --------------------------------------------------------------------------- contents

_digests: dict[Path, tuple[tuple[int, ...], str]] = {}


def digest_of(path: Path) -> str:
    """The sha256 of a file's bytes; read again in the same process unless the system says that nothing changed it."""
    path = path.absolute()
    with path.open("rb") as file:
        state = _state(file)
        known = _digests.get(path)
        if known is not None and known[0] == state:
            return known[1]
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        _digests.pop(path, None)
        # The time of the last change of any kind, which no program can set; of a change just now it may be the same.
        if _state(file) == state and time.time() - os.fstat(file.fileno()).st_ctime > SETTLED:
            _digests[path] = (state, digest)
    return digest


def _state(file: IO[bytes]) -> tuple[int, ...]:
    stat = os.fstat(file.fileno())
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


# --------------------------------------------------------------------------- rows


def rows_of(file: TextFile, column: str) -> Iterator[Row]:
    """The rows of a file in their order; of parquet only the column is read.

    Raises UnreadableTextError for what can't be read, with the line where there are lines.
    """
    try:
        with file.path.open("rb") as raw:
            yield from _READ[file.reader](file, _unpacked(raw, file.packed), column)
    except UnreadableTextError:
        raise
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UnreadableTextError(f"{file.path.name} can't be read ({error})") from None


def _unpacked(raw: IO[bytes], packed: str) -> IO[bytes]:
    if packed == "zst":
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))  # pyright: ignore[reportArgumentType]
    openers: dict[str, Callable[[IO[bytes]], Any]] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
    return openers[packed](raw) if packed else raw


def _lines(file: TextFile, stream: Iterable[bytes]) -> Iterator[str]:
    """The lines in UTF-8, a mark at the beginning apart."""
    for number, line in enumerate(stream, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UnreadableTextError(f"{file.path.name}, line {number}: it is no UTF-8 ({error.reason})") from None


def _read_json(file: TextFile, stream: IO[bytes], _: str) -> Iterator[Row]:
    """An object a line; or one list of objects, or objects over several lines."""
    lines, first = _lines(file, stream), True
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text:
            continue
        if text[0] == "[":
            yield from _read_whole_json(file, "\n" * (number - 1) + line + "".join(lines))
            return
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            if first and ".json" in file.path.suffixes:
                yield from _read_whole_json(file, "\n" * (number - 1) + line + "".join(lines))
                return
            raise UnreadableTextError(f"{file.path.name}, line {number}: it is no JSON ({error})") from None
        first = False
        yield Row(value, f"{file.path.name}, line {number}")


def _read_whole_json(file: TextFile, text: str) -> Iterator[Row]:
    decoder, at = json.JSONDecoder(), 0
    for number in itertools.count(1):
        at += len(text[at:]) - len(text[at:].lstrip())
        if at == len(text):
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise UnreadableTextError(f"{file.path.name}{line}: it is no JSON ({error})") from None
        if isinstance(value, list):
            yield from (Row(entry, f"{file.path.name}, entry {n}") for n, entry in enumerate(value, 1))
        else:
            yield Row(value, f"{file.path.name}, entry {number}")


def _read_csv(file: TextFile, stream: IO[bytes], _: str) -> Iterator[Row]:
    """Rows below a line of names; strict, because a lost quote would swallow the rows behind it."""
    csv.field_size_limit(sys.maxsize)
    rows = csv.reader(_lines(file, stream), delimiter="\t" if file.reader == "tsv" else ",", strict=True)
    names: list[str] | None = None
    while True:
        first = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            reason = str(error).split(" - ")[0]  # behind that stands advice on how to call the library
            raise UnreadableTextError(f"{file.path.name}, line {first}: {reason}") from None
        if not row:
            continue
        if names is None:
            names = row
            continue
        if len(row) != len(names):
            raise UnreadableTextError(
                f"{file.path.name}, line {first}: it has {len(row)} fields where the first line names {len(names)}"
            )
        yield Row(dict(zip(names, row, strict=True)), f"{file.path.name}, line {first}")


def _read_text(file: TextFile, stream: IO[bytes], column: str) -> Iterator[Row]:
    """The whole file as one text."""
    text = "".join(_lines(file, stream)).replace("\r\n", "\n")
    yield Row({column: text}, file.path.name)


def _read_parquet(file: TextFile, stream: IO[bytes], column: str) -> Iterator[Row]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        table = ParquetFile(io.BytesIO(stream.read()) if file.packed else stream)
        names = table.schema_arrow.names
        if column not in names:
            yield Row(dict.fromkeys(names), file.path.name)
            return
        batches = table.iter_batches(1024, columns=[column])
        values = itertools.chain.from_iterable(batch.column(0).to_pylist() for batch in batches)
        yield from (Row({column: value}, f"{file.path.name}, row {n}") for n, value in enumerate(values, 1))
    except pyarrow.ArrowException as error:
        raise UnreadableTextError(f"{file.path.name} can't be read ({str(error).splitlines()[0]})") from None


_READ: dict[str, Callable[[TextFile, IO[bytes], str], Iterator[Row]]] = {
    "json": _read_json,
    "csv": _read_csv,
    "tsv": _read_csv,
    "text": _read_text,
    "parquet": _read_parquet,
}
