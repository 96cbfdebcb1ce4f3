"""From a command's words to Hydra, and from Hydra to jobs; users' mistakes become one line each."""

from __future__ import annotations

import errno
import gc
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from saelink.cli.jobs import ALL_LAYERS, EACH_LAYER, EACH_PENALTY, Command, run_all, run_report, swept
from saelink.cli.outcome import OUTCOME
from saelink.cli.words import asks_for_help, check_words, hydra_arguments, overrides_of
from saelink.errors import printable

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from saelink.config.schema import Config
    from saelink.job import Job, Memory

ROOM = "nothing half-written stays. Make room or change runtime.outputs"

WAYS_OUT = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), ROOM),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR), ROOM),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (ulimit -n), or run fewer jobs at once"),
    errno.ENOENT: "if it was removed meanwhile, the same command makes it again",
    errno.ENOMEM: "free memory, or run fewer jobs at once",
}
"""What helps against errors of the operating system."""

AGAIN = "the disk or the network failed; once it works, the same command resumes from what is finished"
"""What helps against all others."""


KILLED = ("TerminatedWorkerError", "BrokenProcessPool", "UncompletedJobError", "WorkerCrashedError")
"""What joblib, submitit and ray raise where the process of a job is gone."""


def launch(name: str, arguments: list[str], command: Command) -> None:
    """Run a command under Hydra: one job, or a multirun. Exits with 1 when a job failed."""
    import hydra

    from saelink.cli.help import print_help
    from saelink.compose import register
    from saelink.config.files import conf_dir
    from saelink.mistakes import checked

    check_words(name, arguments)
    if asks_for_help(arguments):
        print_help(name, overrides_of(arguments), "--help-all" in arguments)
        return
    sweeping = _sweeps(name, arguments)
    given = overrides_of(arguments)
    overrides, notes = checked(given, many=sweeping)
    for note in notes:
        print(printable(note))
    if not _shows(arguments):  # else what was registered for the check will do
        register()
    OUTCOME.begin()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach main(), which prints them as lines
    arguments = hydra_arguments(arguments)
    if "hydra/launcher=ray_local" in arguments:  # read when Ray is imported: every port on loopback, no report home
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    words = " ".join([name, *sorted(arguments)])
    sweep_id = "sweep" + hashlib.sha256(os.fsencode(words)).hexdigest()[:8]
    marked = dict(zip(given, overrides, strict=True))
    arguments = [marked.get(word, word) for word in arguments]
    argv = sys.argv
    sys.argv = [f"saelink {name}", *([f"runtime.sweep={sweep_id}"] if sweeping else []), *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(
            _task(name, command, sweep_id)
        )()
    finally:
        sys.argv = argv
    if OUTCOME.error is not None:
        raise OUTCOME.error
    if OUTCOME.failed_here or OUTCOME.failed_elsewhere:  # jobs of a sweep may have run in other processes
        raise typer.Exit(1)


def _sweeps(name: str, arguments: list[str]) -> bool:
    """Whether it is a multirun. Raises SaelinkError for flags and experiments where they don't belong."""
    from saelink.errors import SaelinkError

    experiment = any(argument.startswith("experiment=") for argument in arguments)  # its file says MULTIRUN
    if experiment and name != "run":
        raise SaelinkError(f"{name}: experiments are for `saelink run`, such as saelink run experiment=dense")
    many = "-m" in arguments or "--multirun" in arguments
    shows = _shows(arguments)
    if shows and many:
        raise SaelinkError(f"{name}: {shows[0]} shows the settings of one job; leave out -m and give single values")
    return experiment or many


def _shows(arguments: list[str]) -> list[str]:
    """The flags that show settings and run nothing."""
    return [word for word in arguments if word.partition("=")[0] in ("--cfg", "-c", "--info", "-i")]


def _task(name: str, command: Command, sweep_id: str) -> Callable[[DictConfig], float | list[float] | None]:
    """The function Hydra calls: one job, its errors as one line. Returns the job's objective to a sweeper.

    Jobs of one process share a memory: the path of a lasso goes on from one penalty to the next. `sweep_id` is of this
    command, for a list of penalties.
    """
    memories: list[Memory] = []
    began_in = os.getpid()  # jobs of a launcher run in other processes

    def task(raw: DictConfig) -> float | list[float] | None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from saelink.cli.outcome import OUTCOME  # this process's: a launcher would send a copy of ours along
        from saelink.config.check import at_home
        from saelink.job import Memory
        from saelink.store.store import Store
        from saelink.tracking.sweep import record_failure

        if not memories:
            memories.append(Memory())
            gc.freeze()  # what is imported stays; see main
            gc.enable()
        hydra = HydraConfig.get()
        sweeping = hydra.mode == RunMode.MULTIRUN
        if OUTCOME.error is not None:  # the sweep could not begin
            return None
        try:
            return _run(raw, name, command, memories[0], hydra.job.num if sweeping else None, sweep_id)
        except KeyboardInterrupt:  # in the process of a launcher; the one that began the sweep says so
            raise SystemExit(130) from None
        except Exception as error:  # one_line raises again what is no user's mistake
            line = one_line(error)
            if not sweeping:
                print_line(line)
                OUTCOME.failed_here.append(None)
                return None
            noted = False
            with suppress(OSError):  # on a full disk, say, which the line tells
                record_failure(Store(at_home(raw.runtime.outputs)), raw.runtime.sweep, hydra.job.num, line)
                noted = True
            if os.getpid() == began_in or not noted:  # else the process that began the sweep prints it at the end
                print_line(line)
            OUTCOME.failed_here.append(hydra.job.num)
            return None

    return task


def print_line(line: str) -> None:
    """A user's mistake, on standard error."""
    print(f"saelink: {printable(line)}", file=sys.stderr, flush=True)


def _run(
    raw: DictConfig, name: str, command: Command, memory: Memory, number: int | None, sweep_id: str
) -> float | list[float] | None:
    """One job of Hydra's, the `number`th of a multirun: a job of ours for each penalty.

    Several penalties without a multirun are a sweep too.
    """
    from omegaconf import OmegaConf

    from saelink.cli.multirun import finish_sweep
    from saelink.config.check import check, l1_alphas
    from saelink.config.schema import Config
    from saelink.fit.penalties import penalties
    from saelink.job import Job
    from saelink.store.store import Store
    from saelink.terminal.progress import TerminalObserver
    from saelink.tracking.sweep import begin

    observer = TerminalObserver()
    if number is not None:
        observer.say(f"\njob {number}: {swept()}")
    cfg = OmegaConf.to_object(raw)
    assert isinstance(cfg, Config)
    check(cfg)
    store = Store(cfg.runtime.outputs, observer)
    check_layers(cfg, name, command)
    each_by_itself = command in EACH_PENALTY and not cfg.experiment.names
    listed = number is None and each_by_itself and len(l1_alphas(cfg.l1_alpha)) > 1
    if number is None:
        cfg.runtime.sweep = sweep_id if listed else None
    if listed:
        begin(store, sweep_id)
    job = Job(cfg, store, memory)
    if not each_by_itself:
        command(job)
        return None
    last = None
    for each in (one for layered in over_layers(job) for one in penalties(layered)):
        command(each)
        if number is not None:
            last = objective(each)
    if listed:
        finish_sweep(store, sweep_id, cfg.wandb)
    if command is run_all and number is None:
        run_report(job)
    return last


def check_layers(cfg: Config, name: str, command: Command) -> None:
    """Raise SaelinkError for several layers where a command takes one."""
    from saelink.errors import SaelinkError

    if cfg.layers is not None and command not in EACH_LAYER and name not in ALL_LAYERS:
        raise SaelinkError(
            f"layers={cfg.layers}: saelink {name} takes one layer, such as layer={cfg.layer}; several are for train, "
            f"evaluate, verify, {', '.join(ALL_LAYERS)}"
        )


def over_layers(job: Job) -> Iterator[Job]:
    """The job at each of its layers; what all layers read of the model is made by one pass."""
    from saelink.circuits.layers import each_layer, hooks_over
    from saelink.latents.encode import encode_hooks

    if job.cfg.layers is None:
        yield job
        return
    layered = replace(job.cfg, circuit=replace(job.cfg.circuit, attention=False))
    encode_hooks(job.cfg, job.store, hooks_over(job.at(layered)))
    for each in each_layer(job):
        job.observer.say(f"\nlayer {each.cfg.layer}")
        yield each


def objective(job: Job) -> float | list[float]:
    """What runtime.objective names of the job's connector: a number, or a list for several names."""
    from saelink.errors import SaelinkError
    from saelink.fit.train import TrainStage

    connector = TrainStage(job).find()
    assert connector is not None, "asked for before it was trained"
    facts = {name: value for name, value in connector.facts.items() if isinstance(value, int | float)}
    for name in job.cfg.runtime.objective:
        if name not in facts:
            raise SaelinkError(f"runtime.objective: there is no {name!r}; there are {', '.join(sorted(facts))}")
    values = [float(facts[name]) for name in job.cfg.runtime.objective]
    return values[0] if len(values) == 1 else values


def one_line(error: Exception) -> str:
    """The line that a user's mistake gets, or the error again when it is not one."""
    from saelink.errors import SaelinkError

    if isinstance(error, SaelinkError):
        return str(error)
    if type(error).__name__ in KILLED:
        log = re.search(r"\S+_log\.(out|err)", str(error))
        where = f" ({log[0]} has what it said)" if log else ""
        return (
            f"the process of a job was killed, by the system when memory runs out or by somebody{where}; run fewer "
            "jobs at once if it was memory, the same command resumes from what is finished"
        )
    of_hub = _hub_line(error) if isinstance(error, OSError) else None
    if of_hub is not None:
        return of_hub
    if isinstance(error, OSError) and error.errno is not None and error.errno != errno.EPIPE:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; {WAYS_OUT.get(error.errno, AGAIN)}"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch's
        reason = str(error).splitlines()[0].rpartition("] ")[2][:200] if str(error) else "there is no memory left"
        return f"{reason}; free some, or work on less at once (runtime.forward_tokens, data.max_tokens)"
    from omegaconf.errors import OmegaConfBaseException  # after those that may keep anything from being imported

    if isinstance(error, OmegaConfBaseException):
        return str(error).splitlines()[0]
    raise error


def _hub_line(error: OSError) -> str | None:
    """The line for a hub's cache that can't be written; None for other errors."""
    try:
        from saelink.fetch import hub_cache_line, in_hub_cache
    except OSError:  # on a disk that fails nothing can be imported either
        return None
    return hub_cache_line(error) if in_hub_cache(error) else None
