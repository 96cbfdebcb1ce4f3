"""A multirun as a whole: what its jobs made, and the MSE-against-L1 table and picture at its end."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from saelink.errors import SaelinkError
from saelink.evidence.compared import Row, described, differing, marked, measured_on, oracle, row_of
from saelink.experiments.tables import PICTURE_FILE, rows_of, table_csv
from saelink.fit.train import TrainFacts
from saelink.store.artifact import Artifact
from saelink.store.files import is_file_name, json_bytes, read_regular, write_durably
from saelink.store.seal import SealError, sealed, unsealed
from saelink.store.store import Store
from saelink.tracking.charts import Bounds, picture

COLUMNS = [
    "train", "model", "layer", "link", "connector", "solver", "l1_alpha",
    "mse", "l1", "fvu", "n_edges", "n_edges_above_0.01", "pareto",
]  # fmt: skip
"""Of pareto.csv, before the settings by which the fits differ."""


def sweep_folder(store: Store, sweep_id: str) -> Path:
    """Where what is noted of a sweep lies. Raises SaelinkError for what is no sweep's name."""
    if not re.fullmatch(r"sweep\w+", sweep_id):
        raise SaelinkError(f"sweep {sweep_id}: names are like sweep1a2b3c4d; {_known(store)}")
    return store.root / "sweeps" / sweep_id


def _known(store: Store) -> str:
    known = sorted(path.name for path in (store.root / "sweeps").glob("sweep*"))
    return f"known in {store.root}: {', '.join(known) or 'none'}"


def sweep_of(keys: list[str]) -> str:
    """The name of a sweep that is known by its train artifacts, not by a command."""
    return "sweep" + hashlib.sha256(" ".join(sorted(set(keys))).encode()).hexdigest()[:8]


def record(store: Store, sweep_id: str | None, connector: Artifact[TrainFacts], overrides: str) -> None:
    """Note that a job of this sweep, with these overrides, made or found this train artifact."""
    if sweep_id is not None:
        _note(store, sweep_id, "jobs", connector.key, {"train": connector.key, "job": overrides})


def record_experiment(store: Store, sweep_id: str | None, result: Artifact[Any]) -> None:
    """Note that a job of this sweep made or found this experiment's result."""
    if sweep_id is not None:
        _note(store, sweep_id, "experiments", result.key, {"experiment": result.key})


def record_failure(store: Store, sweep_id: str, job: int, line: str) -> None:
    """Note that a job ended with a user's error; jobs may run in other processes."""
    _note(store, sweep_id, "failed", str(job), {"job": job, "error": line})


def _note(store: Store, sweep_id: str, kind: str, name: str, note: dict[str, Any]) -> None:
    """Write down what a job did. The note says whose it is, so that no other can stand in its place."""
    folder = sweep_folder(store, sweep_id) / kind
    store.mark()
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / f"{name}.json", json_bytes(sealed({**note, "sweep": sweep_id, "name": name})))


class Tables(NamedTuple):
    """What a sweep's experiments came to."""

    paths: list[str]
    """Tables and pictures."""
    left_out: int
    """Jobs whose note or result is damaged or gone."""


def gather_experiments(store: Store, sweep_id: str) -> Tables:
    """One table per experiment over all jobs, and each job's picture, in the sweep's folder."""
    folder = sweep_folder(store, sweep_id)
    results: list[Artifact[Any]] = []
    found = _notes(store, sweep_id, "experiments", "experiment")
    for note in found.notes:
        try:
            results.append(store.get(note["experiment"]))
        except SaelinkError as error:  # damaged or removed since; the others still make a table
            store.observer.say(f"experiments: left out: {error}")
    left_out = found.left_out + len(found.notes) - len(results)
    results.sort(key=lambda result: (result.facts["name"], result.facts["link"], result.facts["layer"] or 0))
    written = []
    for name in dict.fromkeys(result.facts["name"] for result in results):
        chosen = [result for result in results if result.facts["name"] == name]
        if not is_file_name(f"{name}.csv"):
            raise SaelinkError(f"{chosen[0].path}: its experiment is called {name!r}, which is no name of a file")
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
    return Tables(written, left_out)


class Notes(NamedTuple):
    """What jobs of a sweep noted."""

    notes: list[dict[str, Any]]
    left_out: int
    """Files that are damaged or another's."""


def _notes(store: Store, sweep_id: str, kind: str, *names: str) -> Notes:
    """The notes of one kind that have these `names` at least; of one that is left out a line says so."""
    found = Notes([], 0)
    for path in sorted((sweep_folder(store, sweep_id) / kind).glob("*.json")):
        try:
            note = unsealed(read_regular(path))
            if (note.get("sweep"), note.get("name")) != (sweep_id, path.stem) or not set(names) <= note.keys():
                raise SealError("is another job's")
            found.notes.append(note)
        except FileNotFoundError:
            continue
        except ValueError as error:
            store.observer.say(f"{path} {error}: it is left out; the sweep's command again writes it anew")
            found = found._replace(left_out=found.left_out + 1)
    return found


class Gathered(NamedTuple):
    """What a sweep has made."""

    rows: list[Row]
    """A fit each, with `job`, the overrides that made it, and `pareto`; by place, connector, solver, penalty."""
    bounds: Bounds | None
    """The mean predictor and the oracle, where all fits are of the same latents and targets."""
    left_out: int
    """Jobs whose note or connector is damaged or gone."""


def gathered(store: Store, sweep_id: str) -> Gathered:
    """The fits of a sweep. Raises SaelinkError when the sweep is unknown or has none.

    One that is damaged or was removed is left out, and a line says so.
    """
    folder = sweep_folder(store, sweep_id)
    if not folder.is_dir():
        raise SaelinkError(f"there is no sweep {sweep_id}; {_known(store)}")
    found: list[tuple[Artifact[TrainFacts], str]] = []
    jobs = _notes(store, sweep_id, "jobs", "train", "job")
    for job in jobs.notes:
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
    left_out = jobs.left_out + len(jobs.notes) - len(found)
    return Gathered(sorted(rows, key=lambda row: [row[name] for name in order]), bounds, left_out)


def write_pareto(store: Store, sweep_id: str) -> Gathered:
    """Write pareto.csv and pareto.png into the sweep's folder."""
    found = gathered(store, sweep_id)
    folder = sweep_folder(store, sweep_id)
    names = [*COLUMNS, *(name for name in differing(found.rows) if name not in COLUMNS), "job"]
    write_durably(folder / "pareto.csv", table_csv([{name: row.get(name) for name in names} for row in found.rows]))
    write_durably(folder / "pareto.png", picture(found.rows, found.bounds))
    return found


def failures(store: Store, sweep_id: str) -> Notes:
    """The jobs of a sweep that ended with a user's error: `job`, its number, and `error`, the line it got."""
    found = _notes(store, sweep_id, "failed", "job", "error")
    return found._replace(notes=sorted(found.notes, key=lambda failure: failure["job"]))


def begin(store: Store, sweep_id: str) -> None:
    """A clean record: what an earlier run of the same sweep noted goes, its artifacts stay."""
    store.mark()
    folder = sweep_folder(store, sweep_id)
    if folder.exists():
        shutil.rmtree(folder)
