"""The artifact store: every stage's result is a folder that is whole, checked and never rebuilt.

    outputs/<stage>/<key>/manifest.json     recipe, inputs, provenance, size and sha256 of every file
    outputs/<stage>/<key>/*.safetensors     the tensors
    outputs/<stage>/<key>.partial/          unfinished work; a resumable stage goes on from its journal

`key` is a short sha256 over the stage's name and VERSION, its *recipe* (what changes the numbers) and the
keys of its inputs. A folder gets its final name only after everything in it, manifest last, has reached the
disk, so a folder without `.partial` is a whole artifact, whatever was killed when.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

KEY_LENGTH = 12
MANIFEST = "manifest.json"
JOURNAL = "journal.jsonl"

POLL_SECONDS = 0.2
"""How often a process looks whether others have finished."""


class SaelinkError(ValueError):
    """A user's mistake or a broken file: one line that names the field, the value and the way out."""


# --------------------------------------------------------------------------- recipes and keys


def recipe_of(value: Any) -> Any:
    """Plain JSON data for a recipe: dataclasses become dicts, enums their names, tuples lists.

    Raises AssertionError for anything else, so that nothing enters a key by its repr.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: recipe_of(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Mapping):
        return {str(name): recipe_of(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [recipe_of(item) for item in value]
    assert value is None or isinstance(value, bool | int | float | str), f"{value!r} can't be part of a recipe"
    return value


def is_key(text: str) -> bool:
    """Whether this is a whole key, all its digits: what recipes refer to an artifact by."""
    return re.fullmatch(rf"[0-9a-f]{{{KEY_LENGTH}}}", text) is not None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What an artifact will be, before anything is computed: enough to name it and to find it."""

    stage: str
    version: int
    """The stage's VERSION: raised when its code changes the numbers it writes."""
    recipe: dict[str, Any]
    """Everything that changes the numbers; nothing that does not (device, paths, W&B)."""
    inputs: dict[str, str]
    """Role -> key of the artifacts this one is computed from."""
    about: str
    """What it is in a few words, for `saelink ls`; not part of the key."""

    @property
    def key(self) -> str:
        """First 12 hex digits of the sha256 over stage, version, recipe and input keys."""
        identity = {"stage": self.stage, "version": self.version, "recipe": self.recipe, "inputs": self.inputs}
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


# --------------------------------------------------------------------------- durable writes


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems refuse to sync a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds all of it or what it held before, also after a power cut.

    The temporary file beside it has a unique name and is removed when writing fails (a full disk, say).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync_folder(path.parent)


def file_sha256(path: Path) -> str:
    """The file's sha256 as hex digits, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_bytes(value: Any) -> bytes:
    """Readable JSON with a fixed key order, so that equal values have equal bytes. NaN is refused."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


# --------------------------------------------------------------------------- artifacts


