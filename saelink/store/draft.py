"""An artifact in the making, alone or shared by several processes."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from saelink.errors import SaelinkError
from saelink.store.files import (
    file_sha256,
    fsync_folder,
    is_regular,
    json_bytes,
    naming,
    read_tensors,
    tensor_bytes,
    write_durably,
)
from saelink.store.manifest import MANIFEST, FileEntry, journal_line, notes_in_journal, notes_in_manifest
from saelink.store.provenance import provenance
from saelink.store.recipe import Plan
from saelink.store.seal import sealed

if TYPE_CHECKING:
    import torch
    from filelock import BaseFileLock


JOURNAL = "journal.jsonl"


VISIBLE_SECONDS = 60.0
"""So long a file that another machine wrote may stay unseen: what network file systems remember of a folder."""


class Part(NamedTuple):
    """A file that a worker wrote into a draft."""

    name: str
    size: int
    sha256: str


class Parts(NamedTuple):
    """Where workers write files of a draft that another process holds, which takes them over (`Draft.take`)."""

    folder: str

    def save_bytes(self, name: str, data: bytes) -> Part:
        """Write one file durably."""
        write_durably(Path(self.folder) / name, data)
        return Part(name, len(data), hashlib.sha256(data).hexdigest())

    def save_tensors(self, name: str, tensors: Mapping[str, torch.Tensor]) -> Part:
        """One safetensors file. Equal tensors give equal bytes."""
        return self.save_bytes(name, tensor_bytes(tensors))


class Draft:
    """An artifact in the making, in `<key>.partial`. Made by `Store.drafts`, which holds its lock.

    A `shared` one is filled by several processes at once: each claims the files it is going to write.
    """

    def __init__(self, plan: Plan, folder: Path, resumable: bool, shared: bool = False):
        self.plan = plan
        self.folder = folder
        self.shared = shared
        self._resumable = resumable
        self._files: dict[str, FileEntry] = {}
        self._others: set[str] = set()
        """Files that other workers finished since this draft was made: of them only the size was compared."""
        self._journal_read = 0
        """How many bytes of the journal were read."""
        self._started = time.time()
        if folder.exists():
            if resumable:
                self._take_over()
            else:
                shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not shared:
            for stray in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
                stray.unlink(missing_ok=True)

    def claim(self, name: str) -> Claim | None:
        """The right to write one file: None while another process has it."""
        if not self.shared:
            return Claim(None)
        from filelock import FileLock, Timeout

        if self.gone:
            return None
        lock = FileLock(self.folder / f".{name}.claim", mode=0o644, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        return Claim(lock)

    def refresh(self) -> None:
        """Learn what the other processes of a shared draft have finished."""
        if not self.shared:
            return
        # No line is read twice, so that a note that was found wrong when the draft was made stays out.
        for name, entry in self._new_lines():
            with suppress(OSError, ValueError):  # another worker is just finishing it
                if self._files.get(name) != entry and (self.folder / name).stat().st_size == entry["size"]:
                    self._files[name] = entry
                    self._others.add(name)

    @property
    def gone(self) -> bool:
        """Whether another worker has made a whole artifact of this shared draft."""
        return self.shared and not self.folder.exists()

    def _take_over(self) -> None:
        """Keep the finished files of an earlier try: those whose bytes are what was noted of them.

        A manifest is there when it was killed before the rename, a journal when it was killed before that or since.
        Each line of a journal counts for itself, so that a damaged one loses the file that it is about and no other.
        """
        noted: dict[str, list[FileEntry]] = {}
        for name, entry in [*self._manifest_notes(), *self._new_lines()]:
            noted.setdefault(name, []).append(entry)
        for name, entries in noted.items():
            path = self.folder / name
            with suppress(OSError, ValueError):  # missing, or no name of a file
                size = path.stat().st_size if is_regular(path) else -1
                if any(entry["size"] == size for entry in entries):
                    found: FileEntry = {"size": size, "sha256": file_sha256(path)}
                    if found in entries:
                        self._files[name] = found

    def _manifest_notes(self) -> Iterator[tuple[str, FileEntry]]:
        path = self.folder / MANIFEST
        with suppress(FileNotFoundError):
            if is_regular(path):
                return notes_in_manifest(path.read_bytes(), self.plan.key)
        return iter(())

    def _new_lines(self) -> list[tuple[str, FileEntry]]:
        """What was noted in the journal since it was last read; all of it the first time."""
        path = self.folder / JOURNAL
        try:
            if not is_regular(path):
                return []
            with naming(path), path.open("rb") as journal:
                if os.fstat(journal.fileno()).st_size < self._journal_read:  # it was begun anew
                    self._journal_read = 0
                journal.seek(self._journal_read)
                data = journal.read()
        except FileNotFoundError:
            return []
        self._journal_read += len(data)
        return list(notes_in_journal(data, self.plan.key))

    def __contains__(self, name: str) -> bool:
        """Whether this file is finished, now or in an earlier try."""
        return name in self._files

    @property
    def parts(self) -> Parts:
        """What workers need to write files of it."""
        return Parts(str(self.folder.resolve()))

    def take(self, part: Part) -> None:
        """Note a file that a worker wrote. It is compared before it is read.

        Raises SaelinkError where it can't be seen here: the folder is none that all machines share.
        """
        path, until = self.folder / part.name, time.monotonic() + VISIBLE_SECONDS
        while not (path.exists() and path.stat().st_size == part.size):
            if time.monotonic() > until:
                raise SaelinkError(
                    f"{path}: a worker wrote this file, and it can't be seen here; runtime.outputs must be a folder "
                    "that all machines share"
                )
            time.sleep(0.2)
        self._note(part.name, {"size": part.size, "sha256": part.sha256})
        self._others.add(part.name)

    def save_bytes(self, name: str, data: bytes) -> None:
        """Write one file durably and note it in the journal."""
        part = Parts(str(self.folder)).save_bytes(name, data)
        self._note(name, {"size": part.size, "sha256": part.sha256})
        self._others.discard(name)

    def _note(self, name: str, entry: FileEntry) -> None:
        path = self.folder / JOURNAL
        with naming(path), path.open("ab") as journal:
            journal.write(journal_line(self.plan.key, name, entry))
            journal.flush()
            os.fsync(journal.fileno())
        self._files[name] = entry

    def save_json(self, name: str, value: Any) -> None:
        self.save_bytes(name, json_bytes(value))

    def save_tensors(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """One safetensors file. Equal tensors give equal bytes."""
        self.save_bytes(name, tensor_bytes(tensors))

    def adopt(self, name: str) -> None:
        """Take a file that a library wrote into the folder by itself."""
        path = self.folder / name
        path.chmod(0o644)  # safetensors leaves 0600
        with path.open("rb") as file:
            os.fsync(file.fileno())
        self._files[name] = {"size": path.stat().st_size, "sha256": file_sha256(path)}

    def drop(self, names: list[str]) -> None:
        """Leave files that were only needed on the way out of the artifact; they go when it is whole."""
        for name in names:
            self._files.pop(name, None)

    def remove(self, names: list[str]) -> None:
        """Delete files that are no longer needed on the way."""
        for name in names:
            self._files.pop(name, None)
            (self.folder / name).unlink(missing_ok=True)

    @property
    def files(self) -> list[str]:
        """The names of what is finished, now or in an earlier try."""
        return list(self._files)

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Read back a file that is already finished. Raises SaelinkError when another worker's was damaged since."""
        return read_tensors(self._whole(name))

    def read(self, name: str) -> bytes:
        """The same for a file of any kind."""
        return self._whole(name).read_bytes()

    def _whole(self, name: str) -> Path:
        path = self.folder / name
        assert name in self._files
        if name in self._others:
            if file_sha256(path) != self._files[name]["sha256"]:
                raise SaelinkError(f"{path} was damaged after a worker wrote it; the same command again makes it anew")
            self._others.discard(name)
        return path

    def abandon(self) -> None:
        """Leave nothing of it that no later try goes on from: it failed, or its process was told to stop."""
        if self.shared or (self._resumable and self._files):
            return
        shutil.rmtree(self.folder, ignore_errors=True)

    def _manifest(self, facts: Mapping[str, Any], device: str) -> dict[str, Any]:
        return sealed(
            {
                "stage": self.plan.stage,
                "key": self.plan.key,
                "version": self.plan.version,
                "about": self.plan.about,
                "recipe": self.plan.recipe,
                "inputs": self.plan.inputs,
                "facts": dict(facts),
                "files": self._files,
                "provenance": provenance(self._started, device),
            }
        )

    def commit(self, final: Path, facts: Mapping[str, Any], device: str) -> None:
        """Manifest last, then the rename that makes it an artifact."""
        write_durably(self.folder / MANIFEST, json_bytes(self._manifest(facts, device)))
        if not self.shared:  # else it goes when all is in place: until then it tells the others what is done
            (self.folder / JOURNAL).unlink(missing_ok=True)
        try:
            self.folder.rename(final)
            for path in final.iterdir():  # parts that were summed up, what killed workers left
                if path.name not in self._files and path.name != MANIFEST:
                    path.unlink(missing_ok=True)
        except OSError as error:
            # Where locks don't work (some network file systems), another process may have been first.
            if not (final / MANIFEST).exists():
                raise
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT, errno.ESTALE):
                raise
            shutil.rmtree(self.folder, ignore_errors=True)
        fsync_folder(final.parent)


class Claim:
    """The right to write a file of a shared draft; a killed process's is dropped by the operating system."""

    def __init__(self, lock: BaseFileLock | None):
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()
