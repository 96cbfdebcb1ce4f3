"""The Weights & Biases runs: one for each connector, set of verdicts, experiment and sweep.

A run's id is the key of what it shows. A fit is shown while it goes on (`live.py`); all else is written from what the
artifacts hold, so that a connector found up to date shows like a fresh one, and `saelink track` publishes it later.
"""

from __future__ import annotations

from typing import Any

from saelink.config.schema import WandbConfig
from saelink.errors import SaelinkError
from saelink.evidence.compared import (
    Fit,
    comparable,
    described,
    differing,
    fit_of,
    name_of,
    oracle,
    place_of,
    row_of,
    settings_of,
    tags_of,
)
from saelink.evidence.consequences import CONSEQUENCES_FILE, consequences_of
from saelink.evidence.rank_agreement import FIGURES as RANKED
from saelink.evidence.verdicts import Verdicts
from saelink.evidence.verify import VerifyStage
from saelink.experiments.tables import PICTURE_FILE, rows_of
from saelink.fit.train import HISTORY_FILE, TrainFacts, TrainStage
from saelink.job import Job
from saelink.store.artifact import Artifact
from saelink.store.store import Store
from saelink.tracking.charts import Bounds, wandb_charts
from saelink.tracking.live import curve_point, define_curves
from saelink.tracking.outputs import add_outputs, outputs_in
from saelink.tracking.project import OpenRun, Project, Shown
from saelink.tracking.sweep import Gathered
from saelink.tracking.tested import tested_figures, tests_of

GRAPH_FIGURES = ("precision_1x", "recall_10x", "recall_suppressive_10x", "sign_1x", "slope_1x", "r2_1x", *RANKED)
"""Columns of the table of graphs: the connector's, and those that should not agree with the model."""


def fit_shown(job: Job) -> Shown:
    """The run of a fit that is about to begin."""
    stage = TrainStage(job)
    return _shown(stage.key, Fit(stage.recipe(), stage.described(), None), job.cfg.runtime.sweep)


def _shown(key: str, fit: Fit, group: str | None) -> Shown:
    config = settings_of(fit) | {"key": key}
    return Shown(key, name_of(fit), "train", group or place_of(fit.described), tags_of(fit), config)


def publish(
    project: Project,
    connector: Artifact[TrainFacts],
    evaluation: Artifact[Any] | None = None,
    group: str | None = None,
    verdicts: Artifact[Any] | None = None,
    begun: OpenRun | None = None,
) -> bool:
    """Show a train artifact, and its evaluation and verdicts if given, in W&B; False where they are shown already.

    What the project's run shows besides (an evaluation, verdicts, a group) stays in it. `begun` is the run of a fit
    that was watched. Raises SaelinkError for an artifact of an earlier version.
    """
    store = project.store
    if project.disabled:
        return False
    shown = project.noted(connector.key).get("content") or {}
    group = group or shown.get("group")
    evaluation, verdicts = (
        given or next((found for found in store.artifacts() if found.key == shown.get(stage)), None)
        for stage, given in (("evaluate", evaluation), ("verify", verdicts))
    )
    content = {"train": connector.key, "group": group}
    content |= {"evaluate": evaluation.key if evaluation else None, "verify": verdicts.key if verdicts else None}
    lost = consequences_of(store, verdicts) if verdicts else None
    content["consequences"] = lost.key if lost else None
    outputs = outputs_in(store, connector.key) if verdicts else {}
    content["outputs"] = [artifact.key for artifact in outputs.values()]
    tests = tests_of(store, connector.key) if verdicts else []
    content["tests"] = [test.key for test in tests]
    content["artifacts"] = project.settings.artifacts or shown.get("artifacts", False)
    what = _shown(connector.key, fit_of(described(connector)), group)
    with project.showing(what, content, begun) as open_run:
        if open_run is None:
            return False
        run = open_run.run
        run.name = what.name  # one that was begun before the tokens were counted says so now
        run.config.update(what.config, allow_val_change=True)
        if begun is None:
            _add_history(run, connector)
        _add_final(run, connector)
        bounds = Bounds(row_of(connector), oracle(store, connector))
        run.log(wandb_charts(comparable(store, connector), bounds, connector.key))
        if evaluation is not None:
            _add_evaluation(run, evaluation)
        if verdicts is not None:
            _add_verdicts(run, verdicts, lost)
            add_outputs(run, outputs)
            run.summary.update(tested_figures(tests))
        if content["artifacts"]:
            _add_files(run, connector)
    if verdicts is not None and verdicts.stage == VerifyStage.name:
        _publish_verdicts(project, connector, verdicts, lost, what.group)
    return True


def _add_history(run: Any, connector: Artifact[TrainFacts]) -> None:
    define_curves(run)
    seen = run.summary.get("tokens", -1) if run.resumed else -1  # a run that was online before has its curve
    for point in connector.json(HISTORY_FILE):
        if point["tokens"] > seen:
            run.log(curve_point(point))


def _add_final(run: Any, connector: Artifact[TrainFacts]) -> None:
    """Figures of the whole validation split: these and no others are called final."""
    facts = connector.facts
    final = {"mse": facts["validation_mse"], "fvu": facts["validation_fvu"], "l1": facts["l1"]}
    final["edges"] = facts["n_edges"]
    run.summary.update({f"final_{name}": value for name, value in final.items()})


def _add_files(run: Any, connector: Artifact[TrainFacts]) -> None:
    import wandb

    files = wandb.Artifact(f"connector-{connector.key}", type="connector", metadata=connector.recipe)
    for name in connector.files:
        files.add_file(str(connector.file(name)), name)
    run.log_artifact(files)


