"""The rows of the fault bench. A case gets its number and an empty folder; it tells how it came out, or raises."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks import canaries, defects, faulty, hostile, job_faults
from benchmarks.damaged import damaged_case
from benchmarks.faulty import Child, Ended, chain, clean
from saelink.store.artifact import Artifact, RemovedError
from saelink.store.draft import Draft
from saelink.store.recipe import Plan
from saelink.store.store import Store

CALLS = ("openat", "write", "fsync", "rename", "unlink", "unlinkat", "mkdir", "rmdir", "flock", "fchmod")
"""The system calls by which the store changes anything."""


@dataclass(frozen=True)
class Row:
    """A kind of fault."""

    name: str
    wanted: str
    count: Callable[[], int]
    """How many cases there are."""
    run: Callable[[int, Path], str]
    missing: Callable[[], str | None] = lambda: None
    """Why it can't be measured here, if so."""


@cache
def undisturbed() -> dict[str, Any]:
    """What a chain finds that nothing happened to."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return chain(Path(folder) / "outputs")


@cache
def seconds() -> float:
    """How long a chain takes here, in a process of its own."""
    import tempfile

    times = []
    for _ in range(9):
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            assert Child(lambda folder=folder: chain(Path(folder))).join().code == 0
            times.append(time.monotonic() - started)
    return sorted(times)[4]


def heals(root: Path) -> None:
    """The same command again ends with the bytes of an undisturbed one, and gc leaves nothing lying about."""
    ended = Child(lambda: chain(root)).join()
    assert ended.code == 0, f"the rerun failed: {ended.lines}"
    assert ended.told == undisturbed(), "the rerun found something else"
    left = clean(root)
    assert not left, f"left after gc: {left}"


def one_line(ended: Ended, codes: tuple[int, ...]) -> None:
    """It ended with one of these codes, and with one line unless all went well."""
    assert ended.code in codes, f"exit code {ended.code}: {ended.lines}"
    assert len(ended.lines) == (ended.code != 0), f"exit code {ended.code}: {ended.lines}"
    if ended.code == 0:
        assert ended.told == undisturbed(), "it found something else and said nothing"


# --------------------------------------------------------------------------- at system calls


def no_strace() -> str | None:
    if shutil.which("strace") is None:
        return "there is no strace"
    return None if traced(["-e", "trace=none"]).code == 0 else "strace may not attach to processes here"


def traced(options: list[str], root: Path | None = None, shared: bool = False) -> Ended:
    """A chain in a process that strace is attached to."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        child = Child(partial(chain, root or Path(folder) / "outputs", shared), wait=True)
        tracer = subprocess.Popen(
            ["strace", "-f", "-p", str(child.pid), *options],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert tracer.stderr is not None
        attached = tracer.stderr.readline()
        child.go()
        try:
            ended = child.join()
        finally:
            tracer.communicate()
        return ended if "attached" in attached else Ended(1, [attached], None)


@cache
def calls(shared: bool) -> dict[str, int]:
    """How often a chain makes each system call."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "trace"
        assert traced(["-e", f"trace={','.join(CALLS)}", "-o", str(out)], Path(folder) / "outputs", shared).code == 0
        found = re.findall(r"^\d+ +(\w+)\(", out.read_text(), re.MULTILINE)
    return {name: found.count(name) for name in CALLS if name in found}


def _only(call: str) -> list[str]:
    """What makes strace follow one system call, and keep what it sees to itself."""
    return ["-o", "/dev/null", "-e", f"trace={call}"]


@cache
def kills() -> list[tuple[bool, str, int]]:
    return [
        (shared, call, n + 1) for shared in (False, True) for call, most in calls(shared).items() for n in range(most)
    ]


def killed_at_a_call(case: int, folder: Path) -> str:
    shared, call, number = kills()[case]
    root = folder / "outputs"
    ended = traced(
        ["-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"], root, shared
    )
    assert ended.code in (-signal.SIGKILL, 0), f"exit code {ended.code}: {ended.lines}"
    heals(root)
    return "healed" if ended.code else "not reached"


ERRORS = ("ENOSPC", "EIO", "EINTR")


@cache
def errors() -> list[tuple[str, str, int, bool]]:
    """Each error at each call, once and lasting (for EINTR five times: no system says it for ever)."""
    places = [(call, n + 1) for call, most in calls(False).items() if call in CALLS[:4] for n in range(most)]
    found = [(error, call, n, lasting) for error in ERRORS for call, n in places for lasting in (False, True)]
    random.Random("errors").shuffle(found)
    return found


def error_at_a_call(case: int, folder: Path) -> str:
    error, call, number, lasting = errors()[case]
    when = f"{number}" if not lasting else f"{number}..{number + 4}" if error == "EINTR" else f"{number}+"
    root = folder / "outputs"
    ended = traced([*_only(call), "-e", f"inject={call}:error={error}:when={when}"], root)
    one_line(ended, (0, 1))
    heals(root)
    return "one line, healed" if ended.code else "no harm"


# --------------------------------------------------------------------------- a full disk

SIZES = range(8, 120, 2)
"""Kilobytes of the disks that are too small for a chain, and some that are not."""


def no_mount() -> str | None:
    import tempfile

    if os.geteuid() != 0 or shutil.which("mount") is None:
        return "only root may mount"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", folder], capture_output=True)
        if done.returncode:
            return "nothing may be mounted here"
        subprocess.run(["umount", folder], check=True)
    return None


def full_disk(case: int, folder: Path) -> str:
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZES[case]}k", "tmpfs", str(disk)], check=True)
    try:
        ended = Child(lambda: chain(disk / "outputs")).join()
        one_line(ended, (0, 1))
        assert ended.code == 0 or "No space left on device" in ended.lines[0], ended.lines
        subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
        heals(disk / "outputs")
        return "one line, healed" if ended.code else "large enough"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --------------------------------------------------------------------------- kills and signals at any moment


def killed_anywhere(case: int, folder: Path) -> str:
    """Of one process, or of three workers one or all; up to four times in a row."""
    chance = random.Random(f"kill {case}")
    root = folder / "outputs"
    workers = chance.choice((1, 3))
    died = 0
    for _ in range(chance.randint(1, 4)):
        children = [Child(partial(chain, root, workers > 1), wait=True) for _ in range(workers)]
        for child in children:
            child.go()
        doomed = children if chance.random() < 0.5 else children[:1]
        for child in doomed:
            time.sleep(chance.random() * seconds() / len(doomed))
            child.kill(signal.SIGKILL)
        for child in children:
            ended = child.join()
            died += ended.code == -signal.SIGKILL
            one_line(ended, (0,)) if child not in doomed else None
            assert ended.code in (0, -signal.SIGKILL), f"exit code {ended.code}: {ended.lines}"
    heals(root)
    return "healed" if died else "all had ended"


def signalled(case: int, folder: Path) -> str:
    chance = random.Random(f"signal {case}")
    root = folder / "outputs"
    number = chance.choice((signal.SIGINT, signal.SIGTERM))
    child = Child(partial(chain, root, chance.random() < 0.3), wait=True)
    child.go()
    time.sleep(chance.random() * seconds())
    child.kill(number)
    ended = child.join()
    one_line(ended, (0, 128 + number))
    left = [path for path in root.rglob("*.partial") if path.parent.name != faulty.ROWS.stage]
    assert not left, f"left: {left}"
    heals(root)
    return "one line, healed" if ended.code else "had ended"


# --------------------------------------------------------------------------- races

NUMBERS = Plan("numbers", 1, {"n": 1}, {}, "for races")


def _make(made: Path, pause: float) -> Callable[[Draft], dict[str, Any]]:
    def make(draft: Draft) -> dict[str, Any]:
        with made.open("a") as file:
            file.write("x")
        for number in range(4):
            draft.save_bytes(f"{number}.bin", bytes([number]) * 3000)
            time.sleep(pause)
        return {"n": 4}

    return make


def _read(artifact: Artifact[Any]) -> None:
    for number in range(4):
        data = artifact.file(f"{number}.bin").read_bytes()
        assert data == bytes([number]) * 3000, f"{number}.bin holds something else"


def _build(root: Path, made: Path, pause: float) -> None:
    _read(Store(root).build(NUMBERS, _make(made, pause)))


def _look(root: Path) -> dict[str, Any]:
    """Find and read again and again; what is removed meanwhile is said to be removed, and what is found is whole."""
    seen = {"read": [0], "removed": [0]}
    for _ in range(30):
        try:
            artifact = Store(root).find(NUMBERS)
            if artifact is not None:
                _read(artifact)
                seen["read"][0] += 1
        except (RemovedError, FileNotFoundError):
            seen["removed"][0] += 1
        time.sleep(0.0005)
    return seen


def _collect(root: Path) -> None:
    for _ in range(8):
        list(Store(root).collect_garbage())
        Store(root).listing()
        time.sleep(0.001)


def _remove(root: Path) -> None:
    from saelink.errors import SaelinkError

    for _ in range(8):
        try:
            Store(root).remove(NUMBERS.key)
        except SaelinkError as error:
            expected = "no artifact has|being made by another|was removed by another|is no store"
            if not re.search(expected, str(error)):
                raise
        time.sleep(0.001)


def raced(case: int, folder: Path) -> str:
    chance = random.Random(f"race {case}")
    root, made = folder / "outputs", folder / "made"
    kind = ("builders", "with gc", "with rm", "killed holder", "two gcs")[case % 5]
    pause = chance.choice((0, 0, 0.0005, 0.002))
    Store(root).mark()
    builders = [partial(_build, root, made, pause) for _ in range(chance.randint(2, 4))]
    others: list[Callable[[], Any]] = []
    if kind == "with gc":
        others = [partial(_look, root), partial(_collect, root)]
    elif kind == "with rm":
        others = [partial(_look, root), partial(_remove, root), partial(_collect, root)]
    elif kind == "two gcs":
        partly = Draft(NUMBERS, root / "numbers" / f"{NUMBERS.key}.partial", resumable=True)
        partly.save_bytes("0.bin", b"0")
        shutil.copytree(partly.folder, partly.folder.with_name(f".{NUMBERS.key}.99999.removed"))
        others, builders = [partial(_collect, root)] * 3, builders[:1]
    children = [Child(work, wait=True) for work in [*builders, *others]]
    for child in children:
        child.go()
    if kind == "killed holder":
        time.sleep(chance.random() * 0.02)
        children[0].kill(signal.SIGKILL)
    ended = [child.join() for child in children]
    for number, each in enumerate(ended):
        if kind == "killed holder" and number == 0:
            continue
        assert each.code == 0 or (kind == "with rm" and _removed(each)), f"{kind}: {each.code} {each.lines}"
    if kind in ("builders", "with gc", "two gcs"):
        assert made.read_text() == "x", f"{kind}: made {len(made.read_text())} times"
    _build(root, made, 0)
    left = clean(root)
    assert not left, f"{kind}: left {left}"
    return kind


def _removed(ended: Ended) -> bool:
    """Whether a builder's artifact was removed before it could read it, and the line says so."""
    return ended.code == 1 and len(ended.lines) == 1 and "removed" in ended.lines[0]


# --------------------------------------------------------------------------- stale hits


def _value(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randint(0, 6 if depth < 2 else 4)
    if kind == 5:
        return [_value(chance, depth + 1) for _ in range(chance.randint(0, 3))]
    if kind == 6:
        return {f"k{n}": _value(chance, depth + 1) for n in range(chance.randint(1, 4))}
    return [None, chance.random() < 0.5, chance.randint(-5, 5), chance.gauss(0, 1), chance.choice("abc")][kind]


def _changed(chance: random.Random, value: Any) -> Any:
    """Another value: of a collection one entry of it is another."""
    if isinstance(value, dict) and value:
        name = chance.choice(sorted(value))
        return {**value, name: _changed(chance, value[name])}
    if isinstance(value, list) and value:
        at = chance.randrange(len(value))
        return [*value[:at], _changed(chance, value[at]), *value[at + 1 :]]
    while True:
        other = _value(chance, 2)
        if (other, type(other)) != (value, type(value)):
            return other


def _shuffled(chance: random.Random, value: Any) -> Any:
    """The same in another order, and numbers by another spelling."""
    if isinstance(value, dict):
        names = sorted(value, key=lambda _: chance.random())
        return {name: _shuffled(chance, value[name]) for name in names}
    if isinstance(value, list):
        return [_shuffled(chance, each) for each in value]
    return float(f"{value:.25e}") if isinstance(value, float) else value


def stale(case: int, folder: Path) -> str:
    chance = random.Random(f"stale {case}")
    store = Store(folder / "outputs")
    recipe = {f"s{n}": _value(chance) for n in range(1, 9)}
    plan = Plan("stage", chance.randint(1, 9), recipe, {"one": "0" * 12, "two": "1" * 12}, "about")
    artifact = store.build(plan, lambda draft: draft.save_bytes("a.bin", b"words" * 50) or {"n": 1})
    same = Plan("stage", plan.version, _shuffled(chance, recipe), {"two": "1" * 12, "one": "0" * 12}, "other words")
    assert store.find(same) is not None, "not found again"
    others = [
        Plan("stage", plan.version, _changed(chance, recipe), plan.inputs, ""),
        Plan("stage", plan.version + 1, recipe, plan.inputs, ""),
        Plan("stage", plan.version, recipe, {**plan.inputs, chance.choice(("one", "two")): "2" * 12}, ""),
        Plan("stage", plan.version, recipe, {"one": "1" * 12, "two": "0" * 12}, ""),
        Plan("stages", plan.version, recipe, plan.inputs, ""),
    ]
    assert all(store.find(other) is None for other in others), "a stale hit"
    path = artifact.path / chance.choice(("a.bin", "manifest.json"))
    before, data = path.stat(), bytearray(path.read_bytes())
    places = [n for n, byte in enumerate(data) if chr(byte).isalnum()]
    data[chance.choice(places)] ^= 1 << chance.randint(0, 3)
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with suppress(ValueError):
        found = store.find(plan)
        assert found is not None
        found.file("a.bin")
        # Of a number that is written with 17 digits the last may be another one and the number the same.
        same_content = path.name == "manifest.json" and found.manifest == artifact.manifest
        assert same_content, f"{path.name} was changed in place, and nobody saw it"
        return "right, and a change that says the same"
    return "right"


ROWS = [
    Row("kill at each call", "0 lost, 0 corrupt, same bytes after a rerun, no orphan after gc",
        lambda: len(kills()), killed_at_a_call, no_strace),
    Row("kill anywhere", "the same, one worker and three", lambda: 3000, killed_anywhere),
    Row("errors at each call", "exit code right, one line, a rerun heals, no hang over 60 s",
        lambda: len(errors()), error_at_a_call, no_strace),
    Row("full disk", "one line, a rerun heals", lambda: len(SIZES), full_disk, no_mount),
    Row("damage", "all found before use", lambda: 10_000, damaged_case),
    Row("races", "one commit, no error, nothing a reader holds is wrong", lambda: 2000, raced),
    Row("stale hits", "0 stale hits, all found again", lambda: 2000, stale),
    Row("signals", "one line, 130 or 143, resumed after", lambda: 1000, signalled),
    Row("hostile files", "nothing run, nothing fetched, nothing written outside", lambda: hostile.COUNT,
        hostile.hostile_case),
    Row("secrets", "0 found", lambda: len(canaries.PLACES), canaries.canary_case),
    Row("one of several jobs", "statuses exact, finished jobs not done again", lambda: len(job_faults.CASES),
        job_faults.job_case),
    Row("seeded defects", "the nearest tests catch all", lambda: len(defects.DEFECTS), defects.defect_case),
]  # fmt: skip
