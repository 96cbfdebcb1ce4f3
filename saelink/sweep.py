"""A multirun as a whole: what its jobs made, and the MSE-against-L1 table and picture at its end."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from saelink.store import Artifact, SaelinkError, Store, json_bytes, write_durably

COLUMNS = [
    "train",
    "connector",
    "layer_link",
    "l1_alpha",
    "mse",
    "l1",
    "fvu",
    "n_edges",
    "n_edges_above_0.01",
    "pareto",
]


def folder_of(store: Store, sweep_id: str) -> Path:
    return store.root / "sweeps" / sweep_id


def record(store: Store, sweep_id: str | None, connector: Artifact) -> None:
    """Note that a job of this sweep made, or found, this train artifact."""
    if sweep_id is not None:
        folder = folder_of(store, sweep_id) / "jobs"
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / f"{connector.key}.json", json_bytes({"train": connector.key}))


def record_failure(outputs: str, sweep_id: str, job: int, line: str) -> None:
    """Note that a job ended with a user's error; jobs may run in other processes."""
    folder = folder_of(Store(outputs), sweep_id) / "failed"
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / f"{job}.json", json_bytes({"job": job, "error": line}))


def points(store: Store, sweep_id: str) -> list[dict[str, Any]]:
    """One row per train artifact of the sweep, by L1; `pareto` marks those no other beats in both MSE and L1.

    The figures are on validation documents. Raises SaelinkError when the sweep is unknown or has no connector.
    """
    folder = folder_of(store, sweep_id)
    if not folder.is_dir():
        known = sorted(path.name for path in (store.root / "sweeps").glob("sweep*"))
        raise SaelinkError(
            f"there is no sweep {sweep_id} in {store.root}; there {'is' if known else 'are none'} "
            f"{', '.join(known)}".rstrip()
        )
    rows = []
    for path in sorted((folder / "jobs").glob("*.json")):
        connector = store.get(json.loads(path.read_bytes())["train"])
        facts, recipe = connector.facts, connector.recipe
        rows.append(
            {
                "train": connector.key,
                "connector": recipe["connector"]["name"],
                "layer_link": connector.manifest["about"].split(",")[0],
                "l1_alpha": recipe["l1_alpha"],
                "mse": facts["validation_mse"],
                "l1": facts["l1"],
                "fvu": facts["validation_fvu"],
                "n_edges": facts["n_edges"],
                "n_edges_above_0.01": facts["n_edges_above_0.01"],
            }
        )
    if not rows:
        raise SaelinkError(f"sweep {sweep_id}: no job of it has made a connector yet")
    for row in rows:
        beaten = any(
            other["mse"] <= row["mse"]
            and other["l1"] <= row["l1"]
            and (other["mse"], other["l1"]) != (row["mse"], row["l1"])
            for other in rows
        )
        row["pareto"] = not beaten
    return sorted(rows, key=lambda row: (row["layer_link"], row["connector"], row["l1_alpha"]))


def pareto(store: Store, sweep_id: str) -> list[dict[str, Any]]:
    """Write pareto.csv and pareto.png into the sweep's folder and print the table."""
    rows = points(store, sweep_id)
    folder = folder_of(store, sweep_id)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_durably(folder / "pareto.csv", text.getvalue().encode())
    write_durably(folder / "pareto.png", _picture(rows))
    store.say(f"\n{sweep_id}: {len(rows)} connectors, figures on validation documents\n")
    store.say(f"  {'connector':10} {'l1_alpha':>8} {'MSE':>9} {'FVU':>6} {'L1':>8} {'edges':>10} {'> .01':>9}")
    for row in rows:
        mark = "*" if row["pareto"] else " "
        store.say(
            f"{mark} {row['connector']:10} {row['l1_alpha']:8g} {row['mse']:9.3g} {row['fvu']:6.3f} {row['l1']:8.3g} "
            f"{row['n_edges']:10,} {row['n_edges_above_0.01']:9,}  {row['train']}"
        )
    store.say(f"\n  * no other connector has both a lower MSE and a lower L1\n  {folder / 'pareto.csv'}")
    store.say(f"  {folder / 'pareto.png'}")
    return rows


def _picture(rows: list[dict[str, Any]]) -> bytes:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for series in dict.fromkeys((row["layer_link"], row["connector"]) for row in rows):
        chosen = [row for row in rows if (row["layer_link"], row["connector"]) == series]
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
    figure.savefig(data, format="png", dpi=150, metadata={"Software": None})
    plt.close(figure)
    return data.getvalue()


class Finish(Callback):
    """Hydra's callback around a multirun: a clean record at its start, table, picture and W&B run at its end."""

    failed = 0
    """Jobs of the last multirun that ended with an error."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        shutil.rmtree(folder_of(Store(config.runtime.outputs), config.runtime.sweep), ignore_errors=True)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        from saelink import tracking

        store = Store(config.runtime.outputs, say=lambda line: print(line, flush=True))
        sweep_id = config.runtime.sweep
        folder = folder_of(store, sweep_id)
        failures = [json.loads(path.read_bytes()) for path in sorted((folder / "failed").glob("*.json"))]
        Finish.failed = len(failures)
        if (folder / "jobs").is_dir():
            rows = pareto(store, sweep_id)
            settings: Any = OmegaConf.to_object(config.wandb)
            tracking.publish_sweep(settings, store, sweep_id, rows)
        for failure in failures:
            store.say(f"job {failure['job']} failed: {failure['error']}")
