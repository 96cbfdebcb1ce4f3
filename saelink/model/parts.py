"""A file that several installed packages hold the pieces of, because an index takes none of its size."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saelink.errors import SaelinkError
from saelink.fetch import wheel_folder

BLOCK = 2**20
"""Bytes that are copied at a time."""


def part_files(parts: list[str], install: str | None, terms: str | None = None) -> list[Path]:
    """The pieces, each given as package/path, in order. Raises SaelinkError for one that is not installed."""
    found = []
    for part in parts:
        package, _, inside = part.partition("/")
        path = wheel_folder(package, install, "model.parts", terms) / inside
        if not inside or not path.is_file():
            again = f"; install it again with `{install} --force-reinstall`" if install else ""
            raise SaelinkError(f"model.parts: {package} has no file {inside or part}{again}")
        found.append(path)
    return found


def _blocks(files: list[Path]) -> Iterator[bytes]:
    for path in files:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block


def joined_sha256(files: list[Path]) -> str:
    """The sha256 of the files behind one another, without joining them."""
    digest = hashlib.sha256()
    for block in _blocks(files):
        digest.update(block)
    return digest.hexdigest()


@contextmanager
def joined(files: list[Path], folder: Path, name: str, sha256: str) -> Iterator[Path]:
    """A new folder that holds the pieces as one file `name`; it goes with the block.

    Raises SaelinkError where what was written has not this sha256: a piece was changed meanwhile.
    """
    folder.mkdir()
    whole, digest = folder / name, hashlib.sha256()
    try:
        with whole.open("wb") as out:
            for block in _blocks(files):
                out.write(block)
                digest.update(block)
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != sha256:
            raise SaelinkError("model.parts: a file was changed while it was read; run the command again")
        yield folder
    finally:
        whole.unlink(missing_ok=True)
        folder.rmdir()