def _add_verdicts(run: Any, artifact: Artifact[Any], lost: Artifact[Any] | None) -> None:
    import wandb

    verdicts = Verdicts(artifact)
    run.summary.update({f"verify/{name}": value for name, value in verdicts.figures.items() if value is not None})
    graphs = {"connector": verdicts.figures, **(verdicts.nulls or {})}
    rows: list[Any] = [[name, *(figures.get(key) for key in GRAPH_FIGURES)] for name, figures in graphs.items()]
    run.log({"verify/graphs": wandb.Table(columns=["graph", *GRAPH_FIGURES], data=rows)})
    if lost is not None and (found := lost.json(CONSEQUENCES_FILE)):
        names = list(found[0])
        data: list[Any] = [[row[name] for name in names] for row in found]
        run.log({"verify/consequences": wandb.Table(columns=names, data=data)})


def _publish_verdicts(
    project: Project,
    connector: Artifact[TrainFacts],
    verdicts: Artifact[Any],
    lost: Artifact[Any] | None,
    group: str,
) -> None:
    """The verdicts once more in a run of their own, beside other connectors' verdicts."""
    fit = fit_of(connector)
    config = settings_of(fit) | {"key": verdicts.key, "train": connector.key, **verdicts.recipe}
    shown = Shown(verdicts.key, f"verify {name_of(fit)}", "verify", group, tags_of(fit), config)
    content = {"verify": verdicts.key, "consequences": lost.key if lost else None, "group": group}
    with project.showing(shown, content) as open_run:
        if open_run is not None:
            _add_final(open_run.run, connector)
            _add_verdicts(open_run.run, verdicts, lost)


def _add_evaluation(run: Any, evaluation: Artifact[Any]) -> None:
    import wandb

    fvu = evaluation.tensors("latents.safetensors")["fvu"]
    varying = fvu[~fvu.isnan()].clamp(max=2).tolist()
    other = evaluation.facts.get("other_text")
    place = "test" if other is None else f"test on {other}"
    run.summary.update({f"{place}/{name}": value for name, value in evaluation.json("metrics.json").items()})
    run.log({f"{place}/fvu_by_latent": wandb.Histogram(varying, num_bins=40)})
    rows: list[Any] = [[line] for line in evaluation.file("circuits.txt").read_text("utf-8").splitlines()]
    run.log({f"{place}/circuits": wandb.Table(columns=["circuit"], data=rows)})


def publish_key(settings: WandbConfig, store: Store, key: str) -> bool:
    """Publish a train artifact by key, with its newest evaluation and verdicts; False where they are shown already.

    Raises SaelinkError for another stage's key, and where W&B is disabled.
    """
    connector = store.get(key)
    if connector.stage != TrainStage.name:
        raise SaelinkError(f"track: {key} is a {connector.stage} artifact; only train artifacts have a W&B run")
    project = Project(settings, store)
    if project.disabled:
        raise SaelinkError(
            "track: wandb.mode=disabled, here or in WANDB_MODE, leaves nothing to do; use online or offline"
        )
    of_it = [each for each in store.artifacts() if each.manifest["inputs"].get("connector") == connector.key]
    evaluations = [each for each in of_it if each.stage == "evaluate" and "other_text" not in each.facts]
    judged = [each for stage in ("verdicts", VerifyStage.name) for each in of_it if each.stage == stage]
    newest = (found[-1] if found else None for found in (evaluations, judged))
    return publish(project, connector, next(newest), verdicts=next(newest))


def publish_experiment(project: Project, result: Artifact[Any], group: str | None = None) -> None:
    """One run that shows an experiment's table and picture."""
    if project.disabled:
        return
    facts = result.facts
    config = {**result.recipe, "experiment": facts["name"], "layer": facts["layer"], "link": facts["link"]}
    config |= {"key": result.key}
    tags = [facts["name"], f"layer {facts['layer']}", str(facts["link"])]
    about = result.manifest["about"]
    shown = Shown(result.key, about, "experiment", group or facts["name"], tags, config)
    with project.showing(shown, {"experiment": result.key, "group": group}) as open_run:
        if open_run is None:
            return
        import wandb

        rows, run = rows_of(result), open_run.run
        run.log({"experiment/table": wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])})
        if PICTURE_FILE in result.files:
            run.log({"experiment/picture": wandb.Image(str(result.file(PICTURE_FILE)))})


def publish_sweep(project: Project, sweep_id: str, found: Gathered) -> None:
    """One run that shows a sweep: error and edges against L1, its table, and what all of its fits have in common."""
    if project.disabled:
        return
    rows = found.rows
    common = {name: value for name, value in rows[0].items() if all(row.get(name) == value for row in rows)}
    for name in ("train", "name", "job", "pareto", "mse", "fvu", "l1", "n_edges", "n_edges_above_0.01"):
        common.pop(name, None)
    swept = [name for name in [*differing(rows), "l1_alpha"] if len({str(row.get(name)) for row in rows}) > 1]
    best = min(rows, key=lambda row: row["fvu"])
    config = common | {"swept": ", ".join(swept), "fits": len(rows), "key": sweep_id}
    where = " ".join(str(common[name]) for name in ("model", "link") if name in common)
    if "layer" in common:
        where += f" layer {common['layer']}"
    tags = [str(common[name]) for name in ("model", "link", "connector", "solver") if name in common]
    name = f"sweep of {', '.join(swept) or 'one fit'}: {where} ({sweep_id})"
    shown = Shown(sweep_id, name, "sweep", sweep_id, tags, config)
    with project.showing(shown, {"rows": rows}) as open_run:
        if open_run is not None:
            open_run.run.log(wandb_charts(rows, found.bounds))
            on_frontier = sum(row["pareto"] for row in rows)
            open_run.run.summary.update({"on_frontier": on_frontier, "best_fvu": best["fvu"], "best": best["train"]})
