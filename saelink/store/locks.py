"""Locks of files that tell which processes are at work on an artifact, and removal that heeds them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

REMOVED = ".removed"
"""The suffix of a folder whose removal is under way."""


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
        try:
            path.unlink(missing_ok=True)
        finally:
            lock.release()
    return held


def delete_unless_held(folder: Path, key: str) -> bool:
    """Delete the folder of an artifact, finished or not or half removed, under the lock of its key.

    By rename first, so that a killed removal leaves no half artifact. False while another process makes or removes it,
    and where it is gone already.
    """
    from filelock import FileLock, Timeout

    path = folder.with_name(f".{key}.lock")
    lock = FileLock(path, mode=0o644)
    try:
        with lock.acquire(timeout=0):
            try:
                if still_held(folder.parent.glob(f".{key}.*.worker")):
                    return False
                doomed = folder
                if folder.suffix != REMOVED:
                    doomed = folder.with_name(f".{folder.name}.{os.getpid()}{REMOVED}")
                    folder.rename(doomed)
                if doomed.is_symlink():  # what it leads to is not the store's
                    doomed.unlink()
                else:
                    shutil.rmtree(doomed)
            except FileNotFoundError:
                return False
            finally:
                path.unlink(missing_ok=True)
    except Timeout:
        return False
    return True
