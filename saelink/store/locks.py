"""Locks of files that tell which processes are at work on an artifact."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def still_held(locks: Iterable[Path]) -> list[Path]:
    """Those lock files that a running process holds; what dead ones left is cleared away."""
    from filelock import FileLock, Timeout

    held: list[Path] = []
    for path in locks:
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            held.append(path)
            continue
        path.unlink(missing_ok=True)
        lock.release()
    return held
