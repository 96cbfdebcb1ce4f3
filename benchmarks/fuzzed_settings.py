"""Configurations and commands with anything in them: each is accepted or refused in one line, in under two seconds.

    python -m benchmarks.fuzzed_settings                         # 2,000 configurations, 200 commands: 4 minutes
    python -m benchmarks.fuzzed_settings --count 100000 --commands 2000 --processes 2

Words are drawn from every setting there is, misspelt ones among them, with every sign that may stand before one and
with values from numbers of any size to brackets, quotes, control characters and other alphabets. The seed makes them
again; what fails is printed with its words. The result goes to benchmarks/fuzzed_settings.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

SECONDS = 2.0
"""No answer takes longer."""

NUMBERS = [
    "0", "1", "-1", "2", "3", "0.5", "1e-3", "1e3", "1e400", "-1e400", "nan", "inf", "1e-30", "1_000", "007", "0x10",
    str(2**31), str(2**63), str(2**64), str(-(2**63) - 1), "9" * 400, "1.5", "-0.0", ".5", "1.",
]  # fmt: skip

TEXTS = [
    "", " ", "null", "true", "False", "none", "~", "~/x", "a b", "a,b", "a=b", "a:b", "[", "]", "{", "}", "[]", "{}",
    "[1,2]", "[1,[2]]", "{a: 1}", "{a: {b: c}}", "[[[[[[[[[[[[[[[[[[[[[[[[[", "(", ")", "'", '"', '""', "'a'", "\\",
    "\\\\", "${layer}", "${", "${oc.env:HOME}", "${nope}", "???", "*", "**", "a[1].jsonl", "é", "猫", "\u202e", "\x07",
    "\n", "\t", "\x1b[31m", "choice(1,2)", "range(0,3)", "interval(0,1)", "glob(*)", "shuffle(1)", "x" * 5000, "/",
    "../..", "/proc/self/mem", "hf://", "hf://a", "hf://a/b@c/d", "package:", "-1", "=", "==", "a.b", "$", "#", "%s",
    "{0}", "\udcff", "mlp", "exact", "adam", "pareto", "smollm2", "float32", "bfloat16", "auto", "cuda", "{layer}",
]  # fmt: skip

SIGNS = ["", "", "", "", "+", "++", "~", "+++", "@", "-", "--", "$"]

FLAGS = [
    "--cfg", "--cfg=job", "-c", "--resolve", "--package", "-p", "--info", "-i", "--run", "--multirun", "-m", "--nope",
    "-x", "--", "-", "--config-name", "-cn", "--config-dir", "--config-path", "--hydra-help", "--version",
    "--experimental-rerun", "--shell-completion", "--json", "-v",
]  # fmt: skip

STAGES = ["run", "cache", "sae", "encode", "train", "evaluate", "verify", "report", "export", "track", "show", "graph"]

OTHERS = ["ls", "rm", "gc", "pareto", "wandb", "trian", "", "push"]


class Failure(NamedTuple):
    """Words that were not answered as they should."""

    words: list[str]
    what: str


class Words:
    """Draws settings, values and flags."""

    def __init__(self, seed: str):
        from saelink.compose import choices_of, composing, declared_options
        from saelink.config.schema import Config
        from saelink.mistakes import settings_by_choice, settings_of

        self._random = random.Random(seed)
        known = settings_of(Config) | settings_of(declared_options().experiment, "experiment.")
        for group, kinds in settings_by_choice().items():
            for kind in kinds.values():
                known |= settings_of(kind, f"{group}.")
        with composing(declared_options()) as loader:
            self._groups = choices_of(loader, [])
        self._names = [*known, *self._groups, "hydra.verbose", "hydra/launcher", "hydra.run.dir", "hydra.searchpath"]

    def override(self) -> str:
        """One word that is meant for a setting."""
        draw = self._random
        name = draw.choice(self._names)
        if draw.random() < 0.15:
            name = self._misspelt(name)
        chosen = name in self._groups and draw.random() < 0.7
        value = draw.choice(self._groups[name]) if chosen else self.value()
        if draw.random() < 0.03:
            odd = [name, value, f"{name}:{value}", f"={value}", f"{name}@{value}={value}", f"{name}/x={value}"]
            return draw.choice(odd)
        return f"{draw.choice(SIGNS) if draw.random() < 0.3 else ''}{name}={value}"

    def value(self) -> str:
        draw = self._random
        kind = draw.random()
        if kind < 0.4:
            return draw.choice(NUMBERS)
        if kind < 0.85:
            return draw.choice(TEXTS)
        parts = [draw.choice(NUMBERS + TEXTS)[:20] for _ in range(draw.randint(1, 4))]
        return draw.choice(["[{}]", "{{a: {}}}", "{}", '"{}"', "choice({})"]).format(",".join(parts))

    def _misspelt(self, name: str) -> str:
        draw = self._random
        at = draw.randrange(len(name))
        others = [name[:at] + name[at + 1 :], name[:at] + "x" + name[at:], name + ".x", "x." + name, name.upper()]
        return draw.choice(others)

    def configuration(self) -> list[str]:
        return [self.override() for _ in range(self._random.randint(1, 4))]

    def command(self) -> list[str]:
        """A command's words that run nothing: stages show their settings."""
        draw = self._random
        words = [self.override() for _ in range(draw.randint(0, 3))]
        if draw.random() < 0.4:
            words.insert(draw.randint(0, len(words)), draw.choice(FLAGS))
        if draw.random() < 0.2:
            words.insert(draw.randint(0, len(words)), draw.choice(TEXTS))
        if draw.random() < 0.85:
            return [draw.choice(STAGES), *words, *draw.choice([["--cfg", "job"], ["--help"], ["--info", "defaults"]])]
        return [draw.choice(OTHERS), *words]


