"""Tasks on Ray: one started here, and a cluster of two nodes of which one is killed. Skipped where Ray is missing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from saelink.config.process import EngineKind, RuntimeConfig
from saelink.engine.tasks import Engine
from saelink.errors import SaelinkError

from helpers.observing import Lines
from helpers.slurm import has
from helpers.toys import Toy
from helpers.world import TESTS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not has("ray"), reason="Ray is not installed")]


@pytest.fixture(autouse=True)
def disconnected(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has a Ray of its own, whose workers find the toys."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
    yield
    import ray  # pyright: ignore[reportMissingImports]  # an extra

    ray.shutdown()


def listening(processes: set[int]) -> set[str]:
    """The addresses, as the kernel writes them, on which these processes listen for TCP."""
    inodes = set()
    for process in processes:
        for entry in Path(f"/proc/{process}/fd").glob("*"):
            try:
                link = os.readlink(entry)  # noqa: PTH115 (it is no path)
            except OSError:
                continue
            if link.startswith("socket:["):
                inodes.add(link[8:-1])
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1].rpartition(":")[0])
    return found


def below(process: int) -> set[int]:
    """A process and all that it started."""
    done = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True)
    parents = {int(line.split()[0]): int(line.split()[1]) for line in done.stdout.splitlines()}
    found = {process}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
"""127.0.0.1 and ::1."""


def test_a_ray_that_is_started_here(tmp_path: Path) -> None:
    engine = Engine(RuntimeConfig(engine=EngineKind.ray, workers=2, outputs=str(tmp_path)), Lines())
    found: dict[int, Any] = {}
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    engine.run("toy", Toy(folder=str(tmp_path), dies=(5,)), range(12), found.__setitem__)
    assert {task: value[0] for task, value in found.items()} == {task: 2 * task for task in range(12)}
    assert os.getpid() not in {value[1] for value in found.values()}
    assert listening(below(os.getpid())) <= LOOPBACK, "on loopback only"
    assert {number: signal.getsignal(number) for number in before} == before
    with pytest.raises(SaelinkError, match=r"^task=2: is none"):
        engine.run("toy", Toy(bad=2), range(12), found.__setitem__)


SCRIPT = """
import sys
import time
import ray
from helpers.toys import Toy
from saelink.config.process import EngineKind, RuntimeConfig
from saelink.engine.tasks import Engine
from saelink.progress import Observer
ray.init(sys.argv[1], log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < 2:
    time.sleep(.2)
runtime = RuntimeConfig(engine=EngineKind.ray, workers=2, address=sys.argv[1])
found = {}
def done(task, result):
    found[task] = result
    print("did", task, result[1], flush=True)
Engine(runtime, Observer()).run("toy", Toy(folder=sys.argv[2], slow=.4), range(24), done)
assert {task: value[0] for task, value in found.items()} == {task: 2 * task for task in range(24)}
print("all", flush=True)
"""


NODES = """
import sys
import time
from ray.cluster_utils import Cluster
settings = {"num_cpus": 1, "node_ip_address": "127.0.0.1"}
cluster = Cluster(initialize_head=True, head_node_args={**settings, "include_dashboard": False})
second = cluster.add_node(**settings)
cluster.wait_for_nodes()
processes = [each.process.pid for several in second.all_processes.values() for each in several]
print(cluster.address, *processes, flush=True)
time.sleep(600)
"""


def test_two_nodes_and_one_is_killed(tmp_path: Path) -> None:
    # As on Windows and macOS, Ray keeps to loopback.
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    nodes = subprocess.Popen([sys.executable, "-c", NODES], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert nodes.stdout is not None
        address, numbers = "", list[str]()
        while not address.startswith("127.0.0.1:"):  # Ray says things of its own
            line = nodes.stdout.readline()
            assert line
            address, *numbers = line.split() or [""]
        run = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, address, str(tmp_path)], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert run.stdout is not None
        said, processes = "", set[str]()
        while len(processes) < 2:  # both nodes work
            line = run.stdout.readline()
            assert line, said
            said += line
            if line.startswith("did"):
                processes.add(line.split()[2])
        assert listening(below(nodes.pid)) <= LOOPBACK, "on loopback only"
        second = {process for number in numbers for process in below(int(number))}
        for process in second:
            os.kill(process, signal.SIGKILL)
        said += run.communicate(timeout=200)[0]
        assert run.returncode == 0 and said.rstrip().endswith("all"), said
    finally:
        for process in below(nodes.pid):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
