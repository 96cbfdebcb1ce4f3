"""The manifest of an artifact: what it holds, and how damage to the manifest itself is found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict, cast

from saelink.store.files import is_file_name, read_regular
from saelink.store.provenance import Provenance
from saelink.store.recipe import Plan
from saelink.store.seal import SealError, sealed, unsealed

MANIFEST = "manifest.json"


class FileEntry(TypedDict):
    """What is noted of a file."""

    size: int
    sha256: str


class Contents(TypedDict):
    """What a manifest says of its artifact."""

    stage: str
    key: str
    version: int
    about: str
    recipe: dict[str, Any]
    inputs: dict[str, str]
    facts: dict[str, Any]
    files: dict[str, FileEntry]
    provenance: Provenance


class Manifest(Contents):
    """A manifest: its contents and their checksum."""

    sha256: str
    """Of everything else in the manifest, see seal.py."""


class ManifestError(ValueError):
    """How a manifest is damaged, as the end of a sentence that begins with its path."""


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished artifact's folder.

    Raises ManifestError unless it is this artifact's, as written, and OSError where the disk fails.
    """
    try:
        manifest = unsealed(read_regular(folder / MANIFEST))
    except FileNotFoundError:
        raise ManifestError("is missing") from None
    except ValueError as error:
        raise ManifestError(str(error)) from None
    missing = Manifest.__required_keys__ - manifest.keys()
    if missing:
        raise ManifestError(f"lacks {', '.join(sorted(missing))}")
    wrong = [name for name, fits in SHAPES.items() if not fits(manifest[name])]
    if wrong:
        raise ManifestError(f"has {', '.join(wrong)} of another form")
    whole = cast("Manifest", manifest)
    plan = Plan(whole["stage"], whole["version"], whole["recipe"], whole["inputs"], whole["about"])
    if (plan.stage, plan.key) != (folder.parent.name, folder.name):
        raise ManifestError(f"is of the {plan.stage} artifact {plan.key}")
    return whole


def _texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(each, str) for each in cast("dict[str, object]", value).values())


def _files(value: object) -> bool:
    """Whether it notes files, each by a name that leads nowhere else."""
    if not isinstance(value, dict):
        return False
    files = cast("dict[str, object]", value)
    return all(is_file_name(name) and _is_entry(entry) for name, entry in files.items())


def _is_entry(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    fields = cast("dict[str, object]", value)
    return type(fields.get("size")) is int and isinstance(fields.get("sha256"), str)


def _is_provenance(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    fields = cast("dict[str, object]", value)
    return isinstance(fields.get("made"), str) and isinstance(fields.get("seconds"), int | float)


SHAPES: dict[str, Callable[[object], bool]] = {
    "stage": lambda value: isinstance(value, str),
    "version": lambda value: type(value) is int,
    "about": lambda value: isinstance(value, str),
    "recipe": lambda value: isinstance(value, dict),
    "inputs": _texts,
    "facts": lambda value: isinstance(value, dict),
    "files": _files,
    "provenance": _is_provenance,
}
"""By entry whether a value can be one: a manifest may come from elsewhere, with a right checksum."""


def notes_in_manifest(data: bytes, key: str) -> Iterator[tuple[str, FileEntry]]:
    """The files that the manifest of this artifact notes, by name; none where it is damaged or another's."""
    with suppress(SealError):
        manifest = unsealed(data)
        if manifest.get("key") == key and _files(manifest.get("files")):
            yield from cast("Manifest", manifest)["files"].items()


def journal_line(key: str, name: str, entry: FileEntry) -> bytes:
    """What a journal notes of a finished file, on a line of its own also behind the half line of a killed process."""
    return b"\n" + json.dumps(sealed({"key": key, "name": name, "file": entry})).encode() + b"\n"


def notes_in_journal(data: bytes, key: str) -> Iterator[tuple[str, FileEntry]]:
    """The files that the lines of a journal note of this artifact, in their order; a damaged line notes none."""
    for line in data.split(b"\n"):
        with suppress(SealError):
            note = unsealed(line)
            if note.get("key") == key and _files({note.get("name"): note.get("file")}):
                yield note["name"], note["file"]