def try_configuration(words: list[str], limit: float) -> str | None:
    """What is wrong with the answer to a configuration: None where it was taken, or refused in a line, in `limit` s."""
    from saelink import SaelinkError, configure

    started = time.perf_counter()
    try:
        configure(*words)
    except SaelinkError as error:
        if "\n" in str(error) or not str(error).strip():
            return f"no single line: {error!r}"
    except BaseException:
        return traceback.format_exc(limit=-3)
    seconds = time.perf_counter() - started
    return None if seconds < limit else f"took {seconds:.1f} s"


def try_command(words: list[str], limit: float) -> str | None:
    """The same of a command: its exit code is 0, or 1 with one line on standard error."""
    from saelink.cli.app import main

    started = time.perf_counter()
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    code: object = 0
    try:
        sys.argv = ["saelink", *words]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        return traceback.format_exc(limit=-3)
    finally:
        sys.argv = argv
    seconds, lines = time.perf_counter() - started, err.getvalue().strip().splitlines()
    if code == 2 and len(words) == 1:  # the help of a group of commands
        code = 0
    if code not in (0, 1) or (code == 1 and len(lines) != 1):
        return f"exit code {code}, {len(lines)} lines: {err.getvalue()[:300]!r}"
    return None if seconds < limit else f"took {seconds:.1f} s"


def failures(kind: str, seed: str, count: int, limit: float = SECONDS) -> Iterator[Failure]:
    """Of `count` configurations or commands those with another answer, inside an empty folder."""
    draw, attempt = Words(f"{kind} {seed}"), try_configuration if kind == "configurations" else try_command
    for _ in range(count):
        words = draw.configuration() if kind == "configurations" else draw.command()
        what = attempt(words, limit)
        if what is not None:
            yield Failure(words, what)


def _part(task: tuple[str, str, int]) -> list[Failure]:
    os.environ["WANDB_MODE"] = "disabled"
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        found = list(failures(*task))
        left = sorted(path.name for path in Path(folder).iterdir())
        return [*found, Failure(left, "files were left")] if left else found


def fuzz(kind: str, seed: int, count: int, processes: int) -> list[Failure]:
    """The failures of `count`, over several processes."""
    tasks = [(kind, f"{seed} {n}", count // processes + (n < count % processes)) for n in range(processes)]
    if processes == 1:
        return _part(tasks[0])
    with get_context("spawn").Pool(processes) as pool:
        return [failure for part in pool.map(_part, tasks, chunksize=1) for failure in part]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=2000, help="configurations in process")
    parser.add_argument("--commands", type=int, default=200, help="commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    asked = parser.parse_args(arguments)
    result = {}
    for kind, count in (("configurations", asked.count), ("commands", asked.commands)):
        started = time.perf_counter()
        found = fuzz(kind, asked.seed, count, asked.processes)
        for what, n in Counter(failure.what for failure in found).most_common():
            words = next(failure.words for failure in found if failure.what == what)
            print(f"{n} x {what}\n    {words!r}\n")
        result[kind] = {"count": count, "failures": len(found), "seconds": round(time.perf_counter() - started)}
        print(f"{kind}: {count:,}, {len(found)} not answered in one line and {SECONDS:g} s")
    RESULT.write_text(json.dumps({"seed": asked.seed, "processes": asked.processes, **result}, indent=1) + "\n")
    return 1 if any(part["failures"] for part in result.values()) else 0


RESULT = Path(__file__).with_suffix(".json")

if __name__ == "__main__":
    sys.exit(main())
