"""The engine: results of all tasks whoever does them, dead workers, errors, signals, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from saelink.config.process import EngineKind, RuntimeConfig
from saelink.engine.ray_cluster import ray_address
from saelink.engine.tasks import Engine, cores
from saelink.engine.work import RemoteError
from saelink.errors import SaelinkError

from helpers.observing import Lines
from helpers.toys import Toy
from helpers.world import TESTS


def results(
    tmp_path: Path, work: Toy, kind: EngineKind = EngineKind.processes, workers: int = 2, n: int = 12
) -> tuple[dict[int, tuple[int, int, int]], list[str]]:
    found: dict[int, tuple[int, int, int]] = {}
    lines = Lines()
    runtime = RuntimeConfig(engine=kind, workers=workers, outputs=str(tmp_path / "outputs"))
    Engine(runtime, lines).run("toy", work, range(n), found.__setitem__)
    return found, lines.said


def doubled(found: dict[int, tuple[int, int, int]]) -> bool:
    return {task: value for task, (value, *_) in found.items()} == {task: 2 * task for task in range(12)}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find the toys."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))


def test_one_worker_is_this_process(tmp_path: Path) -> None:
    found, said = results(tmp_path, Toy(), workers=1)
    assert doubled(found) and not said
    assert {process for _, process, _ in found.values()} == {os.getpid()}


def test_workers_share_tasks_and_cores(tmp_path: Path) -> None:
    found, said = results(tmp_path, Toy(slow=0.05), workers=3)
    assert doubled(found) and not said
    processes = {process for _, process, _ in found.values()}
    assert 1 < len(processes) <= 3 and os.getpid() not in processes
    assert {threads for *_, threads in found.values()} == {max(cores() // 3, 1)}


def test_a_killed_worker_costs_a_line(tmp_path: Path) -> None:
    found, said = results(tmp_path, Toy(folder=str(tmp_path), dies=(5,)), workers=3)
    assert doubled(found)
    assert len(said) == 1 and "is done again" in said[0]


def test_work_that_kills_every_worker_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(SaelinkError, match=r"toy: 4 workers ended in the middle of the same work .* use fewer"):
        results(tmp_path, Toy(folder=str(tmp_path), dies=(5,), times=99))
    assert len((tmp_path / "5").read_text()) == 4


def test_a_users_error_ends_it(tmp_path: Path) -> None:
    with pytest.raises(SaelinkError, match=r"^task=2: is none; give another$") as error:
        results(tmp_path, Toy(folder=str(tmp_path), bad=2, slow=0.2))
    assert error.value.__cause__ is None
    assert len([path for path in tmp_path.iterdir() if path.name.isdigit()]) <= 6, "the rest was not begun"


def test_a_bug_shows_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="KeyError: 3") as error:
        results(tmp_path, Toy(broken=3))
    assert isinstance(error.value.__cause__, RemoteError) and "toys.py" in str(error.value.__cause__)


def test_fewer_workers_where_there_is_less_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saelink.engine.tasks.memory_available", lambda: 2_500)
    monkeypatch.setattr(Toy, "memory", lambda self: 1_000)
    found, said = results(tmp_path, Toy(slow=0.02), workers=3)
    assert doubled(found) and len({process for _, process, _ in found.values()}) <= 2
    assert said == ["toy: 2 of 3 workers, each needs 1.0 kB and 2.5 kB are free"]


SCRIPT = """
import sys
from helpers.toys import Toy
from saelink.cli.signals import stopping
from saelink.config.process import RuntimeConfig
from saelink.engine.tasks import Engine
from saelink.progress import Observer
with stopping():
    print("begins", flush=True)
    engine = Engine(RuntimeConfig(workers=2), Observer())
    engine.run("toy", Toy(folder=sys.argv[1], slow=.5), range(100), lambda task, result: print("did", flush=True))
"""


def descendants(process: int) -> set[int]:
    """Processes that it started, and those that these did."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    found = {process}
    while True:
        more = {child for child, parent in parents.items() if parent in found} | found
        if more == found:
            return found - {process}
        found = more


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=dict(os.environ),
    )  # fmt: skip
    assert run.stdout is not None
    while "did" not in run.stdout.readline():
        assert run.poll() is None
    children = descendants(run.pid)
    assert len(children) >= 2
    begun = time.monotonic()
    run.send_signal(number)
    _, error = run.communicate(timeout=60)
    assert run.returncode == (-number if number is signal.SIGKILL else 128 + number)
    if number is not signal.SIGKILL:
        assert "Traceback" not in error, error
    while any(map(alive, children)):
        assert time.monotonic() - begun < 30, "processes are left"
        time.sleep(0.1)


def test_a_cluster_is_what_the_settings_or_the_environment_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_address(RuntimeConfig()) is None
    assert ray_address(RuntimeConfig(address="local")) is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert ray_address(RuntimeConfig()) == "10.0.0.1:6379"
    assert ray_address(RuntimeConfig(address="10.0.0.2:6379")) == "10.0.0.2:6379"
