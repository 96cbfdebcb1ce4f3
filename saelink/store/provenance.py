"""Where and how an artifact was made: memory, commit, package versions."""

from __future__ import annotations

from pathlib import Path


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


def package_versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for name in ("saelink", "torch", "transformers", "transformer-lens", "sae-lens", "safetensors", "datasets"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
