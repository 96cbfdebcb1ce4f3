"""Where and how an artifact was made: memory, commit, package versions."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import TypedDict


class Provenance(TypedDict):
    """Where and how an artifact was made."""

    made: str
    """When, in UTC, such as 2030-01-31T12:00:00Z."""
    seconds: float
    device: str
    machine: str
    """Its kind: what the same work, done on another kind, may differ by in the last digits. See `machine_kind`."""
    peak_memory_bytes: int
    git_sha: str | None
    packages: dict[str, str]


def provenance(started: float, device: str) -> Provenance:
    """That of what was begun at `started`, in seconds since the epoch, and is whole now."""
    return {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(time.time() - started, 1),
        "device": device,
        "machine": machine_kind(device),
        "peak_memory_bytes": peak_memory_bytes(),
        "git_sha": git_sha(),
        "packages": package_versions(),
    }


def machine_kind(device: str) -> str:
    """System, processor and torch's instruction set on it, such as "Linux x86_64 AVX512"; on CUDA the GPU too."""
    import platform
    import sys

    kind = [platform.system(), platform.machine()]
    torch = sys.modules.get("torch")  # which has computed whatever an artifact is of
    if torch is not None:
        kind.append(torch.backends.cpu.get_cpu_capability())
        if device.startswith("cuda") and torch.cuda.is_available():
            kind.append(torch.cuda.get_device_name())
    return " ".join(kind)


def peak_memory_bytes() -> int:
    import resource
    import sys

    # Where Linux says it, of this program alone: getrusage also counts what started it.
    path = Path("/proc/self/status")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def git_sha() -> str | None:
    """The commit of the saelink checkout that made this, or None when it is an installed package."""
    head = Path(__file__).resolve().parent.parent.parent / ".git" / "HEAD"
    try:
        text = head.read_text().strip()
        return (head.parent / text[5:]).read_text().strip() if text.startswith("ref: ") else text
    except OSError:
        return None


@cache
def package_versions() -> dict[str, str]:
    """By package its version; read once, as what is imported stays what it is."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for name in ("saelink", "torch", "transformers", "transformer-lens", "sae-lens", "safetensors", "datasets"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
