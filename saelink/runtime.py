"""Where and how it computes: device, numerical type, threads, memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from saelink.config.process import Device
from saelink.config.schema import Config, DType
from saelink.config.size import bytes_of, gigabytes
from saelink.errors import SaelinkError

if TYPE_CHECKING:
    import torch


def device_of(cfg: Config) -> str:
    """`cpu` or `cuda`; also sets threads and float32 products that are float32 (no TF32, no bfloat16 passes).

    Raises SaelinkError for CUDA that isn't there.
    """
    import torch

    torch.set_float32_matmul_precision("highest")
    if cfg.runtime.threads is not None:
        torch.set_num_threads(cfg.runtime.threads)
    if cfg.runtime.device is Device.auto:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if cfg.runtime.device is Device.cuda and not torch.cuda.is_available():
        raise SaelinkError("runtime.device=cuda: torch finds no CUDA device; use runtime.device=cpu or auto")
    return cfg.runtime.device.name


def torch_dtype(dtype: DType) -> torch.dtype:
    import torch

    return {DType.float32: torch.float32, DType.bfloat16: torch.bfloat16}[dtype]


_limits: dict[str, int] = {}
"""This process's own limit in bytes, as `limit_memory` set it: like torch's number of threads it is the process's."""


def limit_memory(cfg: Config) -> None:
    """From now on this process takes no more than runtime.memory, as far as stages can tell beforehand."""
    limit = bytes_of("runtime.memory", cfg.runtime.memory)
    _limits.clear()
    if limit is not None:
        _limits["runtime.memory"] = limit


def memory_available() -> int | None:
    """Bytes of memory that can still be had, within a container's limit and runtime.memory.

    None where neither the system nor a limit says.
    """
    left = [max(limit - resident_bytes(), 0) for limit in _limits.values()]
    return min([*_left_on_machine(), *left], default=None)


def memory_when_fresh() -> int | None:
    """Bytes of memory that this process could have if it held nothing yet, within the same limits."""
    return min([*(left + resident_bytes() for left in _left_on_machine()), *_limits.values()], default=None)


def _left_on_machine() -> list[int]:
    """What is left below the container's limit, and what the system says is free; where they say so."""
    container, path = _left_in_container(), Path("/proc/meminfo")
    free = [] if container is None else [container]
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("MemAvailable:"):
            free.append(int(line.split()[1]) * 1024)
    return free


def resident_bytes() -> int:
    """The memory that this process has, as the kernel counts it: its resident set."""
    path = Path("/proc/self/statm")
    if path.exists():
        return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource  # elsewhere the system tells only the most that it ever had
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


CONTROL_GROUPS = Path("/sys/fs/cgroup")

MEMBERSHIP = Path("/proc/self/cgroup")
"""By line a hierarchy of control groups and the group in it that this process is in: `0::/user.slice` of version 2,
`4:memory:/user.slice` of version 1."""

UNLIMITED = 2**60
"""Version 1 writes a number near 2^63 where there is no limit."""


def _left_in_container() -> int | None:
    """What is left below the limits of the control groups that this process is in, None where they have none.

    Files that are only cached don't count as used: they make way. A container may see its own group as the root.
    """
    left = [
        _left_in(folder, "memory.max", "memory.current", ("inactive_file", "active_file"))
        for folder in _groups(CONTROL_GROUPS, "0::")
    ]
    left += [
        _left_in(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
        for folder in _groups(CONTROL_GROUPS / "memory", ":memory:")
    ]
    return min((size for size in left if size is not None), default=None)


def _groups(root: Path, hierarchy: str) -> list[Path]:
    """The folder of this process's group in a hierarchy, and those of the groups around it."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        lines = []
    path = next((line.partition(hierarchy)[2] for line in lines if hierarchy in line), "/")
    group = root / path.strip("/")
    return [group, *(folder for folder in group.parents if folder == root or root in folder.parents)]


def _left_in(group: Path, limit: str, used: str, cached: tuple[str, ...]) -> int | None:
    """What is left in one group, by the names of its files; None where it has no limit."""
    try:
        most, now = (group / limit).read_text().strip(), int((group / used).read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if not most.isdigit() or int(most) >= UNLIMITED:
        return None
    return max(int(most) - now + sum(int(statistics.get(name, 0)) for name in cached), 0)


def need_memory(what: str, needed: float, way_out: str) -> None:
    """Raise SaelinkError unless so many bytes can be had beside those that the process has."""
    free = memory_available()
    if free is not None and needed > free:
        within = "".join(f" within {name}={gigabytes(limit)}" for name, limit in _limits.items())
        raise SaelinkError(
            f"{what} need {gigabytes(int(needed))} of memory, {gigabytes(free)} are free{within}; {way_out}"
        )


LEAST_TOKENS = 256
"""Fewer tokens of a step are not tried: a matrix product of so few is far from the machine's rate."""


def fitting_tokens(wanted: int, per_token: float, fixed: float) -> int:
    """At most `wanted` tokens of a step, halved until `fixed` bytes and `per_token` for each can be had.

    Half of them at least LEAST_TOKENS; whether these fit is for `need_memory` to say.
    """
    free = memory_available()
    tokens = wanted
    while free is not None and fixed + per_token * tokens > free and tokens // 2 >= LEAST_TOKENS:
        tokens //= 2
    return tokens
