"""What the fault bench drives: a tiny chain of stages in a store, run as a command in a process of its own.

The chain has what the real stages have (shards that several workers share and a killed run resumes, a stage that starts
afresh, facts that are computed from files, a sweep's record), without a model: a run takes milliseconds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelink.cli.launch import one_line
from saelink.cli.signals import StoppedError, stopping
from saelink.store import provenance
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.files import json_bytes, write_durably
from saelink.store.recipe import Plan
from saelink.store.seal import sealed
from saelink.store.store import Store

SHARDS = [f"shard-{number}.bin" for number in range(3)]

ROWS = Plan("rows", 1, {"seed": 3, "scale": 0.1}, {}, "numbers in shards")
SUMS = Plan("sums", 2, {"power": 2}, {"rows": ROWS.key}, "what they come to")

SWEEP = "sweep1/jobs"


def _rows(store: Store, shared: bool) -> Artifact[Any]:
    """A resumable stage: shards, noted in a journal, and facts that are found by reading them back."""
    with store.drafts([ROWS], resumable=True, shared=shared) as drafts:
        for draft in drafts:
            for name, claim in store.claims(drafts, SHARDS):
                try:
                    draft.save_bytes(name, bytes([SHARDS.index(name) + 1]) * 600)
                finally:
                    claim.release()
            facts = lambda draft=draft: {"total": sum(sum((draft.folder / name).read_bytes()) for name in SHARDS)}  # noqa: E731
            return store.finish(draft, facts)
    found = store.find(ROWS)
    assert found is not None
    return found


def _sums(rows: Artifact[Any]) -> Callable[[Draft], dict[str, Any]]:
    def make(draft: Draft) -> dict[str, Any]:
        draft.save_json("sums.json", [sum(rows.file(name).read_bytes()) for name in SHARDS])
        draft.save_bytes("words.txt", str(rows.facts).encode())
        return {"largest": 3 * rows.facts["total"]}

    return make


def chain(root: Path, shared: bool = False) -> dict[str, Any]:
    """All stages, found or made, as whoever uses them reads them: facts, and the bytes of every file."""
    store = Store(root)
    rows = store.up_to_date(ROWS) or _rows(store, shared)
    sums = store.up_to_date(SUMS) or store.build(SUMS, _sums(rows))
    note = root / "sweeps" / SWEEP / f"{sums.key}.json"
    note.parent.mkdir(parents=True, exist_ok=True)
    write_durably(note, json_bytes(sealed({"train": sums.key, "sweep": "sweep1", "name": sums.key})))
    found: dict[str, Any] = {}
    for artifact in (rows, sums):
        found[artifact.stage] = [artifact.facts, artifact.recipe, artifact.manifest["inputs"]]
        found |= {f"{artifact.stage}/{name}": artifact.file(name).read_bytes() for name in artifact.files}
    return found


def clean(root: Path) -> list[str]:
    """What a store holds after `gc` that neither belongs to a finished artifact nor to a sweep."""
    store = Store(root)
    list(store.collect_garbage())
    whole, damaged = store.listing()
    kept = {artifact.path for artifact in whole}
    strange = [path for path in root.rglob("*") if path.is_file() and path.parent not in kept]
    expected = {".saelink-store"}
    left = [str(path) for path in strange if path.name not in expected and "sweeps" not in path.parts]
    left += [str(path) for path in root.rglob("*") if path.name.endswith((".tmp", ".partial", ".removed"))]
    return [*left, *map(str, damaged)]


@dataclass
class Ended:
    """How a process ended."""

    code: int
    """Its exit code; below 0 the signal that killed it."""
    lines: list[str]
    """What it said to the user."""
    told: dict[str, Any] | None
    """What it found, where it came to the end."""


class Child:
    """A forked process that does something as a command does: mistakes are a line and exit code 1, signals a line too.

    It speaks through a socket, so that faults in files do not take its words.
    """

    def __init__(self, work: Callable[[], Any], wait: bool = False):
        import socket

        ours, theirs = socket.socketpair()
        read, write = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            os.close(write)
            _run(work, theirs, read if wait else None)
        theirs.close()
        os.close(read)
        self._socket, self._write = ours, write
        if wait:
            self._socket.recv(1)  # its handlers of signals are there

    def go(self) -> None:
        """Let a child that waits begin."""
        with suppress(BrokenPipeError):
            os.write(self._write, b"x")

    def kill(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def join(self, seconds: float = 60.0) -> Ended:
        """Wait for its end. Raises TimeoutError, and kills it, when there is none."""
        self._socket.settimeout(seconds)
        data = b""
        try:
            while piece := self._socket.recv(1 << 20):
                data += piece
        except TimeoutError:
            self.kill(signal.SIGKILL)
            raise
        except ConnectionResetError:
            pass
        finally:
            status = os.waitpid(self.pid, 0)[1]
            self._socket.close()
            os.close(self._write)
        told: dict[str, Any] = {"lines": [], "found": None}
        with suppress(ValueError):
            told = json.loads(data)
        found = told["found"]
        if found is not None:
            found = {
                name: value if isinstance(value, list) else value.encode("latin-1") for name, value in found.items()
            }
        return Ended(os.waitstatus_to_exitcode(status), told["lines"], found)


def _run(work: Callable[[], Any], told: Any, go: int | None) -> None:
    """The forked process, to its end."""
    lines: list[str] = []
    found, code = None, 0
    try:
        with stopping():
            if go is not None:
                told.sendall(b" ")
                os.read(go, 1)
            try:
                found = work()
            finally:
                signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))  # it is over
    except StoppedError as stop:
        lines, code = [stop.line], int(str(stop.code))
    except Exception as error:
        code = 1
        try:
            lines = one_line(error).splitlines()
        except Exception:
            lines = traceback.format_exc().splitlines()
    except BaseException:
        lines, code = traceback.format_exc().splitlines(), 70
    if isinstance(found, dict):
        found = {name: value if isinstance(value, list) else value.decode("latin-1") for name, value in found.items()}
    with suppress(OSError):
        told.sendall(json.dumps({"lines": lines, "found": found}).encode())
    os._exit(code)


def prepare() -> None:
    """Load what a child would import and note what it would look up, so that its system calls are the store's own."""
    import filelock  # noqa: F401

    versions, sha = provenance.package_versions(), provenance.git_sha()
    provenance.package_versions = lambda: versions
    provenance.git_sha = lambda: sha
