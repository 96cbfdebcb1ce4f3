"""Where and how it computes: device, numerical type, threads, memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from saelink.config.schema import Config, Device, DType
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


def memory_available() -> int | None:
    """Bytes of memory that can still be had; None where the system does not say."""
    path = Path("/proc/meminfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
