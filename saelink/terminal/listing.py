"""The store's artifacts as a table or as JSON."""

from __future__ import annotations

import json
import re
import time
from calendar import timegm
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saelink.config.size import gigabytes
from saelink.errors import SaelinkError, closest
from saelink.progress import Observer
from saelink.store.artifact import Artifact
from saelink.store.files import folder_bytes
from saelink.store.store import Store
from saelink.terminal.table import Column, table_lines

FVU = {"train": "validation_fvu", "evaluate": "fvu"}
"""By stage the fact that the FVU column shows: of the validation documents, and of the test documents."""


@dataclass(frozen=True)
class Row:
    """An artifact in the listing."""

    stage: str
    key: str
    fvu: float | None
    bytes: int
    made: str | None
    """When, in UTC, such as 2030-01-31T12:00:00Z; None for a damaged one."""
    model: str | None
    layer: int | None
    about: str
    damaged: bool
    path: str
    machine: str | None = None
    """The kind that it was made on; None for a damaged one."""


ORDERS: dict[str, Callable[[Row], Any]] = {
    "time": lambda row: row.damaged,  # the store lists the oldest first
    "size": lambda row: -row.bytes,
    "fvu": lambda row: float("inf") if row.fvu is None else row.fvu,
    "stage": lambda row: row.stage,
}
"""What rows can be sorted by: the oldest, the largest, the best fits, and the stages' names first."""


def rows_of(
    store: Store, stages: Sequence[str] = (), layer: int | None = None, model: str | None = None, order: str = "time"
) -> list[Row]:
    """The artifacts of these stages, this layer and this model, sorted; damaged ones know their stage alone.

    Raises SaelinkError for an order that does not exist and for a stage that the store has nothing of.
    """
    if order not in ORDERS:
        raise SaelinkError(f"--sort {order}: give {', '.join(ORDERS)}")
    whole, damaged = store.listing()
    rows = [*map(_row, whole), *map(_damaged_row, damaged)]
    there = {row.stage for row in rows}
    for stage in stages:
        if stage not in there:
            meant = closest(stage, there)
            suggestion = "" if meant is None else f"; did you mean {meant}?"
            raise SaelinkError(f"--stage {stage}: {store.root} has nothing of it{suggestion}")
    rows = [
        row
        for row in rows
        if (not stages or row.stage in stages) and layer in (None, row.layer) and model in (None, row.model)
    ]
    return sorted(rows, key=ORDERS[order])


def print_artifacts(observer: Observer, rows: Sequence[Row], root: Path, width: int | None = None) -> None:
    """A line for each artifact, and what they come to; with a width as many lines as the last column needs in it."""
    columns = [
        Column("stage"),
        Column("key"),
        Column("FVU", right=True),
        Column("size", right=True),
        Column("age", right=True),
        Column("what", wraps=True),
    ]
    cells = [
        (row.stage, row.key, "" if row.fvu is None else f"{row.fvu:.3f}", gigabytes(row.bytes), _age(row), row.about)
        for row in rows
    ]
    for line in table_lines(columns, cells, width) if rows else []:
        observer.say(line)
    number = "1 artifact" if len(rows) == 1 else f"{len(rows):,} artifacts"
    observer.say(f"{number} in {root}, {gigabytes(sum(row.bytes for row in rows))}")
    kinds = sorted({row.machine for row in rows if row.machine is not None})
    if len(kinds) > 1:
        observer.say(f"made on {len(kinds)} kinds of machines ({', '.join(kinds)}): last digits may differ")


def print_artifacts_json(observer: Observer, rows: Sequence[Row]) -> None:
    """A list of objects, one for each artifact."""
    observer.say(json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False))


def place_of(stage: str, about: str) -> tuple[str | None, int | None]:
    """The model and the layer that an artifact is about, if it is about one."""
    if stage == "tokens":
        return None, None
    about = about.rpartition(" beside ")[2] if stage == "transcoder" else about
    layer = re.search(r" layer (\d+)\b| blocks\.(\d+)\.", about)
    return about.split(" ")[0].rstrip(","), None if layer is None else int(layer[1] or layer[2])


def _row(artifact: Artifact[Any]) -> Row:
    about = artifact.manifest["about"]
    model, layer = place_of(artifact.stage, about)
    fvu = artifact.facts.get(FVU.get(artifact.stage, ""))
    made = artifact.manifest["provenance"]["made"]
    size = folder_bytes(artifact.path)
    fvu = fvu if isinstance(fvu, int | float) else None
    machine = artifact.manifest["provenance"].get("machine")
    return Row(artifact.stage, artifact.key, fvu, size, made, model, layer, about, False, str(artifact.path), machine)


def _damaged_row(folder: Path) -> Row:
    way_out = f"damaged: `saelink rm {folder.name}` removes it"
    size = folder_bytes(folder)
    return Row(folder.parent.name, folder.name, None, size, None, None, None, way_out, True, str(folder))


def _age(row: Row) -> str:
    if row.made is None:
        return ""
    try:
        seconds = time.time() - timegm(time.strptime(row.made, "%Y-%m-%dT%H:%M:%SZ"))
    except ValueError:
        return ""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"
