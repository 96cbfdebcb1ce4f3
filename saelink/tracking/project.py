"""A project of Weights & Biases: runs begin and end in it, and what was shown there is noted under outputs/wandb.

A result never depends on W&B. Out of reach, it keeps a job waiting for half a minute at most; the run is then kept
offline, and one line says how to send it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from saelink.config.schema import WandbConfig, WandbMode
from saelink.errors import SaelinkError
from saelink.store.files import is_file_name, json_bytes, read_regular, write_durably
from saelink.store.seal import sealed, unsealed
from saelink.store.store import Store

AGENT = "WANDB_SWEEP_ID"
"""The environment variable by which an agent of a W&B sweep says that it started this process."""

DEFAULT = "saelink"
"""The project where neither a setting nor the environment names one."""

WAIT = 30.0
"""Seconds that W&B may keep one job waiting, in all."""


@dataclass
class Shown:
    """A run as it is found in the dashboard."""

    run_id: str
    name: str
    job_type: str
    """train, sweep, experiment or verify."""
    group: str
    tags: list[str] = field(default_factory=list[str])
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    """Columns to compare runs by, on one level."""


@dataclass
class OpenRun:
    """A run that has begun."""

    shown: Shown
    run: Any
    """wandb's own object."""
    online: bool
    agents: bool
    """Whether it is the trial of a W&B agent, which has the agent's id."""
    replaced: Path | None
    """The folder of the offline run of this id that it takes the place of."""

    @property
    def folder(self) -> Path:
        return Path(self.run.dir).parent


