"""Durable writes, checksums and sizes of files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
import stat
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelink.errors import SaelinkError

if TYPE_CHECKING:
    import torch


@contextmanager
def naming(path: Path) -> Generator[None, None, None]:
    """Errors of the system name the file: those of reading, writing and syncing an open one don't."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
            os.fsync(descriptor)
    except OSError as error:  # some network file systems refuse to sync a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def temporary_of(path: Path) -> Path:
    """Where a file is written before it takes its name: unique, and it tells the machine and process that write it."""
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40]
    return path.with_name(f".{path.name}.{host}.{os.getpid()}.{time.monotonic_ns()}.tmp")


def left_by_the_dead(path: Path) -> bool:
    """Whether it is a temporary file whose writer is gone: a process of this machine, or one of more than a day ago."""
    name = re.fullmatch(r"\..+\.([A-Za-z0-9-]*)\.(\d+)\.\d+\.tmp", path.name)
    if name is None or path.is_symlink():
        return False
    if temporary_of(path).name.split(".")[-4] != name[1]:
        with suppress(OSError):
            return time.time() - path.stat().st_mtime > 86_400
        return False
    try:
        os.kill(int(name[2]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False


def write_durably(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds all of it or what it held before, also after a power cut.

    The temporary file beside it has a unique name and is removed when writing fails (a full disk, say).
    """
    temporary = temporary_of(path)
    try:
        with naming(path):
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # the first failure is the one to tell
            temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def file_sha256(path: Path) -> str:
    """The file's sha256 as hex digits, read in pieces."""
    with naming(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_file_name(name: object) -> bool:
    """Whether this is the name of a file in a folder, and leads nowhere else."""
    return isinstance(name, str) and name.isprintable() and Path(name).name == name and name.strip(".") != ""


def is_regular(path: Path) -> bool:
    """Whether a file is there by itself: no link, no folder, no pipe. Raises FileNotFoundError when nothing is."""
    return stat.S_ISREG(path.lstat().st_mode)


def read_regular(path: Path) -> bytes:
    """What a file holds. Raises ValueError, the end of a sentence, for what is no file of its own."""
    if not is_regular(path):
        raise ValueError("is no file of its own")
    with naming(path):
        return path.read_bytes()


def read_tensors(path: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]  # its PathLike is of anything

    try:
        return load_file(path, device=device)
    except SafetensorError as error:
        raise SaelinkError(f"{path}: can't be read ({' '.join(str(error).split())})") from None


def tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """A safetensors file. Equal tensors give equal bytes."""
    from safetensors.torch import save

    return save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})


def json_bytes(value: Any) -> bytes:
    """Readable JSON with a fixed key order, so that equal values have equal bytes. NaN is refused."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


FORMULA = ("=", "+", "-", "@", "\t", "\r", "\N{FULLWIDTH EQUALS SIGN}", "\N{FULLWIDTH PLUS SIGN}",
           "\N{FULLWIDTH HYPHEN-MINUS}", "\N{FULLWIDTH COMMERCIAL AT}")  # fmt: skip
"""What a spreadsheet takes for the beginning of a formula."""


def csv_bytes(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """A table as CSV. Text that a spreadsheet would run as a formula begins with an apostrophe."""

    def cell(value: Any) -> str:
        text = "" if value is None else str(value)
        if isinstance(value, str) and (text.startswith(FORMULA) or text.lstrip().startswith(FORMULA)):
            text = f"'{text}"
        # The csv module leaves what other programs cut at, such as semicolons and carriage returns, without quotes.
        return '"' + text.replace('"', '""') + '"' if re.search(r'[",;\s]', text.replace(" ", "")) else text

    lines = [columns, *([row.get(column) for column in columns] for row in rows)]
    return "".join(",".join(map(cell, line)) + "\n" for line in lines).encode("utf-8", "surrogatepass")


def folder_bytes(folder: Path) -> int:
    """The size of all files in it; what is removed meanwhile counts as nothing."""
    size = 0
    for place, _, names in os.walk(folder):  # where Path.rglob raises when a folder is removed under it
        for name in names:
            with suppress(OSError):
                size += Path(place, name).lstat().st_size
    return size
