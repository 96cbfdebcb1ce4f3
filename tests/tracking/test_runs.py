"""W&B: offline runs read back, one run per connector, nothing when disabled."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from saelink.config.schema import Config, WandbConfig, WandbMode
from saelink.errors import SaelinkError
from saelink.evidence.evaluate import EvaluateStage
from saelink.evidence.verify import VerifyStage
from saelink.fit.train import TrainStage
from saelink.job import Job
from saelink.store.store import Store
from saelink.tracking.project import Project
from saelink.tracking.runs import publish, publish_key

from helpers.observing import Lines
from helpers.world import Run

OFFLINE = WandbConfig(mode=WandbMode.offline, project="test")


def offline_runs(store: Store, run_id: str) -> list[Path]:
    return sorted((store.root / "wandb").glob(f"offline-run-*-{run_id}"))


def records(folder: Path) -> list[dict[str, Any]]:
    """Every record of an offline run, by W&B's own reader."""
    file = next(folder.glob("*.wandb"))
    wandb = Path(sys.executable).parent / "wandb"
    done = subprocess.run([wandb, "leet", "inspect", "--json", file], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def history(folder: Path) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in records(folder) if record["type"] == "history"]


def test_a_run_holds_the_artifacts_whole_history(config: Callable[..., Config], store: Store) -> None:
    cfg = config()
    connector, evaluation = TrainStage(Job(cfg, store)).pull(), EvaluateStage(Job(cfg, store)).pull()
    publish(Project(OFFLINE, store), connector, evaluation, group="sweep1")
    (folder,) = offline_runs(store, connector.key)
    text = json.dumps(records(folder))
    run = next(record["run"] for record in records(folder) if record["type"] == "run")
    assert run["run_id"] == connector.key and run["project"] == "test" and run["run_group"] == "sweep1"
    curve = [point for point in history(folder) if "validation_mse" in point]
    expected = connector.json("history.json")
    assert [point["tokens"] for point in curve] == [point["tokens"] for point in expected]
    for name in ("train_mse", "validation_mse", "validation_fvu", "l1", "n_edges"):
        assert [point[name] for point in curve] == pytest.approx([point[name] for point in expected])
    for name in ("final_mse", "final_l1", "test/fvu", "test/mse", "test/fraction_predicted", "test/fvu_by_latent"):
        assert name in text, name
    assert '"l1_alpha": 0.0008' in text and "hook_mlp_out" in text