class Project:
    """The project that `wandb.project` names. For one job: what it waited for W&B in vain it does not wait again.

    Where no setting is given the environment counts: WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY.
    """

    def __init__(self, settings: WandbConfig, store: Store):
        self.settings, self.store = settings, store
        self._left = WAIT

    @cached_property
    def mode(self) -> WandbMode:
        """The setting, or what the environment or `wandb offline` says; `auto`: online where there is a key.

        Raises SaelinkError for what W&B itself does not take.
        """
        given = self._given()
        if given is not WandbMode.auto:
            return given
        import wandb

        with _environment():
            said = wandb.setup().settings.mode
        return {"disabled": WandbMode.disabled, "offline": WandbMode.offline, "dryrun": WandbMode.offline}.get(
            said, WandbMode.auto
        )

    def _given(self) -> WandbMode:
        """What the setting says, or the environment where that is plain without W&B."""
        off = os.environ.get("WANDB_MODE", "").strip().lower() == "disabled"
        return WandbMode.disabled if off and self.settings.mode is WandbMode.auto else self.settings.mode

    @property
    def name(self) -> str:
        return self.settings.project or os.environ.get("WANDB_PROJECT") or DEFAULT

    @property
    def entity(self) -> str | None:
        return self.settings.entity or os.environ.get("WANDB_ENTITY") or None

    @property
    def disabled(self) -> bool:
        return self.mode is WandbMode.disabled

    def check(self) -> None:
        """Raise SaelinkError, before the work, for a name or key that W&B would refuse after it."""
        if self._given() is WandbMode.disabled:
            return
        field = "wandb.project" if self.settings.project else "WANDB_PROJECT"
        bad = sorted({sign for sign in self.name if sign in "/\\#?%:"})
        if bad:
            raise SaelinkError(f"{field}={self.name}: a project's name has no {' '.join(bad)} in it")
        if len(self.name) > 128:
            raise SaelinkError(f"{field}={self.name}: a project's name has at most 128 characters")
        if self.disabled:
            return
        import wandb

        with _environment():
            wandb.setup()
            if self.mode is not WandbMode.offline:
                wandb.login(prompt=False, verify=False)

    def noted(self, run_id: str) -> dict[str, Any]:
        """What was shown of this run: `content`, whether `online`, the offline `folder`. Empty for what never was."""
        path = self._note_path(run_id)
        try:
            note = unsealed(read_regular(path))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            self.store.observer.say(f"{path} {error}: what it noted is shown once more")
            return {}
        whole = note.get("run") == run_id and {"content", "online", "folder"} <= note.keys()
        return note if whole else {}

    def _folder_of(self, note: dict[str, Any]) -> Path | None:
        """The folder of the offline run that a note names, if it is one of this store's."""
        folder = note.get("folder")
        inside = is_file_name(folder) and str(folder).startswith("offline-run-")
        return self._root.resolve() / str(folder) if inside else None

    def shows(self, run_id: str, content: dict[str, Any]) -> bool:
        """Whether the project has a run of this id with just this content."""
        if AGENT in os.environ:  # the run is the agent's own trial, whatever was published before
            return False
        note = self.noted(run_id)
        online = self._wants_online()
        if not note or note["content"] != content or note["online"] != online:
            return False
        if online:
            return self._may_exist_online(run_id)
        folder = self._folder_of(note)
        return folder is not None and folder.exists()

    @contextmanager
    def showing(
        self, shown: Shown, content: dict[str, Any], begun: OpenRun | None = None
    ) -> Generator[OpenRun | None, None, None]:
        """The run to write `content` into, noted as shown at the end; None where the project shows it already.

        `begun` is the run of a fit that was watched while it went on.
        """
        if begun is None:
            if self.shows(shown.run_id, content):
                yield None
                return
            begun = self.begin(shown)
        try:
            yield begun
        except BaseException as error:
            self.abandon(begun)
            if not begun.online or not isinstance(error, Exception) or isinstance(error, SaelinkError):
                raise
            # Whatever wandb makes of an answer it did not expect: a result never depends on it.
            self.store.observer.say(f"wandb: {_first_line(error)}; `saelink track` shows the rest later")
            return
        self._end(begun, content)

    def begin(self, shown: Shown) -> OpenRun:
        """Start a run; offline after all when W&B can't be reached or refuses."""
        import wandb

        agents = AGENT in os.environ
        note = {} if agents else self.noted(shown.run_id)
        old = self._folder_of(note)
        self.store.mark()
        _make_room(self._root)
        run, online = None, self._wants_online()
        if online:
            started = time.monotonic()
            try:
                run = wandb.init(mode="online", resume="allow", **self._options(shown))
            except Exception as error:  # wandb's own kinds, and others where an answer is not what it expects
                self._left = max(self._left - (time.monotonic() - started), 0)
                self.store.observer.say(f"wandb: {_first_line(error)}; keeping the run offline")
                wandb.teardown()  # its service still holds the id
                for half in self._root.glob(f"run-*-{shown.run_id}"):
                    shutil.rmtree(half)
                online = False
        if run is None:
            while list(self._root.glob(f"*-{time.strftime('%Y%m%d_%H%M%S')}-{shown.run_id}")):
                time.sleep(0.05)  # W&B names folders by the second; two of one second would share one
            run = wandb.init(mode="offline", **self._options(shown))
        run.config.update(shown.config, allow_val_change=True)
        begun = OpenRun(shown, run, online, agents, None if online else old)
        if not agents:  # a killed job leaves a folder that the next one takes the place of
            self._note(begun, None)
        return begun

    def abandon(self, begun: OpenRun) -> None:
        """End a run whose job failed."""
        self._finish(begun, exit_code=1)

    def _end(self, begun: OpenRun, content: dict[str, Any]) -> None:
        sent = self._finish(begun)
        if begun.agents:
            return
        old = begun.replaced
        if old is not None and old.exists() and old != begun.folder and not list(old.glob("*.synced")):
            shutil.rmtree(old)
        self._note(begun, content)
        if begun.online and sent:
            self.store.observer.say(f"wandb: {begun.run.url}")
        else:
            kept = "offline" if sent else "not all was sent"
            self.store.observer.say(f"wandb: {kept}; `wandb sync {os.path.relpath(begun.folder)}` sends it")

    def _finish(self, begun: OpenRun, exit_code: int = 0) -> bool:
        """Whether all of it was sent, or kept offline, in the time that is left."""
        started = time.monotonic()
        try:
            begun.run.finish(exit_code=exit_code)
        except Exception:  # out of time, or wandb's own process is gone; what it has is on disk
            if not begun.online:
                raise
            self._left = max(self._left - (time.monotonic() - started), 0)
            return False
        return True

    def _options(self, shown: Shown) -> dict[str, Any]:
        return {
            "project": self.name,
            "entity": self.entity,
            "id": shown.run_id,
            "name": shown.name,
            "group": shown.group,
            "job_type": shown.job_type,
            "tags": [tag[:64] for tag in shown.tags],  # no longer ones are taken
            "dir": str(self.store.root.resolve()),  # W&B writes from a process with its own current folder
            "settings": _run_settings(max(self._left, 1.0)),
        }

    def _wants_online(self) -> bool:
        if self._left <= 0:
            return False
        if self.mode is not WandbMode.auto:
            return self.mode is WandbMode.online
        return self._has_key and self._left > 0

    @cached_property
    def _has_key(self) -> bool:
        """Whether there is a key, without asking for one; W&B looks whose it is, and waits for its server."""
        import wandb

        started = time.monotonic()
        try:
            return wandb.login(prompt=False, verify=False)
        finally:
            if time.monotonic() - started > 2:  # less is its own start
                self._left = max(self._left - (time.monotonic() - started), 0)

    def _may_exist_online(self, run_id: str) -> bool:
        """False only when W&B says that there is no such run; out of reach is no reason to publish twice."""
        import wandb
        from wandb.errors import CommError

        started = time.monotonic()
        try:
            path = "/".join(filter(None, [self.entity, self.name, run_id]))
            wandb.Api(timeout=int(max(min(self._left, 20), 1))).run(path)
        except (CommError, ValueError) as error:
            self._left = max(self._left - (time.monotonic() - started), 0)
            return "could not find" not in str(error).lower()
        return True

    @property
    def _root(self) -> Path:
        return self.store.root / "wandb"

    def _note_path(self, run_id: str) -> Path:
        project = quote(f"{self.entity or ''}_{self.name}", safe=" ")  # the name of one folder
        return self._root / "published" / project / f"{run_id}.json"

    def _note(self, begun: OpenRun, content: dict[str, Any] | None) -> None:
        folder = None if begun.online else begun.folder.name
        path = self._note_path(begun.shown.run_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        note = {"run": begun.shown.run_id, "content": content, "online": begun.online, "folder": folder}
        write_durably(path, json_bytes(sealed(note)))


def _make_room(folder: Path) -> None:
    """Have W&B keep in `folder` what it can't keep where it would, as of a user without a home."""
    from wandb import env

    for name, usual in (("WANDB_DATA_DIR", env.get_data_dir), ("WANDB_CACHE_DIR", env.get_cache_dir)):
        if name not in os.environ:
            try:
                Path(usual()).mkdir(parents=True, exist_ok=True)
                kept = os.access(usual(), os.W_OK)
            except OSError:
                kept = False
            if not kept:
                os.environ[name] = str(folder.resolve())


@contextmanager
def _environment() -> Generator[None, None, None]:
    """One line for a value in W&B's environment or settings files that W&B does not take."""
    try:
        yield
    except Exception as error:  # of several kinds, wandb's own and those of the library that checks its settings
        reason = " ".join(str(error).split("For further information")[0].split())
        raise SaelinkError(
            f"W&B does not take what its environment says: {reason}; mend or unset that, or set wandb.mode=disabled"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _run_settings(wait: float) -> Any:
    """W&B's settings of a run: nothing personal is kept, and `wait` seconds are waited for the server at either end."""
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        host="-",
        init_timeout=wait,
        finish_timeout=wait,
        finish_timeout_raises=True,
    )
