"""Settings of how and where a job runs: device, folders, memory, workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Device(Enum):
    """Where a stage computes; `auto` takes CUDA when it is there."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class EngineKind(Enum):
    """Whose workers do the tasks of a stage."""

    processes = "processes"
    ray = "ray"
    slurm = "slurm"
    slurm_local = "slurm_local"


@dataclass
class RuntimeConfig:
    """How and where it runs. Never part of a key."""

    device: Device = Device.auto
    """auto, cpu or cuda."""
    outputs: str = "outputs"
    """Folder of all artifacts."""
    threads: int | None = None
    """CPU threads; null leaves it to torch (all cores)."""
    memory: Any = None
    """What this process may take: 8GB, 500MB or bytes; null is all that the machine and its control group have free.
    A stage that would need more is refused before it begins."""
    workers: int = 1
    """Tasks at once, each in a process of its own; 1 does all work in this one."""
    engine: EngineKind = EngineKind.processes
    """Where workers are: processes here; ray, a cluster or one started here; slurm, or slurm_local to try that."""
    address: str | None = None
    """engine=ray: the cluster, such as 10.0.0.1:6379; null is RAY_ADDRESS, or else a Ray started on this machine."""
    slurm: dict[str, Any] = field(default_factory=dict[str, Any])
    """engine=slurm: what each job asks for, such as {partition: cpu, timeout_min: 60, mem_gb: 16, cpus_per_task: 2}."""
    shared: bool = False
    """cache and encode together with other commands on the same folder that say so too, without any engine."""
    forward_tokens: int = 4096
    """Tokens of one forward pass or encoding step."""
    objective: list[str] = field(default_factory=lambda: ["validation_fvu"])
    """What a sweeper that searches is told of each fit: facts of its train artifact, such as validation_mse or l1."""
    sweep: str | None = None
    """Set by saelink itself: the id of the multirun this job belongs to."""
