"""Configurations and commands with anything in them: each is accepted or refused in one line, in under two seconds.

    python -m benchmarks.fuzzed_settings                         # 2,000 configurations, 200 commands: 2 minutes
    python -m benchmarks.fuzzed_settings --count 100000 --commands 2000    # an hour; goes on where it was

Words are drawn from every setting there is, misspelt ones among them, with every sign that may stand before one and
with values from numbers of any size to brackets, quotes, control characters and other alphabets. The seed makes them
again; what fails is printed with its words. The result goes to benchmarks/fuzzed_settings.json after each part.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import io
import json
import os
import random
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SECONDS = 2.0
"""No answer takes longer."""

PART = 200
"""So many are drawn with one seed, and the result is written after them."""

SHOWN = 20
"""Failures that are kept in the result."""

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


def told(trace: str) -> str:
    """A traceback without the folders of this machine: files by their place in a package."""
    return re.sub(r'File "[^"]*/(?:site-packages|lib/python[\d.]+|(?=saelink/|benchmarks/))/?', 'File "', trace)


def try_configuration(words: list[str], limit: float) -> str | None:
    """What is wrong with the answer to a configuration: None where it was taken, or refused in a line, in `limit` s."""
    from saelink import SaelinkError, configure

    watch = Watch(limit)
    try:
        configure(*words)
    except SaelinkError as error:
        if "\n" in str(error) or not str(error).strip():
            return f"no single line: {error!r}"
    except BaseException:
        return told(traceback.format_exc(limit=-3))
    return watch.late()


def try_command(words: list[str], limit: float) -> str | None:
    """The same of a command: its exit code is 0, or 1 with one line on standard error."""
    from saelink.cli.app import main

    watch = Watch(limit)
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    code: object = 0
    try:
        sys.argv = ["saelink", *words]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        return told(traceback.format_exc(limit=-3))
    finally:
        sys.argv = argv
    lines = err.getvalue().strip().splitlines()
    if code == 2 and len(words) == 1:  # the help of a group of commands
        code = 0
    if code not in (0, 1) or (code == 1 and len(lines) != 1):
        return f"exit code {code}, {len(lines)} lines: {err.getvalue()[:300]!r}"
    return watch.late()


class Watch:
    """Who takes longer than `limit` seconds of this process, or ten times that in all, waiting for anything included.

    Where the system tells for how long the process was ready and others had the processor, that does not count.
    """

    def __init__(self, limit: float):
        self._limit, self._own, self._all = limit, time.process_time(), self._elapsed()

    @staticmethod
    def _elapsed() -> float:
        try:
            waited = int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError):
            waited = 0.0
        return time.perf_counter() - waited

    def late(self) -> str | None:
        own, elapsed = time.process_time() - self._own, self._elapsed() - self._all
        late = own >= self._limit or elapsed >= 10 * self._limit
        return f"took {own:.1f} s, {elapsed:.1f} s in all" if late else None


def failures(kind: str, seed: str, count: int, limit: float = SECONDS) -> Iterator[Failure]:
    """Of `count` configurations or commands those with another answer, inside an empty folder."""
    draw, attempt = Words(f"{kind} {seed}"), try_configuration if kind == "configurations" else try_command
    for _ in range(count):
        words = draw.configuration() if kind == "configurations" else draw.command()
        what = attempt(words, limit)
        if what is not None:
            yield Failure(words, what)


def lighter() -> None:
    """Let Hydra do less of what it does again for each configuration: the answers stay the same.

    It copies its whole store of schemas each time, which it then only reads, and parses each file of conf/ anew. The
    collector of garbage walks through all of torch; `fuzz` calls it from time to time.
    """
    from hydra._internal.core_plugins.file_config_source import FileConfigSource
    from hydra.core.config_store import ConfigStore

    ConfigStore.__deepcopy__ = lambda self, memo: self  # pyright: ignore
    load, known = FileConfigSource.load_config, {}

    def load_config(self: FileConfigSource, config_path: str) -> Any:
        file = Path(self.path, self._normalize_file_name(config_path))
        stat = file.stat() if file.is_file() else None
        key = (str(file), stat and (stat.st_mtime_ns, stat.st_ino), self.provider)
        if stat is None:
            return load(self, config_path)
        if key not in known:
            known[key] = load(self, config_path)
        return copy.deepcopy(known[key])

    FileConfigSource.load_config = load_config
    gc.collect()
    gc.freeze()
    gc.disable()


def fuzz(kind: str, seed: int, known: dict[str, Any], count: int, save: Callable[[dict[str, Any]], None]) -> None:
    """Go on from `known` to `count`, in parts that each have a seed; `save` gets what is known after each part."""
    done = {"count": 0, "failures": 0, "seconds": 0.0, "examples": []} | known
    while done["count"] < count:
        started = time.process_time()
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            found = list(failures(kind, f"{seed} {done['count'] // PART}", PART))
            left = sorted(path.name for path in Path(folder).iterdir())
        found += [Failure(left, "files were left")] if left else []
        gc.collect()
        done["count"] += PART
        done["failures"] += len(found)
        done["seconds"] = round(done["seconds"] + time.process_time() - started, 1)
        done["examples"] = [*done["examples"], *([each.words, each.what] for each in found)][:SHOWN]
        save(done)
        for each in found:
            print(f"{each.what}\n    {each.words!r}\n", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=2000, help="configurations in process")
    parser.add_argument("--commands", type=int, default=200, help="commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, default=RESULT)
    asked = parser.parse_args(arguments)
    result: dict[str, Any] = {"seed": asked.seed}
    if asked.result.exists():
        before = json.loads(asked.result.read_bytes())
        result = before if before["seed"] == asked.seed else result
    os.environ["WANDB_MODE"] = "disabled"
    Words("warm").configuration()
    try_configuration([], SECONDS)
    lighter()
    failed = 0
    for kind, count in (("configurations", asked.count), ("commands", asked.commands)):

        def save(figures: dict[str, Any], kind: str = kind) -> None:
            result[kind] = figures
            asked.result.write_text(json.dumps(result, indent=1) + "\n")
            print(f"{kind}: {figures['count']:,}, {figures['failures']} failed", flush=True)

        fuzz(kind, asked.seed, result.get(kind, {}), count, save)
        failed += result.get(kind, {}).get("failures", 0)
    return 1 if failed else 0


RESULT = Path(__file__).with_suffix(".json")

if __name__ == "__main__":
    sys.exit(main())
