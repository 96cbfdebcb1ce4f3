"""What a process does outside the folders that it may write to: programs, sockets, pickles, files."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROGRAMS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
)
SOCKETS = (
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.sendto",
    "urllib.Request",
)
CHANGES = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
)
"""Events of Python's that change a file or folder, which stands in their first arguments."""

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def watching(work: Callable[[], Any], allowed: list[Path], lair: Path) -> list[str]:
    """What `work` did that a hostile file would want done; what it raises is raised again.

    Changes below `allowed` are its own; `lair` is where the hostile files lie, of which no code may run. The hook that
    sees it stays in this process for good. What compiled libraries do it does not see: compare `state_of` for that.
    """
    events: list[str] = []
    own = [str(path.resolve()) for path in allowed]
    on = [True]

    def outside(path: Any, follows: bool, args: tuple[Any, ...] = ()) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        folders = [arg for arg in args if isinstance(arg, int) and arg >= 0]  # what a relative path is relative to
        above = Path(f"/proc/self/fd/{folders[-1]}").readlink() if folders else Path()
        full = above / os.fsdecode(path)
        name = os.path.realpath(full if follows else full.parent / "x")
        return not any(name == place or name.startswith(place + os.sep) for place in own) and name != os.devnull

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if not on[0]:
            return
        if event in PROGRAMS or event in SOCKETS or event == "pickle.find_class":
            events.append(f"{event} {args[:2]!r}"[:200])
        elif event == "open":
            path, mode, flags = args
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & WRITES)
            if writes and outside(path, not (isinstance(flags, int) and flags & os.O_NOFOLLOW)):
                events.append(f"open {path!r} to write")
        elif event in CHANGES:
            at = args[1:] if event in ("os.remove", "os.rmdir") else ()
            follows = event in ("os.truncate", "os.chmod", "os.chown")  # the others are about a link itself
            events.extend(f"{event} {path!r}" for path in args[:2] if outside(path, follows, at))
        elif event == "exec":
            name = getattr(args[0], "co_filename", "")
            if name.startswith(str(lair)):
                events.append(f"ran {name}")

    sys.addaudithook(hook)
    try:
        work()
    finally:
        on[0] = False
    return events


def state_of(folder: Path) -> dict[str, str]:
    """Everything in a folder, with what it holds."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder"
    return found
