"""Hydra's callback around a multirun."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from saelink.cli.outcome import OUTCOME
from saelink.config.check import at_home
from saelink.config.grammar import quoted
from saelink.config.schema import WandbConfig
from saelink.store.store import Store
from saelink.terminal.progress import TerminalObserver
from saelink.tracking.sweep import begin, failures, gather_experiments, sweep_folder, write_pareto


class Finish(Callback):
    """A clean record at the start; table, picture and W&B run at the end."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        with _kept():
            given = [text.split("=", 1)[1] for text in config.hydra.overrides.task if text.startswith("layer=")]
            swept = given[-1] if given else str((config.hydra.sweeper.get("params") or {}).get("layer", ""))
            OUTCOME.layers = len(swept.split(","))
            outputs = at_home(config.runtime.outputs)
            if outputs != config.runtime.outputs:  # from a file: Hydra makes a folder of that name for the sweep
                config.runtime.outputs = outputs
                config.hydra.overrides.task.append(f"runtime.outputs={quoted(outputs)}")
            begin(Store(outputs), config.runtime.sweep)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Hydra has written the whole command down, with whatever hydra.job.env_set holds; nothing reads it."""
        if config.hydra.mode == RunMode.MULTIRUN:
            with suppress(OSError):
                Path(config.hydra.sweep.dir, "multirun.yaml").unlink(missing_ok=True)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        if OUTCOME.error is not None:
            return
        with _kept():
            _end(config)


@contextmanager
def _kept() -> Generator[None, None, None]:
    """What is raised inside is raised again when Hydra is done."""
    try:
        yield
    except Exception as error:  # kept, not dropped: raised again when Hydra, which swallows it here, is done
        OUTCOME.error = error


def _end(config: DictConfig) -> None:
    observer = TerminalObserver()
    store, sweep_id = Store(at_home(config.runtime.outputs), observer), config.runtime.sweep
    folder = sweep_folder(store, sweep_id)
    failed = failures(store, sweep_id)
    OUTCOME.failed_elsewhere = len(failed.notes) + failed.left_out
    for failure in failed.notes:  # first: they may be why the rest can't be made
        if failure["job"] in OUTCOME.failed_here:
            observer.say(f"job {failure['job']} failed, see its line above")
        else:
            observer.say(f"job {failure['job']} failed: {failure['error']}")
    if (folder / "experiments").is_dir():
        observer.say("\nTables and pictures of all layers:")
        tables = gather_experiments(store, sweep_id)
        OUTCOME.failed_elsewhere += tables.left_out
        for path in tables.paths:
            observer.say(f"  {path}")
    settings: Any = OmegaConf.to_object(config.wandb)
    finish_sweep(store, sweep_id, settings)


def finish_sweep(store: Store, sweep_id: str, settings: WandbConfig) -> None:
    """The table and picture of the connectors that a sweep's jobs made, and its W&B run, unless they made none."""
    from saelink.terminal.sweep import print_pareto
    from saelink.tracking.project import Project
    from saelink.tracking.runs import publish_sweep

    folder = sweep_folder(store, sweep_id)
    if any((folder / "jobs").glob("*.json")):
        found = write_pareto(store, sweep_id)
        OUTCOME.failed_elsewhere += found.left_out
        print_pareto(store.observer, sweep_id, found.rows, folder)
        publish_sweep(Project(settings, store), sweep_id, found)
