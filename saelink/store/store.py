"""The artifact store: every stage's result is a folder that is whole, checked and never rebuilt.

    outputs/<stage>/<key>/manifest.json     recipe, inputs, provenance, size and sha256 of every file and of itself
    outputs/<stage>/<key>/*.safetensors     the tensors
    outputs/<stage>/<key>.partial/          unfinished work; a resumable stage goes on from its journal
    outputs/.saelink-store                  says that this folder is a store: nothing is listed or removed without it

`key` is a short sha256 over the stage's name and VERSION, its *recipe* (what changes the numbers) and the
keys of its inputs. A folder gets its final name only after everything in it, manifest last, has reached the
disk, so a folder without `.partial` is a whole artifact, whatever was killed when.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from saelink.config.size import gigabytes
from saelink.errors import SaelinkError
from saelink.progress import Observer
from saelink.store.artifact import Artifact, RemovedError
from saelink.store.draft import Claim, Draft
from saelink.store.locks import still_held
from saelink.store.manifest import MANIFEST
from saelink.store.recipe import Plan
from saelink.store.upkeep import collect_garbage, folders, mark, remove

POLL_SECONDS = 0.2
"""How often a process looks whether others have finished."""


class Store:
    """The folder that holds all artifacts; `observer` is told what is found, made and waited for."""

    def __init__(self, root: str | Path, observer: Observer | None = None):
        self.root = Path(root)
        self.observer = observer or Observer()
        self._said: set[str] = set()
        self._marked = False

    def telling(self, observer: Observer) -> Store:
        """The same folder with another observer, which is told nothing again that this one's was told once."""
        other = Store(self.root, observer)
        other._said = self._said
        return other

    def folder(self, plan: Plan) -> Path:
        return self.root / plan.stage / plan.key

    def find(self, plan: Plan) -> Artifact[Any] | None:
        """The finished artifact of this plan, or None. Raises SaelinkError when its manifest is damaged."""
        folder = self.folder(plan)
        try:
            return Artifact(folder) if folder.exists() else None
        except RemovedError:
            return None

    def up_to_date(self, plan: Plan) -> Artifact[Any] | None:
        """`find`, saying so in one line, once, when there is one."""
        artifact = self.find(plan)
        if artifact is not None and plan.key not in self._said:
            with suppress(OSError):  # a store that may only be read
                self.mark()
            self._said.add(plan.key)
            self.observer.found(f"{plan.stage} {plan.key}: up to date ({plan.about})")
        return artifact

    @contextmanager
    def _lock(self, plan: Plan) -> Generator[None, None, None]:
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
                self.observer.say(f"{plan.stage} {plan.key}: workers are making it, waiting")
            said = True
            time.sleep(POLL_SECONDS)

    @contextmanager
    def _held(self, plan: Plan) -> Generator[None, None, None]:
        from filelock import FileLock, Timeout

        folder = self.root / plan.stage
        lock = FileLock(folder / f".{plan.key}.lock", mode=0o644)
        try:
            self.mark()
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:  # an OSError too, so it stands before it
            self.observer.say(f"{plan.stage} {plan.key}: another process is making it, waiting")
            lock.acquire()
        except OSError as error:
            raise SaelinkError(
                f"runtime.outputs={self.root}: can't be written ({error.strerror}); name a folder you own"
            ) from None
        try:
            yield
        finally:
            with suppress(OSError):  # while it is held, so that nobody's newer one goes
                Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    @contextmanager
    def drafts(
        self, plans: list[Plan], *, resumable: bool = False, shared: bool = False
    ) -> Generator[list[Draft], None, None]:
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
            drafts: list[Draft] = []
            try:
                drafts.extend(Draft(plan, self._partial(plan), resumable) for plan in plans if self.find(plan) is None)
                yield drafts
            except BaseException:
                for draft in drafts:
                    draft.abandon()
                if not drafts and not resumable:  # it was stopped while it made the first
                    for plan in plans:
                        shutil.rmtree(self._partial(plan), ignore_errors=True)
                raise

    def _workers(self, plan: Plan) -> list[Path]:
        """Locks of the running workers on a plan; those of dead ones are cleared away."""
        return still_held((self.root / plan.stage).glob(f".{plan.key}.*.worker"))

    @contextmanager
    def _shared_drafts(self, plans: list[Plan]) -> Generator[list[Draft], None, None]:
        from filelock import FileLock

        with ExitStack() as locks:
            drafts: list[Draft] = []
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

    def commit(self, draft: Draft, facts: Mapping[str, Any], device: str = "cpu") -> Artifact[Any]:
        """Finish a draft: manifest, rename, one line."""
        draft.commit(self.folder(draft.plan), facts, device)
        artifact: Artifact[Any] = Artifact(self.folder(draft.plan))
        seconds = artifact.manifest["provenance"]["seconds"]
        self._said.add(artifact.key)
        self.observer.say(f"{draft.plan.stage} {draft.plan.key}: done in {seconds:.0f} s ({draft.plan.about})")
        return artifact

    def finish(self, draft: Draft, facts: Callable[[], Mapping[str, Any]], device: str = "cpu") -> Artifact[Any]:
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

    def build(
        self, plan: Plan, make: Callable[[Draft], Mapping[str, Any]], device: str = "cpu", resumable: bool = False
    ) -> Artifact[Any]:
        """The artifact of `plan`: found, or made by `make`, which fills the draft and returns its facts."""
        with self.drafts([plan], resumable=resumable) as drafts:
            for draft in drafts:
                return self.commit(draft, make(draft), device)
        artifact = self.find(plan)
        assert artifact is not None
        return artifact

    def _partial(self, plan: Plan) -> Path:
        return self.root / plan.stage / f"{plan.key}.partial"

    def need_space(self, what: str, needed: int) -> None:
        """Say what will be written, and raise SaelinkError when the disk has no room for it."""
        self.mark()
        free = shutil.disk_usage(self.root).free
        if needed > free:
            raise SaelinkError(
                f"{what} takes {gigabytes(needed)} in {self.root} and {gigabytes(free)} are free: "
                f"make room (`saelink ls`, `saelink gc`) or set runtime.outputs to another disk"
            )

    def mark(self) -> None:
        """Make the folder, and say in it that it is a store."""
        if not self._marked:
            mark(self.root)
            self._marked = True

    # ----------------------------------------------------------------------- looking after it

    def artifacts(self) -> list[Artifact[Any]]:
        """All finished artifacts, oldest first; a line says, once, how many are left out because they are damaged."""
        whole, damaged = self.listing()
        news = {folder.name for folder in damaged} - self._said
        if news:
            self._said |= news
            some = "1 damaged artifact is" if len(damaged) == 1 else f"{len(damaged)} damaged artifacts are"
            self.observer.say(f"{self.root}: {some} left out; `saelink ls` lists what is there")
        return whole

    def listing(self) -> tuple[list[Artifact[Any]], list[Path]]:
        """All finished artifacts, oldest first, and the folders of those whose manifest is damaged or missing."""
        whole: list[tuple[int, str, Artifact[Any]]] = []
        damaged: list[Path] = []
        for folder in folders(self.root, ""):
            if folder.suffix == "":
                try:
                    artifact: Artifact[Any] = Artifact(folder)
                    whole.append(((folder / MANIFEST).stat().st_mtime_ns, artifact.key, artifact))
                except RemovedError:
                    continue
                except (SaelinkError, OSError):
                    if folder.exists():  # else it was removed just now
                        damaged.append(folder)
        return [artifact for *_, artifact in sorted(whole, key=lambda entry: entry[:2])], damaged

    def get(self, key: str) -> Artifact[Any]:
        """The artifact whose key starts with `key`. Raises SaelinkError when none or several do."""
        found = [folder for folder in folders(self.root, key) if folder.suffix == ""]
        if len(found) != 1:
            some = "no artifact has" if not found else f"{len(found)} artifacts have"
            raise SaelinkError(f"{some} a key starting with {key!r} in {self.root}; `saelink ls` lists them")
        return Artifact(found[0])

    def remove(self, key: str) -> list[Path]:
        """Delete one artifact, finished or not. Raises SaelinkError when none, several or a busy one has the key."""
        return remove(self.root, key)

    def collect_garbage(self) -> Iterator[tuple[Path, int]]:
        """Delete what killed processes left: unfinished work, half removed artifacts; path and bytes of each."""
        return collect_garbage(self.root)
