"""A multirun as a whole: what its jobs made, and the MSE-against-L1 table and picture at its end."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from saelink.errors import SaelinkError
from saelink.evidence.compared import Row, described, differing, marked, measured_on, oracle, row_of
from saelink.experiments.tables import PICTURE_FILE, rows_of, table_csv
from saelink.fit.train import TrainFacts
from saelink.store.artifact import Artifact
from saelink.store.files import json_bytes, write_durably
from saelink.store.store import Store
from saelink.tracking.charts import Bounds, picture

COLUMNS = [
    "train", "model", "layer", "link", "connector", "solver", "l1_alpha",
    "mse", "l1", "fvu", "n_edges", "n_edges_above_0.01", "pareto",
]  # fmt: skip
"""Of pareto.csv, before the settings by which the fits differ."""


def sweep_folder(store: Store, sweep_id: str) -> Path:
    return store.root / "sweeps" / sweep_id


def sweep_of(keys: list[str]) -> str:
    """The name of a sweep that is known by its train artifacts, not by a command."""
    return "sweep" + hashlib.sha256(" ".join(sorted(set(keys))).encode()).hexdigest()[:8]


def record(store: Store, sweep_id: str | None, connector: Artifact[TrainFacts], overrides: str) -> None:
    """Note that a job of this sweep, with these overrides, made or found this train artifact."""
    if sweep_id is not None:
        folder = sweep_folder(store, sweep_id) / "jobs"
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / f"{connector.key}.json", json_bytes({"train": connector.key, "job": overrides}))


def record_experiment(store: Store, sweep_id: str | None, result: Artifact[Any]) -> None:
    """Note that a job of this sweep made or found this experiment's result."""
    if sweep_id is not None:
        folder = sweep_folder(store, sweep_id) / "experiments"
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / f"{result.key}.json", json_bytes({"experiment": result.key}))


def gather_experiments(store: Store, sweep_id: str) -> list[str]:
    """One table per experiment over all jobs, and each job's picture, in the sweep's folder; their paths."""
    folder = sweep_folder(store, sweep_id)
    results = [store.get(note["experiment"]) for note in _notes(store, folder / "experiments", "experiment")]
    results.sort(key=lambda result: (result.facts["name"], result.facts["link"], result.facts["layer"] or 0))
    written = []
    for name in dict.fromkeys(result.facts["name"] for result in results):
        chosen = [result for result in results if result.facts["name"] == name]
        rows = [row for result in chosen for row in rows_of(result)]
        write_durably(folder / f"{name}.csv", table_csv(rows))
        written.append(str(folder / f"{name}.csv"))
        for result in chosen:
            if PICTURE_FILE in result.files:
                layer = result.facts["layer"]
                path = folder / (f"{name}.png" if layer is None else f"{name}-layer{layer}.png")
                if str(path) in written:  # another axis than the layer was swept
                    path = path.with_stem(f"{path.stem}-{result.key}")
                write_durably(path, result.file(PICTURE_FILE).read_bytes())
                written.append(str(path))
    return written


def _notes(store: Store, folder: Path, *names: str) -> Iterator[dict[str, Any]]:
    """What jobs noted in a folder; of one that can't be read or lacks any of `names` a line says so."""
    for path in sorted(folder.glob("*.json")):
        try:
            note = json.loads(path.read_bytes())
            if isinstance(note, dict) and set(names) <= note.keys():
                yield note
                continue
        except (ValueError, OSError):
            pass
        store.observer.say(f"{path} can't be read and is left out; the sweep's command again writes it anew")


def record_failure(store: Store, sweep_id: str, job: int, line: str) -> None:
    """Note that a job ended with a user's error; jobs may run in other processes."""
    folder = sweep_folder(store, sweep_id) / "failed"
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / f"{job}.json", json_bytes({"job": job, "error": line}))


class Gathered(NamedTuple):
    """What a sweep has made."""

    rows: list[Row]
    """A fit each, with `job`, the overrides that made it, and `pareto`; by place, connector, solver, penalty."""
    bounds: Bounds | None
    """The mean predictor and the oracle, where all fits are of the same latents and targets."""


def gathered(store: Store, sweep_id: str) -> Gathered:
    """The fits of a sweep. Raises SaelinkError when the sweep is unknown or has none.

    One that is damaged or was removed is left out, and a line says so.
    """
    folder = sweep_folder(store, sweep_id)
    if not folder.is_dir() or not re.fullmatch(r"sweep\w+", sweep_id):
        known = sorted(path.name for path in (store.root / "sweeps").glob("sweep*"))
        raise SaelinkError(f"no sweep {sweep_id} in {store.root}; known: {', '.join(known) or 'none'}")
    found: list[tuple[Artifact[TrainFacts], str]] = []
    for job in _notes(store, folder / "jobs", "train", "job"):
        try:
            found.append((described(store.get(job["train"])), job["job"]))
        except SaelinkError as error:  # damaged or removed since; the others still make a table
            store.observer.say(f"pareto: left out: {error}")
    if not found:
        raise SaelinkError(f"sweep {sweep_id}: no job of it has made a connector yet")
    places = [measured_on(connector) for connector, _ in found]
    rows = marked([{**row_of(connector), "job": job} for connector, job in found], places)
    bounds = Bounds(rows[0], oracle(store, found[0][0])) if len(set(places)) == 1 else None
    order = ("model", "layer", "link", "connector", "solver", "l1_alpha")
    return Gathered(sorted(rows, key=lambda row: [row[name] for name in order]), bounds)


def write_pareto(store: Store, sweep_id: str) -> Gathered:
    """Write pareto.csv and pareto.png into the sweep's folder."""
    found = gathered(store, sweep_id)
    folder = sweep_folder(store, sweep_id)
    names = [*COLUMNS, *(name for name in differing(found.rows) if name not in COLUMNS), "job"]
    write_durably(folder / "pareto.csv", table_csv([{name: row.get(name) for name in names} for row in found.rows]))
    write_durably(folder / "pareto.png", picture(found.rows, found.bounds))
    return found


def failures(store: Store, sweep_id: str) -> list[dict[str, Any]]:
    """The jobs of a sweep that ended with a user's error: `job`, its number, and `error`, the line it got."""
    return list(_notes(store, sweep_folder(store, sweep_id) / "failed", "job", "error"))


def begin(store: Store, sweep_id: str) -> None:
    """A clean record: what an earlier run of the same sweep noted goes, its artifacts stay."""
    shutil.rmtree(sweep_folder(store, sweep_id), ignore_errors=True)
