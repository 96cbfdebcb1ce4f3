"""W&B's server, as far as a stand-in on loopback goes: runs created, watched, resumed; one that refuses or hangs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from saelink.config.schema import Config, WandbConfig, WandbMode
from saelink.errors import SaelinkError
from saelink.evidence.consequences import ConsequencesStage
from saelink.evidence.evaluate import EvaluateStage
from saelink.evidence.verify import VerifyStage
from saelink.experiments.runner import run_experiments
from saelink.fit.train import TrainStage
from saelink.job import Job
from saelink.store.store import Store
from saelink.tracking.live import watched
from saelink.tracking.project import WAIT, OpenRun, Project
from saelink.tracking.runs import fit_shown, publish, publish_experiment
from saelink.tracking.workspace import save_workspace

from helpers.observing import Lines
from helpers.wandb_server import WandbServer

ONLINE = WandbConfig(mode=WandbMode.online, project="test")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbServer]:
    server = WandbServer()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    import wandb

    wandb.teardown()  # its service remembers the server of another test
    yield server
    server.close()
    wandb.teardown()


@pytest.fixture
def job(config: Callable[..., Config], store: Store) -> Job:
    store.observer = Lines()
    return Job(config(), store)


def lines_of(job: Job) -> list[str]:
    assert isinstance(job.observer, Lines)
    return job.observer.said


def test_a_fit_is_seen_while_it_goes_on_and_whole_at_the_end(server: WandbServer, job: Job) -> None:
    project = Project(ONLINE, job.store)
    with watched(job, project, fit_shown) as (seen, fit):
        connector = TrainStage(seen).pull()
        assert fit.begun is not None and fit.begun.online
        assert publish(project, connector, begun=fit.begun)
    run = server.settings[connector.key]
    assert run["jobType"] == "train" and run["groupName"] == "llama layer 1 mlp" and "layer 1" in run["tags"]
    assert run["displayName"].startswith("llama layer 1 mlp, linear adam, l1_alpha 0.0008, lr 0.01")
    config = json.loads(run["config"])
    assert config["l1_alpha"]["value"] == 0.0008 and config["solver_lr"]["value"] == 0.01
    points = [line for line in server.history[connector.key] if "validation_mse" in line]
    history = connector.json("history.json")
    assert [point["tokens"] for point in points] == [point["tokens"] for point in history]
    assert any("live/per_second" in line for line in server.history[connector.key])
    assert server.summary[connector.key]["final_fvu"] == pytest.approx(connector.facts["validation_fvu"])
    assert server.finished[connector.key] == 0
    assert any(line.startswith("wandb: http://") for line in lines_of(job))


def test_a_fit_that_stopped_midway_ends_in_the_same_run(
    server: WandbServer, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    import saelink.fit.solvers.adam as adam

    measure, stop_at = adam.validation_point, [2]

    def stopping(*arguments: Any) -> dict[str, float]:
        stop_at[0] -= 1
        if stop_at[0] < 0:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(adam, "validation_point", stopping)
    with pytest.raises(KeyboardInterrupt), watched(job, Project(ONLINE, job.store), fit_shown) as (seen, _):
        TrainStage(seen).pull()
    key = TrainStage(job).key
    assert server.finished[key] == 1
    before = [line["tokens"] for line in server.history[key] if "validation_mse" in line]
    assert len(before) == 2
    monkeypatch.setattr(adam, "validation_point", measure)
    project = Project(ONLINE, job.store)
    with watched(job, project, fit_shown) as (seen, fit):
        connector = TrainStage(seen).pull()
        publish(project, connector, begun=fit.begun)
    after = [line["tokens"] for line in server.history[key] if "validation_mse" in line]
    assert connector.key == key and after == [point["tokens"] for point in connector.json("history.json")]
    assert server.finished[key] == 0


def test_a_fit_goes_on_without_wandbs_process(server: WandbServer, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(ONLINE, job.store)
    with watched(job, project, fit_shown) as (seen, fit):

        def begun() -> OpenRun:
            found = begin(fit_shown(seen))
            monkeypatch.setattr(found.run, "log", lost)
            return found

        def lost(*_: object, **__: object) -> None:
            raise RuntimeError("the process is gone")

        begin = project.begin
        monkeypatch.setattr(project, "begin", lambda _: begun())
        connector = TrainStage(seen).pull()
        assert publish(project, connector, begun=fit.begun)
    assert connector.facts["validation_fvu"] < 1
    assert lines_of(job)[-1] == "wandb: the process is gone; `saelink track` shows the rest later"
    assert not server.history[connector.key]


def test_a_refused_key_keeps_the_run_offline(server: WandbServer, job: Job) -> None:
    server.refuses = True
    connector = TrainStage(job).pull()
    assert publish(Project(ONLINE, job.store), connector)
    assert any("keeping the run offline" in line for line in lines_of(job))
    assert list((job.store.root / "wandb").glob(f"offline-run-*-{connector.key}"))


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "midway"])
def test_a_server_that_hangs_costs_half_a_minute_and_no_result(server: WandbServer, job: Job, when: str) -> None:
    project = Project(ONLINE, job.store)
    server.silent = when == "before"
    started = time.monotonic()
    with watched(job, project, fit_shown) as (seen, fit):
        connector = TrainStage(seen).pull()
        fitted_in = time.monotonic() - started
        server.silent = True
        publish(project, connector, begun=fit.begun)
    again = time.monotonic()
    publish(project, connector)  # another run of the same job waits no more
    assert "wandb sync" in lines_of(job)[-1]
    assert connector.facts["validation_fvu"] < 1 and fitted_in < WAIT + 30
    assert time.monotonic() - started < WAIT + 30 and time.monotonic() - again < 15


def test_an_artifact_of_an_earlier_version_is_refused(job: Job) -> None:
    connector = TrainStage(job).pull()
    del connector.manifest["facts"]["described"]
    with pytest.raises(SaelinkError, match="made by an earlier version of saelink"):
        publish(Project(WandbConfig(mode=WandbMode.offline), job.store), connector)


def test_the_workspace_shows_what_runs_log(server: WandbServer, config: Callable[..., Config], store: Store) -> None:
    """Every panel's key is one that a connector's, a set of verdicts' or an experiment's run has."""
    pytest.importorskip("wandb_workspaces")
    assert save_workspace("test", None).startswith(f"{server.url}/someone/test")
    text = json.dumps(server.views["saelink"]["section"]["panelBankConfig"]["sections"])
    shown = set(re.findall(r'"(\w+/\w+)"', text))
    shown |= set(re.findall(r'"(?:summary|config):(\w[\w/]*?)(?:\.value)?"', text))
    assert {"final_l1", "final_mse", "way/l1", "way/mse", "pareto/table", "test/fvu", "verify/precision_1x"} <= shown
    assert '"xAxisLogScale": true' in text
    job = Job(config("solver=exact", "eval.ce=true", "verify.consequences=2", "outliers.shares.massive=0"), store)
    evaluation, verdicts = EvaluateStage(job).pull(), VerifyStage(job).pull()
    ConsequencesStage(job).pull()
    result = next(iter(run_experiments(Job(config("experiment.names=[norms]", "normalise_layers=[0,1]"), store))))
    project = Project(ONLINE, store)
    with watched(Job(config("l1_alpha=2e-3"), store), project, fit_shown) as (seen, fit):
        publish(project, TrainStage(seen).pull(), begun=fit.begun)
    publish(project, TrainStage(job).pull(), evaluation, verdicts=verdicts)
    publish_experiment(project, result)
    logged = {key for lines in server.history.values() for line in lines for key in line}
    logged |= {key for summary in server.summary.values() for key in summary}
    logged |= {key for run in server.settings.values() for key in json.loads(run["config"])}
    assert shown - logged <= {"experiment/picture"}, "not every experiment has one"
