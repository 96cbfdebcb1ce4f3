"""Where and how it computes: device, numerical type, threads, memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from saelink.config.schema import Config, Device, DType
from saelink.errors import SaelinkError
from saelink.store.files import gigabytes

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


def memory_available() -> int | None:
    """Bytes of memory that can still be had, within a container's limit; None where the system does not say."""
    free = [_left_in_container()]
    path = Path("/proc/meminfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("MemAvailable:"):
            free.append(int(line.split()[1]) * 1024)
    return min((size for size in free if size is not None), default=None)


CONTROL_GROUP = Path("/sys/fs/cgroup")


def _left_in_container() -> int | None:
    """What is left below the limit of the control group (version 2) that this process is in, if it has one.

    Files that are only cached don't count as used: they make way.
    """
    try:
        limit = (CONTROL_GROUP / "memory.max").read_text().strip()
        used = int((CONTROL_GROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (CONTROL_GROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if not limit.isdigit():
        return None
    return max(int(limit) - used + int(statistics.get("inactive_file", 0)) + int(statistics.get("active_file", 0)), 0)


def need_memory(what: str, needed: float, way_out: str) -> None:
    """Raise SaelinkError unless so many bytes can be had."""
    free = memory_available()
    if free is not None and needed > free:
        raise SaelinkError(f"{what} need {gigabytes(int(needed))} of memory, {gigabytes(free)} are free; {way_out}")