class Artifact:
    """A finished artifact. Every file is compared with the manifest before it is first used."""

    def __init__(self, path: Path):
        self.path = path
        self.stage = path.parent.name
        self.key = path.name
        try:
            self.manifest: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
            self._files: dict[str, dict[str, Any]] = self.manifest["files"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, FileNotFoundError):
            raise self._damaged(MANIFEST, "can't be read") from None
        self._checked: set[str] = set()

    def __repr__(self) -> str:
        return f"Artifact({self.stage} {self.key})"

    @property
    def recipe(self) -> dict[str, Any]:
        return self.manifest["recipe"]

    @property
    def facts(self) -> dict[str, Any]:
        """What the stage found out and wrote into the manifest (scalars, shapes, counts)."""
        return self.manifest["facts"]

    @property
    def files(self) -> list[str]:
        return sorted(self._files)

    def _damaged(self, name: str, how: str) -> SaelinkError:
        return SaelinkError(
            f"{self.path / name} {how}: the {self.stage} artifact is damaged; "
            f"`saelink rm {self.key}` removes it, and the same command as before makes it anew"
        )

    def file(self, name: str) -> Path:
        """The path of one of its files, after comparing size and sha256 with the manifest.

        Raises SaelinkError naming the file when it is missing, truncated or changed.
        """
        assert name in self._files, f"{self} has no file {name}"
        path = self.path / name
        if name not in self._checked:
            expected = self._files[name]
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                raise self._damaged(name, "is missing") from None
            if size != expected["size"]:
                raise self._damaged(name, f"has {size:,} bytes where the manifest says {expected['size']:,}")
            if file_sha256(path) != expected["sha256"]:
                raise self._damaged(name, "does not have the sha256 of the manifest")
            self._checked.add(name)
        return path

    def tensors(self, name: str, device: str = "cpu") -> dict[str, torch.Tensor]:
        """The tensors of one safetensors file, checked first."""
        from safetensors.torch import load_file

        return load_file(self.file(name), device=device)

    def json(self, name: str) -> Any:
        return json.loads(self.file(name).read_bytes())


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
        for stray in [] if shared else folder.glob(".*.tmp"):  # of a process that was killed while it wrote
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
        with open(self.folder / JOURNAL, "a") as journal:
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
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        self._files[name] = {"size": path.stat().st_size, "sha256": file_sha256(path)}

    def drop(self, names: list[str]) -> None:
        """Leave files that were only needed on the way out of the artifact; they go when it is whole."""
        for name in names:
            self._files.pop(name, None)

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Read back a file that is already finished."""
        from safetensors.torch import load_file

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
                "peak_memory_bytes": _peak_memory_bytes(),
                "git_sha": _git_sha(),
                "packages": _package_versions(),
            },
        }

    def commit(self, final: Path, facts: Mapping[str, Any], device: str) -> None:
        """Manifest last, then the rename that makes it an artifact."""
        write_durably(self.folder / MANIFEST, json_bytes(self._manifest(facts, device)))
        (self.folder / JOURNAL).unlink(missing_ok=True)
        try:
            os.rename(self.folder, final)
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
        _fsync_folder(final.parent)


class Claim:
    """The right to write a file of a shared draft; a killed process's is dropped by the operating system."""

    def __init__(self, lock: Any):
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()


