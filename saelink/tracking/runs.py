"""The Weights & Biases runs: one per train artifact, with an id from its key, and one per sweep.

A run is written in one go from what the artifacts hold, so a connector found up to date shows like a fresh one and
`saelink track` can publish it any time later. What was published where is noted under outputs/wandb/published.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saelink.config.schema import WandbConfig, WandbMode
from saelink.connectors.exported import CONFIG_FILE
from saelink.errors import SaelinkError
from saelink.evidence.consequences import CONSEQUENCES_FILE, consequences_of
from saelink.evidence.verdicts import NULLS_FILE, Verdicts
from saelink.experiments.tables import PICTURE_FILE, rows_of
from saelink.fit.train import HISTORY_FILE
from saelink.store.artifact import Artifact
from saelink.store.files import json_bytes, write_durably
from saelink.store.store import Store

AGENT = "WANDB_SWEEP_ID"
"""The environment variable by which an agent of a W&B sweep says that it started this process."""

CURVES = ("train_mse", "validation_mse", "validation_fvu", "l1", "objective", "n_edges", "n_edges_above_0.01")


def publish(
    settings: WandbConfig,
    store: Store,
    connector: Artifact,
    evaluation: Artifact | None = None,
    group: str | None = None,
    verdicts: Artifact | None = None,
) -> None:
    """Show a train artifact, and its evaluation and verdicts if given, in W&B; nothing where they are shown already.

    What the project's run shows besides (an evaluation, verdicts, a group) stays in it.
    """
    if settings.mode is WandbMode.disabled:
        return
    shown = _note(settings, store, connector.key).get("content", {})
    group = group or shown.get("group")
    evaluation, verdicts = (
        given or next((found for found in store.artifacts() if found.key == shown.get(stage)), None)
        for stage, given in (("evaluate", evaluation), ("verify", verdicts))
    )
    content = {"train": connector.key, "group": group}
    content |= {"evaluate": evaluation.key if evaluation else None, "verify": verdicts.key if verdicts else None}
    lost = consequences_of(store, verdicts) if verdicts else None
    content["consequences"] = lost.key if lost else None
    content["artifacts"] = settings.artifacts or shown.get("artifacts", False)
    with _run(settings, store, connector.key, content, name=connector.manifest["about"]) as run:
        if run is None:
            return
        config = connector.json(CONFIG_FILE)
        run.config.update({**connector.recipe, "link": {side: config[side] for side in ("sources", "target")}})
        run.config.update({"key": connector.key, "inputs": connector.manifest["inputs"]})
        run.define_metric("tokens")
        for curve in CURVES:
            run.define_metric(curve, step_metric="tokens")
        # A run that was on line before already has its curve; it only gets what is new.
        for point in [] if run.resumed else connector.json(HISTORY_FILE):
            run.log({"tokens": point["tokens"], **{curve: point[curve] for curve in CURVES}})
        run.summary.update({"final_mse": connector.facts["validation_mse"], "final_l1": connector.facts["l1"]})
        if evaluation is not None:
            _add_evaluation(run, evaluation)
        if verdicts is not None:
            _add_verdicts(run, verdicts, lost)
        if content["artifacts"]:
            _add_files(run, connector)


def _add_files(run: Any, connector: Artifact) -> None:
    import wandb

    files = wandb.Artifact(f"connector-{connector.key}", type="connector", metadata=connector.recipe)
    for name in connector.files:
        files.add_file(str(connector.file(name)), name)
    run.log_artifact(files)


def _add_verdicts(run: Any, artifact: Artifact, lost: Artifact | None) -> None:
    import wandb

    verdicts = Verdicts(artifact)
    run.summary.update({f"verify/{name}": value for name, value in verdicts.figures.items() if value is not None})
    shown = ["precision_1x", "recall_10x", "recall_suppressive_10x", "sign_1x", "slope_1x", "r2_1x"]
    graphs = {"connector": verdicts.figures, **verdicts.nulls}
    rows: list[Any] = [[name, *(figures.get(key) for key in shown)] for name, figures in graphs.items()]
    run.log({"verify/graphs": wandb.Table(columns=["graph", *shown], data=rows)})
    if lost is not None and (found := lost.json(CONSEQUENCES_FILE)):
        columns = list(found[0])
        data: list[Any] = [[row[name] for name in columns] for row in found]
        run.log({"verify/consequences": wandb.Table(columns=columns, data=data)})


def _add_evaluation(run: Any, evaluation: Artifact) -> None:
    import wandb

    fvu = evaluation.tensors("latents.safetensors")["fvu"]
    varying = fvu[~fvu.isnan()].clamp(max=2).tolist()
    run.summary.update({f"test/{name}": value for name, value in evaluation.json("metrics.json").items()})
    run.log({"test/fvu_by_latent": wandb.Histogram(varying, num_bins=40)})
    rows: list[Any] = [[line] for line in evaluation.file("circuits.txt").read_text().splitlines()]
    run.log({"test/circuits": wandb.Table(columns=["circuit"], data=rows)})


def publish_key(settings: WandbConfig, store: Store, key: str) -> None:
    """Publish a train artifact by key, with its newest evaluation. Raises SaelinkError for another stage's key."""
    connector = store.get(key)
    if connector.stage != "train":
        raise SaelinkError(f"track: {key} is a {connector.stage} artifact; only train artifacts have a W&B run")
    if settings.mode is WandbMode.disabled:
        raise SaelinkError("track: wandb.mode=disabled leaves nothing to do; use auto, online or offline")
    evaluations = [
        artifact
        for artifact in store.artifacts()
        if artifact.stage == "evaluate" and artifact.manifest["inputs"]["connector"] == connector.key
    ]
    judged = [
        artifact
        for artifact in store.artifacts()
        if artifact.stage == "verify"
        and artifact.manifest["inputs"]["connector"] == connector.key
        and NULLS_FILE in artifact.files  # not of an earlier version
    ]
    newest = (found[-1] if found else None for found in (evaluations, judged))
    publish(settings, store, connector, next(newest), verdicts=next(newest))


