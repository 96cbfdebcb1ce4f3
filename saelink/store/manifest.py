"""The manifest of an artifact: what it holds, and how damage to the manifest itself is found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict, cast

from saelink.store.files import json_bytes
from saelink.store.provenance import Provenance
from saelink.store.recipe import Plan

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
    """Of everything else in the manifest, see `checksum`."""


class ManifestError(ValueError):
    """How a manifest is damaged, as the end of a sentence that begins with its path."""


def sealed(contents: Contents) -> Manifest:
    """The contents with their checksum."""
    # As they come back from JSON: there a tuple is a list, and numbers that are names of entries are text.
    return {**contents, "sha256": checksum(json.loads(json_bytes(contents)))}


def checksum(manifest: Mapping[str, Any]) -> str:
    """The sha256 over all entries but `sha256`, however the JSON is laid out. Raises ValueError for what is no JSON."""
    entries = {name: value for name, value in manifest.items() if name != "sha256"}
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished artifact's folder. Raises ManifestError unless it is this artifact's, as written."""
    try:
        manifest = _entries((folder / MANIFEST).read_bytes())
        actual = checksum(manifest)
    except (OSError, ValueError):
        raise ManifestError("can't be read") from None
    if "sha256" not in manifest:
        raise ManifestError("has no sha256 of itself, like those of earlier versions")
    if manifest["sha256"] != actual:
        raise ManifestError("does not have the sha256 that it names")
    missing = Manifest.__required_keys__ - manifest.keys()
    if missing:
        raise ManifestError(f"lacks {', '.join(sorted(missing))}")
    whole = cast("Manifest", manifest)
    key = Plan(whole["stage"], whole["version"], whole["recipe"], whole["inputs"], whole["about"]).key
    if (whole["stage"], key) != (folder.parent.name, folder.name):
        raise ManifestError(f"is of the {whole['stage']} artifact {key}")
    return whole


def notes_in_manifest(data: bytes) -> Iterator[tuple[str, FileEntry]]:
    """The files that a manifest notes, by name; a damaged one may note fewer, or what is not so."""
    with suppress(ValueError):
        files: object = _entries(data).get("files")
        if isinstance(files, dict):
            for name, entry in cast("dict[str, object]", files).items():
                yield from _note(name, entry)


def notes_in_journal(data: bytes) -> Iterator[tuple[str, FileEntry]]:
    """The files that the lines of a journal note, in their order; a damaged line notes none, or what is not so."""
    for line in data.split(b"\n"):
        with suppress(ValueError):
            entry = _entries(line)
            yield from _note(entry.get("name"), entry)


def _entries(data: bytes) -> dict[str, Any]:
    """The JSON object in these bytes. Raises ValueError when they are none."""
    try:
        found = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return cast("dict[str, Any]", found)


def _note(name: object, entry: object) -> Iterator[tuple[str, FileEntry]]:
    """The note if it can be one."""
    if not isinstance(name, str) or not isinstance(entry, dict):
        return
    fields = cast("dict[str, Any]", entry)
    size, sha256 = fields.get("size"), fields.get("sha256")
    inside = Path(name).name == name and name.strip(".") != ""
    if inside and isinstance(size, int) and isinstance(sha256, str):
        yield name, {"size": size, "sha256": sha256}
