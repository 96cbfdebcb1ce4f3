"""An artifact in the making, alone or shared by several processes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelink.store.artifact import MANIFEST
from saelink.store.files import file_sha256, fsync_folder, json_bytes, write_durably
from saelink.store.provenance import git_sha, package_versions, peak_memory_bytes
from saelink.store.recipe import Plan

if TYPE_CHECKING:
    import torch


JOURNAL = "journal.jsonl"


class Draft:
    """An artifact in the making, in `<key>.partial`. Made by `Store.drafts`, which holds its lock.

    A `shared` one is filled by several processes at once: each claims the files it is going to write.
    """

    def __init__(self, plan: Plan, folder: Path, resumable: bool, shared: bool = False):
        self.plan = plan
        self.folder = folder
        self.shared = shared
        self._files: dict[str, dict[str, Any]] = {}
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
        if self.shared:
            with suppress(FileNotFoundError):  # another worker is just finishing it
                self._take_over()

    @property
    def gone(self) -> bool:
        """Whether another worker has made a whole artifact of this shared draft."""
        return self.shared and not self.folder.exists()

    def _take_over(self) -> None:
        """Keep the finished files of an earlier try: those that still match what was noted of them."""
        noted: dict[str, dict[str, Any]] = {}
        if (self.folder / JOURNAL).exists():
            for line in (self.folder / JOURNAL).read_text().splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:  # the last line of a killed process
                    continue
                noted[entry["name"]] = {"size": entry["size"], "sha256": entry["sha256"]}
        elif (self.folder / MANIFEST).exists():  # killed between the manifest and the rename
            noted = json.loads((self.folder / MANIFEST).read_bytes())["files"]
        for name, entry in noted.items():
            path = self.folder / name
            if self._files.get(name) == entry:
                continue
            if not path.exists() or path.stat().st_size != entry["size"]:
                continue
            # What other workers write meanwhile is hashed by none of them but its own; whoever uses it compares.
            if self.shared or file_sha256(path) == entry["sha256"]:
                self._files[name] = entry

    def __contains__(self, name: str) -> bool:
        """Whether this file is finished, now or in an earlier try."""
        return name in self._files

    def save_bytes(self, name: str, data: bytes) -> None:
        """Write one file durably and note it in the journal."""
        write_durably(self.folder / name, data)
        entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        with (self.folder / JOURNAL).open("a") as journal:
            # On a line of its own also behind the half line of a process that was killed in the middle of one.
            journal.write("\n" + json.dumps({"name": name, **entry}) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
        self._files[name] = entry

    def save_json(self, name: str, value: Any) -> None:
        self.save_bytes(name, json_bytes(value))

    def save_tensors(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """One safetensors file. Equal tensors give equal bytes."""
        from safetensors.torch import save

        self.save_bytes(name, save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}))

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

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Read back a file that is already finished."""
        from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType] (its PathLike has no argument)

        assert name in self._files
        return load_file(self.folder / name)

    def _manifest(self, facts: Mapping[str, Any], device: str) -> dict[str, Any]:
        return {
            "stage": self.plan.stage,
            "key": self.plan.key,
            "version": self.plan.version,
            "about": self.plan.about,
            "recipe": self.plan.recipe,
            "inputs": self.plan.inputs,
            "facts": dict(facts),
            "files": self._files,
            "provenance": {
                "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "seconds": round(time.time() - self._started, 1),
                "device": device,
                "peak_memory_bytes": peak_memory_bytes(),
                "git_sha": git_sha(),
                "packages": package_versions(),
            },
        }

    def commit(self, final: Path, facts: Mapping[str, Any], device: str) -> None:
        """Manifest last, then the rename that makes it an artifact."""
        write_durably(self.folder / MANIFEST, json_bytes(self._manifest(facts, device)))
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

    def __init__(self, lock: Any):
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()