def publish_experiment(settings: WandbConfig, store: Store, result: Artifact, group: str | None = None) -> None:
    """One run that shows an experiment's table and picture."""
    if settings.mode is WandbMode.disabled:
        return
    name = result.manifest["about"]
    with _run(settings, store, result.key, {"experiment": result.key, "group": group}, name=name) as run:
        if run is None:
            return
        import wandb

        rows = rows_of(result)
        run.config.update({**result.recipe, "key": result.key, "inputs": result.manifest["inputs"]})
        run.log({"experiment/table": wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])})
        if PICTURE_FILE in result.files:
            run.log({"experiment/picture": wandb.Image(str(result.file(PICTURE_FILE)))})


def publish_sweep(settings: WandbConfig, store: Store, sweep_id: str, rows: list[dict[str, Any]]) -> None:
    """One run that shows a sweep: the MSE-against-L1 curve, its points and its table."""
    if settings.mode is WandbMode.disabled:
        return
    with _run(settings, store, sweep_id, {"rows": rows}, name=f"pareto {sweep_id}", group=sweep_id) as run:
        if run is None:
            return
        import wandb

        table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        series = list(dict.fromkeys(f"{row['link']}, {row['connector']}" for row in rows))
        chosen = [[row for row in rows if f"{row['link']}, {row['connector']}" == name] for name in series]
        run.log(
            {
                "pareto/table": table,
                "pareto/points": wandb.plot.scatter(table, "l1", "mse", title="MSE against L1"),
                "pareto/curve": wandb.plot.line_series(
                    xs=[[row["l1"] for row in part] for part in chosen],
                    ys=[[row["mse"] for row in part] for part in chosen],
                    keys=series,
                    title="MSE against L1",
                    xname="L1",
                ),
            }
        )


