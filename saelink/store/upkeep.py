"""Looking after the folder of a store: what says that it is one, which artifacts it has, removal, garbage."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from saelink.errors import SaelinkError
from saelink.store.draft import JOURNAL
from saelink.store.files import folder_bytes, left_by_the_dead, write_durably
from saelink.store.locks import REMOVED, delete_unless_held, still_held
from saelink.store.manifest import MANIFEST
from saelink.store.recipe import KEY_LENGTH

MARKER = ".saelink-store"
"""The file in a store's folder that says that it is one."""

MARKER_TEXT = b"A store of saelink. `saelink ls`, `rm` and `gc` work in this folder because this file is here.\n"

KEY = f"[0-9a-f]{{{KEY_LENGTH}}}"

FOLDER = re.compile(rf"({KEY})(\.partial)?")
"""The name of an artifact's folder, finished or not."""

GARBAGE = re.compile(rf"(?P<key>{KEY})\.partial|\.(?P<gone>{KEY})(\.partial)?\.\d+\{REMOVED}")
"""The name of a folder that no finished artifact is in: unfinished, or its removal was begun."""

LOCK = re.compile(rf"\.{KEY}\.lock")


def mark(root: Path) -> None:
    """Make the folder, and say in it that it is a store."""
    root.mkdir(parents=True, exist_ok=True)
    if not (root / MARKER).exists():
        write_durably(root / MARKER, MARKER_TEXT)


def check_marked(root: Path) -> None:
    """Raise SaelinkError for a folder with things in it that is no store."""
    if not (root / MARKER).exists() and root.is_dir() and any(root.iterdir()):
        raise SaelinkError(
            f"{root} is no store of saelink: there is no {MARKER} in it; name the folder of runtime.outputs (-o). "
            f"Any stage command on a store of an earlier version marks it"
        )


def folders(root: Path, key: str) -> list[Path]:
    """Finished and unfinished artifact folders whose key starts with `key`; nothing else in the store.

    Raises SaelinkError for a folder that is no store.
    """
    check_marked(root)
    return [
        folder
        for folder in sorted(root.glob("*/*"))
        if folder.name.startswith(key) and FOLDER.fullmatch(folder.name) and folder.is_dir()
    ]


def remove(root: Path, key: str) -> list[Path]:
    """Delete one artifact, finished or not; of a link the link alone.

    Raises SaelinkError when none, several, a busy one, or one behind a linked folder has the key.
    """
    found = folders(root, key)
    if len({folder.stem for folder in found}) != 1:
        some = "no artifact has" if not found else "several artifacts have"
        raise SaelinkError(f"{some} a key starting with {key!r} in {root}; `saelink ls` lists them")
    for folder in found:
        if folder.parent.is_symlink():
            raise SaelinkError(f"{folder.parent} is a link; remove {folder.name} in the folder that it leads to")
    removed = [folder for folder in found if delete_unless_held(folder, folder.stem)]
    if not removed:
        if not any(folder.exists() for folder in found):
            raise SaelinkError(f"{found[0].stem} was removed by another process just now")
        raise SaelinkError(f"{found[0].stem} is being made by another process right now; try again later")
    return removed


def collect_garbage(root: Path) -> Iterator[tuple[Path, int]]:
    """Delete unfinished work that no running process holds, and remains of killed removals; path and bytes.

    Locks and temporary files that killed processes left go too, silently. Links are not followed.
    """
    check_marked(root)
    for stage in sorted(root.glob("*")):
        if stage.is_symlink() or not stage.is_dir():
            continue
        for folder in sorted(stage.iterdir()):
            if FOLDER.fullmatch(folder.name) and folder.suffix == "" and (folder / MANIFEST).exists():
                still_held(folder.glob(".*.claim"))  # of workers that were killed just after it was whole
                (folder / JOURNAL).unlink(missing_ok=True)
            name = GARBAGE.fullmatch(folder.name)
            if name is not None and folder.is_dir():
                size = 0 if folder.is_symlink() else folder_bytes(folder)
                if delete_unless_held(folder, name["key"] or name["gone"]):
                    yield folder, size
        still_held(stage.glob(".*.worker"))
        still_held(path for path in stage.glob(".*.lock") if LOCK.fullmatch(path.name))
    for place, _, names in os.walk(root):
        for path in (Path(place, name) for name in names if name.endswith(".tmp")):
            if left_by_the_dead(path):
                path.unlink(missing_ok=True)
