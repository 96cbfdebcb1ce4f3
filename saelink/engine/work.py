"""What workers do, and what is done in a worker: tasks, one after the other, each with its result or its error."""

from __future__ import annotations

import os
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from saelink.errors import SaelinkError, reason_of

State = TypeVar("State")
Task = TypeVar("Task")
Result = TypeVar("Result")

IDLE_SECONDS = 2.0
"""A worker that waits for so long drops what it opened."""


class Work(ABC, Generic[State, Task, Result]):
    """What workers do.

    It is sent to them, with tasks and results: a frozen dataclass of settings, names and numbers. What is large, a
    worker reads from the store and writes into a draft (`Draft.parts`).
    """

    on_gpu: ClassVar[bool] = False
    """Whether it computes on a GPU where there is one."""

    @abstractmethod
    def open(self) -> State:
        """What all tasks need, made once in each worker."""

    @abstractmethod
    def run(self, state: State, task: Task) -> Result:
        """Do one task."""

    def memory(self) -> int:
        """Bytes that one worker needs at most, as far as is known: fewer workers are started where there is less."""
        return 0


class RemoteError(Exception):
    """Where in a worker an error was raised: the cause of the error that its caller sees."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class Call(NamedTuple):
    """What every task of one `Engine.run` is sent with."""

    run: str
    work: Work[Any, Any, Any]
    threads: int
    folder: str
    """Where relative paths of the settings begin."""


class Failure(NamedTuple):
    """An error, as it can be sent whatever its class is."""

    kind: str
    """user, system, memory or bug"""
    args: tuple[Any, ...]
    trace: str


class Done(NamedTuple):
    """What became of a task."""

    number: int
    value: Any = None
    error: Failure | None = None
    lost: str = ""
    """How its worker ended, when it did."""


class Opened:
    """What a worker process has open."""

    def __init__(self) -> None:
        self.run = ""
        """Of which `Engine.run` it is."""
        self.state: Any = None
        self.used = 0.0
        """When it was last used; while a task runs, this lies ahead."""

    def of(self, call: Call) -> Any:
        """What the tasks of this call need, opened if it is not."""
        self.used = float("inf")
        if self.run != call.run:
            self.run, self.state = "", None  # before there is another
            self.state = call.work.open()
            self.run = call.run
        return self.state

    def rest(self) -> None:
        """Nothing uses it for now."""
        self.used = time.monotonic()

    def drop_when_idle(self) -> None:
        if time.monotonic() - self.used > IDLE_SECONDS:
            self.run, self.state = "", None


OPENED = Opened()
"""This worker's. The engines call plain functions, which have no other place for it."""


def do_tasks(call: Call, tasks: Sequence[tuple[int, Any]]) -> list[Done]:
    """Do some tasks in a worker; the first error ends it."""
    import torch

    torch.set_num_threads(call.threads)
    with suppress(OSError):  # a node without that folder: then paths were absolute, or what needs them says so
        os.chdir(call.folder)
    found: list[Done] = []
    for number, task in tasks:
        try:
            found.append(Done(number, call.work.run(OPENED.of(call), task)))
        except Exception as error:  # whatever it is, the caller has to know
            found.append(Done(number, error=_failure(error)))
            break
        finally:
            OPENED.rest()
    return found


def _failure(error: Exception) -> Failure:
    if isinstance(error, SaelinkError):
        return Failure("user", (str(error),), "")
    if isinstance(error, OSError) and error.errno is not None:
        return Failure("system", (error.errno, error.strerror, error.filename), "")
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch's
        return Failure("memory", (str(error),), "")
    return Failure("bug", (f"{type(error).__name__}: {error}",), traceback.format_exc())


def raised(failure: Failure) -> Exception:
    kinds = {"user": SaelinkError, "system": OSError, "memory": MemoryError, "bug": RuntimeError}
    return kinds[failure.kind](*failure.args)


class Backend(Protocol):
    """Where tasks go."""

    def stream(self, call: Call, tasks: list[tuple[int, Any]]) -> Generator[Done, None, None]:
        """What becomes of the tasks, as it comes; when it is closed nothing of them runs on.

        It may end before all are done, after it has said which of those that were begun are lost.
        """
        ...


@contextmanager
def needs_extra(engine: str, package: str) -> Generator[None, None, None]:
    """Inside, a package that is missing is said in one line."""
    try:
        yield
    except ImportError as error:
        raise SaelinkError(
            f"runtime.engine={engine} needs {package} ({reason_of(error, 80)}): pip install 'saelink[{package}]'"
        ) from None
