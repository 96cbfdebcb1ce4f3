"""A multirun as a whole: what its jobs made, and the MSE-against-L1 table and picture at its end."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

from saelink.errors import SaelinkError
from saelink.experiments.tables import PICTURE_FILE, rows_of, table_csv
from saelink.fit.train import TrainFacts
from saelink.store.artifact import Artifact
from saelink.store.files import json_bytes, write_durably
from saelink.store.store import Store

COLUMNS = [
    "train",
    "link",
    "connector",
    "solver",
    "l1_alpha",
    "mse",
    "l1",
    "fvu",
    "n_edges",
    "n_edges_above_0.01",
    "pareto",
    "job",
]


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
    results = [store.get(json.loads(path.read_bytes())["experiment"]) for path in (folder / "experiments").glob("*")]
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


def record_failure(store: Store, sweep_id: str, job: int, line: str) -> None:
    """Note that a job ended with a user's error; jobs may run in other processes."""
    folder = sweep_folder(store, sweep_id) / "failed"
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / f"{job}.json", json_bytes({"job": job, "error": line}))


def points(store: Store, sweep_id: str) -> list[dict[str, Any]]:
    """One row per train artifact of the sweep, figures on validation documents.

    `pareto` marks those that no other connector for the same targets beats in both MSE and L1. A connector that is
    damaged or was removed is left out, and a line says so. Raises SaelinkError when the sweep is unknown or has none.
    """
    folder = sweep_folder(store, sweep_id)
    if not folder.is_dir() or not re.fullmatch(r"sweep\w+", sweep_id):
        known = sorted(path.name for path in (store.root / "sweeps").glob("sweep*"))
        raise SaelinkError(f"no sweep {sweep_id} in {store.root}; known: {', '.join(known) or 'none'}")
    rows, targets = [], []
    for path in sorted((folder / "jobs").glob("*.json")):
        job = json.loads(path.read_bytes())
        try:
            connector = store.get(job["train"])
        except SaelinkError as error:  # damaged or removed since; the others still make a table
            store.observer.say(f"pareto: left out: {error}")
            continue
        facts, recipe = connector.facts, connector.recipe
        rows.append(
            {
                "train": connector.key,
                "link": connector.manifest["about"].split(",")[0],
                "connector": recipe["connector"]["name"],
                "solver": recipe["solver"]["name"],
                "l1_alpha": recipe["l1_alpha"],
                "mse": facts["validation_mse"],
                "l1": facts["l1"],
                "fvu": facts["validation_fvu"],
                "n_edges": facts["n_edges"],
                "n_edges_above_0.01": facts["n_edges_above_0.01"],
                "job": job["job"],
            }
        )
        # Errors can only be compared on the same targets in the same units.
        same = ("latent_scale", "drop_positions", "max_norm_ratio")
        inputs = connector.manifest["inputs"]
        chosen = (facts["n_targets"], recipe["min_rate"], inputs.get("subset"), recipe.get("part"))
        targets.append((inputs["target"], *chosen, *(recipe[name] for name in same)))
    if not rows:
        raise SaelinkError(f"sweep {sweep_id}: no job of it has made a connector yet")
    for row, target in zip(rows, targets, strict=True):
        rivals = [other for other, theirs in zip(rows, targets, strict=True) if theirs == target]
        row["pareto"] = not any(
            other["mse"] <= row["mse"]
            and other["l1"] <= row["l1"]
            and (other["mse"] < row["mse"] or other["l1"] < row["l1"])
            for other in rivals
        )
    return sorted(rows, key=lambda row: (row["link"], row["connector"], row["l1_alpha"]))


def write_pareto(store: Store, sweep_id: str) -> list[dict[str, Any]]:
    """Write pareto.csv and pareto.png into the sweep's folder; the rows of `points`."""
    rows = points(store, sweep_id)
    folder = sweep_folder(store, sweep_id)
    write_durably(folder / "pareto.csv", table_csv([{name: row[name] for name in COLUMNS} for row in rows]))
    write_durably(folder / "pareto.png", pareto_picture(rows))
    return rows


def pareto_picture(rows: list[dict[str, Any]], dpi: int = 150) -> bytes:
    """The rows of `points` as a PNG: error against L1, a line for each link and connector."""
    from matplotlib.figure import Figure  # not pyplot: a notebook keeps its own backend

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for series in dict.fromkeys((row["link"], row["connector"]) for row in rows):
        chosen = [row for row in rows if (row["link"], row["connector"]) == series]
        axes.plot(
            [row["l1"] for row in chosen], [row["mse"] for row in chosen], "o-", label=f"{series[0]}, {series[1]}"
        )
        for row in chosen:
            axes.annotate(
                f"{row['l1_alpha']:g}", (row["l1"], row["mse"]), textcoords="offset points", xytext=(5, 4), fontsize=8
            )
    if all(row["l1"] > 0 for row in rows):
        axes.set_xscale("log")
    axes.set(xlabel="L1 (mean over outputs of the sum of |weights|)", ylabel="validation MSE")
    axes.set_title("Error against sparsity; labels are l1_alpha", fontsize=10)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=dpi, metadata={"Software": None})
    return data.getvalue()


def failures(store: Store, sweep_id: str) -> list[dict[str, Any]]:
    """The jobs of a sweep that ended with a user's error: `job`, its number, and `error`, the line it got."""
    paths = sorted((sweep_folder(store, sweep_id) / "failed").glob("*.json"))
    return [json.loads(path.read_bytes()) for path in paths]


def begin(store: Store, sweep_id: str) -> None:
    """A clean record: what an earlier run of the same sweep noted goes, its artifacts stay."""
    shutil.rmtree(sweep_folder(store, sweep_id), ignore_errors=True)
