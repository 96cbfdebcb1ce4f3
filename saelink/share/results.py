"""What a report says, for programs: its figures, and everything that it takes to make them again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from saelink._version import __version__
from saelink.store.artifact import Artifact
from saelink.store.store import Store

RESULTS_FILE = "results.json"

SCHEMA = 1
"""Raised when a reader of the file would have to change."""

FIGURES = ("metrics.json", "ce.json", "figures.json", "nulls.json")
"""Files of evaluations and verdicts whose figures are copied."""


def lineage(store: Store, keys: Iterable[str]) -> dict[str, Artifact[Any]]:
    """By key, in order, the artifacts of these keys and all that they were made from, as far as the store has them."""
    known = {artifact.key: artifact for artifact in store.artifacts()}
    found: dict[str, Artifact[Any]] = {}
    waiting = list(keys)
    while waiting:
        key = waiting.pop()
        if key in known and key not in found:
            found[key] = known[key]
            waiting += known[key].manifest["inputs"].values()
    return {key: found[key] for key in sorted(found)}


def results_of(store: Store, keys: Iterable[str], command: str | None) -> dict[str, Any]:
    """The file's contents: `figures` by artifact, and every artifact behind them with its recipe and its packages."""
    artifacts = lineage(store, keys)
    figures: dict[str, Any] = {}
    for key, artifact in artifacts.items():
        copied = {name.removesuffix(".json"): artifact.json(name) for name in FIGURES if name in artifact.files}
        if artifact.stage in ("train", "experiment"):
            copied["facts"] = artifact.manifest["facts"]
        if copied:
            figures[key] = {"stage": artifact.stage, "about": artifact.manifest["about"], **copied}
    return {
        "schema": SCHEMA,
        "saelink": __version__,
        "command": command,
        "figures": figures,
        "artifacts": {key: _made(artifact) for key, artifact in artifacts.items()},
    }


def _made(artifact: Artifact[Any]) -> dict[str, Any]:
    manifest = artifact.manifest
    how = manifest["provenance"]
    return {
        "stage": manifest["stage"],
        "version": manifest["version"],
        "recipe": manifest["recipe"],
        "inputs": manifest["inputs"],
        "packages": how["packages"],
        "git_sha": how["git_sha"],
        "machine": how["machine"],
        "files": {name: entry["sha256"] for name, entry in manifest["files"].items()},
    }