class Store:
    """The folder that holds all artifacts; `say` prints its one-line messages."""

    def __init__(self, root: str | Path, say: Callable[[str], None] = print):
        self.root = Path(root)
        self.say = say
        self._said: set[str] = set()

    def folder(self, plan: Plan) -> Path:
        return self.root / plan.stage / plan.key

    def find(self, plan: Plan) -> Artifact | None:
        """The finished artifact of this plan, or None. Raises SaelinkError when its manifest is damaged."""
        folder = self.folder(plan)
        return Artifact(folder) if folder.exists() else None

    def up_to_date(self, plan: Plan) -> Artifact | None:
        """`find`, saying so in one line, once, when there is one."""
        artifact = self.find(plan)
        if artifact is not None and plan.key not in self._said:
            self._said.add(plan.key)
            self.say(f"{plan.stage} {plan.key}: up to date ({plan.about})")
        return artifact

    @contextmanager
    def _lock(self, plan: Plan) -> Iterator[None]:
        """One process at a time makes an artifact; the operating system drops a killed process's lock.

        While workers are at it the lock is left to them: the one that finishes takes it.
        """
        said = False
        while True:
            with self._held(plan):
                if not self._workers(plan):
                    yield
                    return
            if not said:
                self.say(f"{plan.stage} {plan.key}: workers are making it, waiting")
            said = True
            time.sleep(POLL_SECONDS)

    @contextmanager
    def _held(self, plan: Plan) -> Iterator[None]:
        from filelock import FileLock, Timeout

        folder = self.root / plan.stage
        lock = FileLock(folder / f".{plan.key}.lock", mode=0o644)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:  # an OSError too, so it stands before it
            self.say(f"{plan.stage} {plan.key}: another process is making it, waiting")
            lock.acquire()
        except OSError as error:
            raise SaelinkError(
                f"runtime.outputs={self.root}: can't be written ({error.strerror}); name a folder you own"
            ) from None
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def drafts(self, plans: list[Plan], *, resumable: bool = False, shared: bool = False) -> Iterator[list[Draft]]:
        """Locked drafts of those `plans` that are not finished, for one pass that fills them together.

        The locks are taken in the order of the keys, so that two processes can't block each other. With `shared` other
        workers fill the same drafts meanwhile; what is written is for `claims` to say, and `finish` ends it.
        """
        if shared:
            with self._shared_drafts(plans) as drafts:
                yield drafts
            return
        with ExitStack() as locks:
            for plan in sorted(plans, key=lambda plan: plan.key):
                locks.enter_context(self._lock(plan))
            # Only now: another process may have finished some of them while we waited.
            yield [Draft(plan, self._partial(plan), resumable) for plan in plans if self.find(plan) is None]
        for plan in plans:
            if self.find(plan) is not None:  # nobody makes it again, so nobody needs its lock
                (self.root / plan.stage / f".{plan.key}.lock").unlink(missing_ok=True)

    def _workers(self, plan: Plan) -> list[Path]:
        """Locks of the running workers on a plan; those of dead ones are cleared away."""
        return self._alive((self.root / plan.stage).glob(f".{plan.key}.*.worker"))

    @staticmethod
    def _alive(locks: Iterable[Path]) -> list[Path]:
        from filelock import FileLock, Timeout

        alive = []
        for path in locks:
            lock = FileLock(path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                alive.append(path)
                continue
            path.unlink(missing_ok=True)
            lock.release()
        return alive

    @contextmanager
    def _shared_drafts(self, plans: list[Plan]) -> Iterator[list[Draft]]:
        from filelock import FileLock

        with ExitStack() as locks:
            drafts = []
            for plan in sorted(plans, key=lambda plan: plan.key):
                with self._held(plan):
                    if self.find(plan) is not None:
                        continue
                    name = f".{plan.key}.{uuid.uuid4().hex[:12]}.worker"  # containers may share host and process id
                    lock = FileLock(self.root / plan.stage / name, mode=0o644, thread_local=False)
                    locks.enter_context(lock)
                    locks.callback((self.root / plan.stage / name).unlink, missing_ok=True)
                    drafts.append(Draft(plan, self._partial(plan), resumable=True, shared=True))
            yield drafts

    def claims(self, drafts: list[Draft], names: list[str]) -> Iterator[tuple[str, Claim]]:
        """The files that are missing in any of the drafts, each with the claim to release when it is written.

        Of shared drafts a file that another worker has claimed comes only if that one dies, and the end waits for it.
        """
        shared = any(draft.shared for draft in drafts)
        while True:
            for draft in drafts:
                draft.refresh()
            missing = {name: [d for d in drafts if name not in d and not d.gone] for name in names}
            missing = {name: lacking for name, lacking in missing.items() if lacking}
            given = 0
            for name, lacking in missing.items():
                # One claim for all drafts, in the first of them, whichever of them lack the file.
                claim = (lacking[0] if drafts[0].gone else drafts[0]).claim(name)
                if claim is None:
                    continue
                for draft in drafts:
                    draft.refresh()
                if any(name not in draft and not draft.gone for draft in lacking):
                    given += 1
                    yield name, claim
                else:  # finished since
                    claim.release()
            if not missing or not shared:
                return
            if not given:
                time.sleep(POLL_SECONDS)

    def commit(self, draft: Draft, facts: Mapping[str, Any], device: str = "cpu") -> Artifact:
        """Finish a draft: manifest, rename, one line."""
        draft.commit(self.folder(draft.plan), facts, device)
        artifact = Artifact(self.folder(draft.plan))
        seconds = artifact.manifest["provenance"]["seconds"]
        self._said.add(artifact.key)
        self.say(f"{draft.plan.stage} {draft.plan.key}: done in {seconds:.0f} s ({draft.plan.about})")
        return artifact

    def finish(self, draft: Draft, facts: Callable[[], Mapping[str, Any]], device: str = "cpu") -> Artifact:
        """`commit`, unless another worker on a shared draft was first; only that one computes the facts."""
        if not draft.shared:
            return self.commit(draft, facts(), device)
        with self._held(draft.plan):
            found = self.find(draft.plan)
            if found is not None:
                return found
            draft.refresh()
            self._workers(draft.plan)  # clears away what dead ones left
            return self.commit(draft, facts(), device)

    def build(self, plan: Plan, make: Callable[[Draft], Mapping[str, Any]], device: str = "cpu") -> Artifact:
        """The artifact of `plan`: found, or made by `make`, which fills the draft and returns its facts."""
        with self.drafts([plan]) as drafts:
            for draft in drafts:
                return self.commit(draft, make(draft), device)
        artifact = self.find(plan)
        assert artifact is not None
        return artifact

    def _partial(self, plan: Plan) -> Path:
        return self.root / plan.stage / f"{plan.key}.partial"

    def need_space(self, what: str, needed: int) -> None:
        """Say what will be written, and raise SaelinkError when the disk has no room for it."""
        self.root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.root).free
        if needed > free:
            raise SaelinkError(
                f"{what} takes {gigabytes(needed)} in {self.root} and {gigabytes(free)} are free: "
                f"make room (`saelink ls`, `saelink gc`) or set runtime.outputs to another disk"
            )

    # ----------------------------------------------------------------------- looking after it

    def artifacts(self) -> list[Artifact]:
        """All finished artifacts, oldest first."""
        found = [Artifact(path.parent) for path in self.root.glob(f"*/*/{MANIFEST}") if path.parent.suffix == ""]
        return sorted(found, key=lambda artifact: ((artifact.path / MANIFEST).stat().st_mtime_ns, artifact.key))

    def get(self, key: str) -> Artifact:
        """The artifact whose key starts with `key`. Raises SaelinkError when none or several do."""
        folders = [folder for folder in self._folders(key) if folder.suffix == ""]
        if len(folders) != 1:
            found = "no artifact has" if not folders else f"{len(folders)} artifacts have"
            raise SaelinkError(f"{found} a key starting with {key!r} in {self.root}; `saelink ls` lists them")
        return Artifact(folders[0])

    def _folders(self, key: str) -> list[Path]:
        """Finished and unfinished artifact folders whose key starts with `key`; nothing else in the store."""
        name = re.compile(rf"{re.escape(key)}[0-9a-f]*(\.partial)?")
        return [
            folder
            for folder in sorted(self.root.glob("*/*"))
            if name.fullmatch(folder.name) and len(folder.stem) == KEY_LENGTH and folder.is_dir()
        ]

    def remove(self, key: str) -> list[Path]:
        """Delete one artifact, finished or not. Raises SaelinkError when none, several or a busy one has the key."""
        folders = self._folders(key)
        if len({folder.stem for folder in folders}) != 1:
            found = "no artifact has" if not folders else "several artifacts have"
            raise SaelinkError(f"{found} a key starting with {key!r} in {self.root}; `saelink ls` lists them")
        removed = [folder for folder in folders if self._delete(folder)]
        if not removed:
            raise SaelinkError(f"{folders[0].stem} is being made by another process right now; try again later")
        return removed

    def collect_garbage(self) -> Iterator[tuple[Path, int]]:
        """Delete unfinished work that no running process holds, and remains of killed removals; path and bytes.

        A lock that a process left when it was killed just after its artifact was whole goes too, silently.
        """
        for folder in [*self.root.glob("*/.*.removed"), *self.root.glob("*/*.partial")]:
            size = folder_bytes(folder)
            if self._delete(folder):
                yield folder, size
        self._alive(self.root.glob("*/.*.worker"))
        for lock in self.root.glob("*/.*.lock"):
            if (lock.with_name(lock.stem[1:]) / MANIFEST).exists():  # whole: nobody takes its lock again
                lock.unlink(missing_ok=True)

    def _delete(self, folder: Path) -> bool:
        """Delete a folder under its lock, by rename first, so that a killed removal leaves no half artifact."""
        from filelock import FileLock, Timeout

        path = folder.with_name(f".{folder.stem}.lock")
        lock = FileLock(path, mode=0o644)
        try:
            with lock.acquire(timeout=0):
                if self._alive(folder.parent.glob(f".{folder.stem}.*.worker")):
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


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def memory_available() -> int | None:
    """Bytes of memory that can still be had; None where the system does not say."""
    path = Path("/proc/meminfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def gigabytes(size: float) -> str:
    """A size for a person: 12 kB, 3.4 MB, 2.1 GB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} bytes"


# --------------------------------------------------------------------------- provenance


def _peak_memory_bytes() -> int:
    import resource
    import sys

    # Where Linux says it, of this program alone: getrusage also counts what started it.
    path = Path("/proc/self/status")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _git_sha() -> str | None:
    """The commit of the saelink checkout that made this, or None when it is an installed package."""
    head = Path(__file__).resolve().parent.parent / ".git" / "HEAD"
    try:
        text = head.read_text().strip()
        return (head.parent / text[5:]).read_text().strip() if text.startswith("ref: ") else text
    except OSError:
        return None


def _package_versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("saelink", "torch", "transformers", "transformer-lens", "sae-lens", "safetensors", "datasets"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