def test_nothing_personal_is_kept(config: Callable[..., Config], store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-secret-token")
    connector = TrainStage(Job(config(), store)).pull()
    publish(Project(OFFLINE, store), connector)
    (folder,) = offline_runs(store, connector.key)
    everything = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"a-secret-token" not in everything
    assert not list(folder.rglob("requirements.txt")) and not list(folder.rglob("wandb-metadata.json"))
    assert not list(folder.rglob("*.py"))


def test_publishing_again_adds_nothing_and_news_replace_the_run(config: Callable[..., Config], store: Store) -> None:
    store.observer = lines = Lines()
    cfg = config()
    connector = TrainStage(Job(cfg, store)).pull()
    publish(Project(OFFLINE, store), connector)
    (first,) = offline_runs(store, connector.key)
    assert sum("wandb sync" in line for line in lines.said) == 1
    publish(Project(OFFLINE, store), connector)
    assert offline_runs(store, connector.key) == [first]
    evaluation = EvaluateStage(Job(cfg, store)).pull()
    publish(Project(OFFLINE, store), connector, evaluation)
    (second,) = offline_runs(store, connector.key)
    assert "test/fvu" in json.dumps(records(second))
    assert any("validation_mse" in point for point in history(second))


def test_verdicts_are_shown_and_stay(config: Callable[..., Config], store: Store) -> None:
    cfg = config("solver=exact")
    connector, verdicts = TrainStage(Job(cfg, store)).pull(), VerifyStage(Job(cfg, store)).pull()
    publish(Project(OFFLINE, store), connector, verdicts=verdicts)
    (first,) = offline_runs(store, connector.key)
    text = json.dumps(records(first))
    assert all(name in text for name in ("verify/edges_confirmed", "verify/graphs", "verify/missed"))
    publish_key(OFFLINE, store, connector.key)
    assert offline_runs(store, connector.key) == [first]


def test_training_again_keeps_the_evaluation_in_the_run(config: Callable[..., Config], store: Store) -> None:
    cfg = config()
    connector, evaluation = TrainStage(Job(cfg, store)).pull(), EvaluateStage(Job(cfg, store)).pull()
    publish(Project(OFFLINE, store), connector, evaluation, group="sweep1")
    (first,) = offline_runs(store, connector.key)
    publish(Project(OFFLINE, store), connector)  # as `saelink train` does when it is up to date
    publish_key(OFFLINE, store, connector.key)
    assert offline_runs(store, connector.key) == [first]


@pytest.fixture
def forgotten_key() -> Iterator[None]:
    """W&B keeps a key that it was given for as long as a process lives; the next test has none."""
    yield
    from wandb.sdk.lib import wbauth

    wbauth.unauthenticate_session()


@pytest.mark.usefixtures("forgotten_key")
def test_a_key_without_a_connection_is_offline(
    config: Callable[..., Config], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("saelink.tracking.project.WAIT", 8.0)  # half a minute is no different
    asked: list[float] = []
    login = wandb.login

    def asking(**options: Any) -> bool:  # it asks the server whose the key is, which takes seconds
        started = time.monotonic()
        try:
            return login(**options)
        finally:
            asked.append(time.monotonic() - started)

    monkeypatch.setattr("wandb.login", asking)
    options: list[dict[str, Any]] = []
    init = wandb.init
    monkeypatch.setattr("wandb.init", lambda **given: (options.append(given), init(**given))[1])
    store.observer = lines = Lines()
    connector = TrainStage(Job(config(), store)).pull()
    publish(Project(WandbConfig(project="test"), store), connector)
    (folder,) = offline_runs(store, connector.key)
    assert any("keeping the run offline" in line for line in lines.said) and "wandb sync" in lines.said[-1]
    assert any("validation_mse" in point for point in history(folder))
    assert not list((store.root / "wandb").glob("run-*"))
    assert len(asked) == 1 and options[0]["mode"] == "online"
    assert options[0]["settings"].init_timeout <= max(8 - asked[0], 1) + 0.5  # out of the same time


def test_another_project_gets_its_own_run(config: Callable[..., Config], store: Store) -> None:
    connector = TrainStage(Job(config(), store)).pull()
    publish(Project(OFFLINE, store), connector)
    publish(Project(WandbConfig(mode=WandbMode.offline, project="other"), store), connector)
    projects = {
        record["run"]["project"]
        for folder in offline_runs(store, connector.key)
        for record in records(folder)
        if record["type"] == "run"
    }
    assert projects == {"test", "other"}


def test_disabled_leaves_no_files(config: Callable[..., Config], store: Store) -> None:
    publish(Project(WandbConfig(mode=WandbMode.disabled), store), TrainStage(Job(config(), store)).pull())
    assert not (store.root / "wandb").exists()


def test_auto_without_a_key_is_offline(
    config: Callable[..., Config], store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    connector = TrainStage(Job(config(), store)).pull()
    publish(Project(WandbConfig(project="test"), store), connector)
    assert len(offline_runs(store, connector.key)) == 1


def test_track_publishes_what_was_made_with_wandb_disabled(saelink: Run, tmp_path: Path) -> None:
    assert saelink("evaluate")[0] == 0
    store = Store(tmp_path / "outputs")
    assert not (store.root / "wandb").exists()
    connector = next(artifact for artifact in store.artifacts() if artifact.stage == "train")
    code, out, err = saelink("track", connector.key, "wandb.mode=offline", bare=True)
    assert code == 0, err
    (folder,) = offline_runs(store, connector.key)
    assert "wandb sync" in out and "test/fvu" in json.dumps(records(folder))
    cached = next(artifact for artifact in store.artifacts() if artifact.stage == "cache")
    code, _, err = saelink("track", cached.key, "wandb.mode=offline", bare=True)
    assert code == 1 and "only train artifacts" in err


def test_track_refuses_disabled(store: Store, config: Callable[..., Config]) -> None:
    connector = TrainStage(Job(config(), store)).pull()
    with pytest.raises(SaelinkError, match=r"wandb\.mode=disabled"):
        publish_key(WandbConfig(mode=WandbMode.disabled), store, connector.key)


# --------------------------------------------------------------------------- sweeps


def test_a_multirun_ends_with_its_pareto_table_picture_and_run(saelink: Run, tmp_path: Path) -> None:
    code, out, err = saelink("train", "-m", "l1_alpha=1e-4,1e-2,10", "wandb.mode=offline")
    assert code == 0, err
    store = Store(tmp_path / "outputs")
    (folder,) = (store.root / "sweeps").glob("sweep*")
    rows = (folder / "pareto.csv").read_text().splitlines()
    assert len(rows) == 4 and rows[0].startswith("train,model,layer,link,connector,solver,l1_alpha,mse,l1,fvu")
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert out.count("wandb sync") == 4
    (run,) = offline_runs(store, folder.name)
    text = json.dumps(records(run))
    assert all(f"pareto/{name}" in text for name in ("mse", "fvu", "n_edges", "table", "points", "picture"))
    trained = [artifact for artifact in store.artifacts() if artifact.stage == "train"]
    assert len(trained) == 3
    for artifact in trained:
        run_record = next(r["run"] for r in records(offline_runs(store, artifact.key)[0]) if r["type"] == "run")
        assert run_record["run_group"] == folder.name
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "outputs") == []


def test_a_sweep_of_cached_artifacts_shows_like_a_fresh_one(saelink: Run, tmp_path: Path) -> None:
    assert saelink("train", "-m", "l1_alpha=1e-4,1e-2")[0] == 0
    store = Store(tmp_path / "outputs")
    before = {artifact.key for artifact in store.artifacts()}
    code, _, _ = saelink("train", "-m", "l1_alpha=1e-4,1e-2", "wandb.mode=offline")
    new = [artifact.stage for artifact in store.artifacts() if artifact.key not in before]
    assert code == 0 and new == ["oracle"]  # for the charts
    for artifact in store.artifacts():
        if artifact.stage == "train":
            (folder,) = offline_runs(store, artifact.key)
            assert any("validation_mse" in point for point in history(folder))


def test_a_failed_job_does_not_take_the_sweep_with_it(saelink: Run, tmp_path: Path) -> None:
    code, out, err = saelink("train", "-m", "layer=0,1,9")
    assert code == 1 and "layer=9: the model has layers 0 to 1" in err and "job 2 failed" in out
    (folder,) = (tmp_path / "outputs" / "sweeps").glob("sweep*")
    assert len((folder / "pareto.csv").read_text().splitlines()) == 3
    (folder / "pareto.csv").unlink()
    assert saelink("pareto", folder.name, bare=True)[0] == 0
    assert (folder / "pareto.csv").exists()


def table_of(folder: Path, key: str) -> dict[str, Any]:
    """A table that an offline run logged."""
    (path,) = (folder / "files" / "media" / "table").glob(f"{key}_*.table.json")
    return json.loads(path.read_bytes())


CHARTS = ("mse", "fvu", "n_edges", "table", "points", "picture")


def test_one_fit_has_its_way_its_frontier_and_columns(saelink: Run, tmp_path: Path) -> None:
    assert saelink("train", "l1_alpha=1e-2")[0] == 0
    code, out, err = saelink("train", "l1_alpha=1e-4", "wandb.mode=offline")
    assert code == 0, err
    assert "frontier   on it, beside 1 other fit of the same latents" in out and "next: saelink evaluate" in out
    store = Store(tmp_path / "outputs")
    first, fit = (a for a in store.artifacts() if a.stage == "train")
    (folder,) = offline_runs(store, fit.key)
    logged = {key.split("_table")[0].split(".")[0] for point in history(folder) for key in point}
    assert {f"pareto/{name}" for name in CHARTS} <= logged
    assert {"live/per_second", "live/seconds_left", "live/peak_memory_gb", "way/l1", "way/mse", "way/edges"} <= logged
    way = [point for point in history(folder) if "way/l1" in point]
    assert len(way) == len(fit.json("history.json")) > 1
    table = table_of(folder, "pareto/table")
    cells = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert {cell["train"]: cell["this_run"] for cell in cells} == {first.key: False, fit.key: True}
    lines = {row[1] for row in table_of(folder, "pareto/mse_table")["data"]}
    assert lines == {"linear adam", "mean predictor", "oracle"}
    run = [record["run"] for record in records(folder) if record["type"] == "run"]
    assert run[0]["job_type"] == "train" and run[0]["run_group"] == "llama layer 1 mlp"
    assert {"layer 1", "linear", "adam", "mlp"} <= set(run[0]["tags"])
    text = json.dumps(records(folder))
    assert all(f'"{name}"' in text for name in ("final_mse", "final_fvu", "final_l1", "final_edges", "solver_lr"))
    assert "gram" not in text and '"inputs"' not in text, "no internals among the columns"


def test_a_list_of_penalties_is_a_sweep(saelink: Run, tmp_path: Path) -> None:
    code, out, err = saelink("train", "l1_alpha=[1e-4,1e-2]", "wandb.mode=offline")
    assert code == 0, err
    store = Store(tmp_path / "outputs")
    (folder,) = (store.root / "sweeps").glob("sweep*")
    assert {path.name for path in folder.iterdir()} == {"jobs", "pareto.csv", "pareto.png"} and folder.name in out
    (run,) = offline_runs(store, folder.name)
    said = next(record["run"] for record in records(run) if record["type"] == "run")
    assert said["job_type"] == "sweep" and said["display_name"].startswith("sweep of l1_alpha: llama mlp layer 1")
    for artifact in store.artifacts():
        if artifact.stage == "train":
            found = records(offline_runs(store, artifact.key)[0])
            assert next(r["run"] for r in found if r["type"] == "run")["run_group"] == folder.name


def test_a_sweep_over_two_settings_has_a_line_for_each(saelink: Run, tmp_path: Path) -> None:
    sweep = ["connector=mlp", "connector.d_hidden=4,8", "l1_alpha=1e-4,1e-3", "wandb.mode=offline"]
    code, out, err = saelink("train", "-m", *sweep)
    assert code == 0, err
    store = Store(tmp_path / "outputs")
    (folder,) = (store.root / "sweeps").glob("sweep*")
    (run,) = offline_runs(store, folder.name)
    series = {"mlp adam, d_hidden 4", "mlp adam, d_hidden 8"}
    lines = {row[1] for row in table_of(run, "pareto/mse_table")["data"]}
    assert lines - {"mean predictor", "oracle"} == series and all(f"  {name}\n" in out for name in series)
    rows = list(csv.DictReader((folder / "pareto.csv").open()))
    assert {row["connector_d_hidden"] for row in rows} == {"4", "8"} and len(rows) == 4
    config = json.dumps([record for record in records(run) if record["type"] == "config"])
    assert '"swept": "connector_d_hidden, l1_alpha"' in config and '"layer": 1' in config


def test_a_damaged_note_of_a_sweep_costs_itself(saelink: Run, tmp_path: Path) -> None:
    assert saelink("train", "l1_alpha=[1e-4,1e-2]")[0] == 0
    (folder,) = (tmp_path / "outputs" / "sweeps").glob("sweep*")
    (folder / "jobs" / "bad.json").write_text("{")
    (folder / "jobs" / "other.json").write_text("[1]")
    code, out, _ = saelink("pareto", folder.name, bare=True)
    assert code == 0 and out.count("can't be read: it is left out") == 2 and "2 connectors" in out


def test_track_says_what_is_there_already(saelink: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")  # with wandb.mode=auto: no key is asked for, no warning
    code, _, err = saelink("train", "wandb.mode=auto")
    assert code == 0 and "Unable to verify login" not in err
    fit = next(a for a in Store(tmp_path / "outputs").artifacts() if a.stage == "train")
    code, out, _ = saelink("track", fit.key, bare=True)
    assert code == 0 and f"wandb: {fit.key} is in project saelink already" in out


def test_a_list_of_alphas_is_one_artifact_each(saelink: Run, tmp_path: Path) -> None:
    assert saelink("train", "l1_alpha=[1e-4,1e-2]")[0] == 0
    _, out, _ = saelink("train", "l1_alpha=0.01")
    assert "up to date" in out
    assert len([a for a in Store(tmp_path / "outputs").artifacts() if a.stage == "train"]) == 2


def test_a_run_has_what_interventions_say(saelink: Run, store: Store) -> None:
    from saelink.evidence.joint_effects import JointStage
    from saelink.evidence.logic_trials import LogicTrialsStage
    from saelink.tracking.tested import tested_figures, tests_of

    assert saelink("verify", "solver=exact", "verify.stability=false", f"runtime.outputs={store.root}")[0] == 0
    train = next(each for each in store.artifacts() if each.stage == "train")
    tests = tests_of(store, train.key)
    assert [test.stage for test in tests] == [JointStage.name, LogicTrialsStage.name]
    figures = tested_figures(tests)
    assert figures["verify/logic/and not/holds"] >= 0 and all(isinstance(v, int | float) for v in figures.values())
    assert tests_of(store, "none") == []
