"""Workers of a Ray cluster, or of a Ray that is started on this machine."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

from saelink.config.process import Device, RuntimeConfig
from saelink.engine.work import Call, Done, do_tasks, needs_extra
from saelink.errors import SaelinkError, reason_of

RETRIES = 3
"""So often Ray does again what was lost with a worker or node."""


def ray_address(runtime: RuntimeConfig) -> str | None:
    """The Ray cluster to go to, or None for one that is started here."""
    address = runtime.address or os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


def quiet_ray(local: bool) -> None:
    """Set what Ray reads when it is imported: no report home; of a `local` one every port on loopback."""
    if local:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))  # endlessly, unless it is told


class RayCluster:
    """A Ray cluster, or one started on this machine, on loopback."""

    def __init__(self, runtime: RuntimeConfig, workers: int, threads: int):
        self._runtime, self._workers, self._threads = runtime, workers, threads

    def _connected(self) -> Any:
        address = ray_address(self._runtime)
        quiet_ray(local=address is None or address.startswith(("127.", "localhost:")))
        with needs_extra("ray", "ray"):
            import ray  # pyright: ignore[reportMissingImports]  # an extra
        if not ray.is_initialized():
            here = {
                "num_cpus": self._workers * self._threads,
                "_node_ip_address": "127.0.0.1",
                "include_dashboard": False,
            }
            with _same_signals():  # Ray sets one of its own for SIGTERM
                try:
                    ray.init(
                        address or "local", log_to_driver=False, logging_level="error", **({} if address else here)
                    )
                except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
                    where = f"runtime.address={address}" if address else "runtime.engine=ray"
                    raise SaelinkError(f"{where}: no Ray answers there ({reason_of(error, 120)})") from None
        return ray

    def stream(self, call: Call, tasks: list[tuple[int, Any]]) -> Generator[Done, None, None]:
        ray = self._connected()
        on_gpu = call.work.on_gpu and self._runtime.device is not Device.cpu and ray.cluster_resources().get("GPU")
        gpus = {"num_gpus": 1} if on_gpu else {}
        # Ray itself does again what was lost with a worker or node.
        do = ray.remote(do_tasks).options(num_cpus=self._threads, max_retries=RETRIES, **gpus)
        waiting, running = deque(tasks), dict[Any, int]()
        try:
            while waiting or running:
                while waiting and len(running) < self._workers:
                    number, task = waiting.popleft()
                    running[do.remote(call, [(number, task)])] = number
                ready, _ = ray.wait(list(running), num_returns=1, timeout=1)
                for each in ready:
                    number = running.pop(each)
                    try:
                        yield from ray.get(each)
                    except ray.exceptions.RayTaskError as error:
                        raise SaelinkError(
                            f"runtime.engine=ray: a worker could not begin ({reason_of(error.cause, 120)}); every node "
                            "needs the same saelink and Python"
                        ) from None
                    except ray.exceptions.RayError as error:
                        yield Done(number, lost=reason_of(error, 120))
        finally:
            for each in running:
                with suppress(Exception):  # a cluster that is gone: the first failure is the one to tell
                    ray.cancel(each, force=True)


@contextmanager
def _same_signals() -> Generator[None, None, None]:
    """What signals do is afterwards what it was before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
