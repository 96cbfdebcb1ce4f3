"""Locks of files that tell which processes are at work on an artifact, and removal that heeds them."""

from __future__ import annotations

import os
import shutil
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


def delete_unless_held(folder: Path) -> bool:
    """Delete an artifact's folder, finished or not, under its lock; False while another process makes it.

    By rename first, so that a killed removal leaves no half artifact.
    """
    from filelock import FileLock, Timeout

    path = folder.with_name(f".{folder.stem}.lock")
    lock = FileLock(path, mode=0o644)
    try:
        with lock.acquire(timeout=0):
            if still_held(folder.parent.glob(f".{folder.stem}.*.worker")):
                return False
            doomed = folder
            if folder.suffix != ".removed":
                doomed = folder.with_name(f".{folder.name}.{os.getpid()}.removed")
                folder.rename(doomed)
            shutil.rmtree(doomed)
            path.unlink(missing_ok=True)
    except Timeout:
        return False
    return True