def _folder(store: Store) -> Path:
    return store.root / "wandb"


def _note_path(settings: WandbConfig, store: Store, run_id: str) -> Path:
    project = f"{settings.entity or ''}_{settings.project}"
    return _folder(store) / "published" / project / f"{run_id}.json"


def _note(settings: WandbConfig, store: Store, run_id: str) -> dict[str, Any]:
    """What was published of this run in this project: its content, on line or not, the off-line folder."""
    path = _note_path(settings, store, run_id)
    return json.loads(path.read_bytes()) if path.exists() else {}


@contextmanager
def _run(
    settings: WandbConfig, store: Store, run_id: str, content: dict[str, Any], name: str, group: str | None = None
) -> Iterator[Any]:
    """The W&B run of this id, or None when `content` is already shown in the project.

    Without a key, or when W&B can't be reached in 30 seconds, the run is kept off line and one line says how to
    send it. An off-line run that was not sent yet is replaced as a whole.
    """
    online = _online(settings)
    if AGENT in os.environ:  # the run is the agent's own trial, whatever was published before
        run, _ = _start(settings, store, run_id, name, group or content.get("group"), online)
        with run:
            yield run
        return
    note = _note(settings, store, run_id)
    same = note.get("content") == content and note["online"] == online
    if same and (_may_exist_online(settings, run_id) if online else Path(note["folder"]).exists()):
        yield None
        return
    run, online = _start(settings, store, run_id, name, group or content.get("group"), online)
    folder = Path(run.dir).parent
    with run:
        yield run
    old = Path(note["folder"]) if note.get("folder") else None
    if not online and old is not None and old.exists() and old != folder and not list(old.glob("*.synced")):
        shutil.rmtree(old)
    path = _note_path(settings, store, run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, json_bytes({"content": content, "online": online, "folder": None if online else str(folder)}))
    store.observer.say(
        f"wandb: {run.url}" if online else f"wandb: off line; `wandb sync {os.path.relpath(folder)}` sends it"
    )


def _start(
    settings: WandbConfig, store: Store, run_id: str, name: str, group: str | None, online: bool
) -> tuple[Any, bool]:
    """Start the run; off line after all when W&B can't be reached or refuses. Returns it and whether it is on line."""
    import wandb
    from wandb.errors import Error

    options: dict[str, Any] = {
        "project": settings.project,
        "entity": settings.entity,
        "id": run_id,
        "name": name,
        "group": group,
        "dir": str(store.root.resolve()),  # W&B writes from a process with its own current folder
        "settings": wandb.Settings(
            silent=True,
            console="off",
            save_code=False,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            host="-",
            init_timeout=30,
        ),
    }
    store.root.mkdir(parents=True, exist_ok=True)
    if online:
        try:
            return wandb.init(mode="online", resume="allow", **options), True
        except Error as error:
            store.observer.say(f"wandb: {str(error).splitlines()[0]}; keeping the run off line")
            wandb.teardown()  # its service still holds the id
            for half in _folder(store).glob(f"run-*-{run_id}"):
                shutil.rmtree(half)
    while list(_folder(store).glob(f"*-{time.strftime('%Y%m%d_%H%M%S')}-{run_id}")):
        time.sleep(0.05)  # W&B names folders by the second; two of one second would share one
    return wandb.init(mode="offline", **options), False


def _online(settings: WandbConfig) -> bool:
    if settings.mode is not WandbMode.auto:
        return settings.mode is WandbMode.online
    import wandb

    return wandb.login(prompt=False, verify=False)  # whether there is a key, without asking for one or using it


def _may_exist_online(settings: WandbConfig, run_id: str) -> bool:
    """False only when W&B says that there is no such run; out of reach is no reason to publish twice."""
    import wandb
    from wandb.errors import CommError

    try:
        wandb.Api(timeout=20).run("/".join(filter(None, [settings.entity, settings.project, run_id])))
    except (CommError, ValueError) as error:
        return "could not find" not in str(error).lower()
    return True
