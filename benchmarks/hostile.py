"""Hostile files: each is read where a stranger's file would be, and nothing of it runs, is fetched or writes outside.

A case makes one in a folder of its own and uses it in a forked process, which is watched (`watched.py`). It has to end
well or with one line.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import hostile_files, hostile_texts
from benchmarks.faulty import Child
from benchmarks.hostile_files import Trap
from benchmarks.watched import state_of, watching

COUNT = 300

MAKERS = {
    "pickles as SAEs": hostile_files.pickles_as_saes,
    "pickles as models": hostile_files.pickles_as_models,
    "headers": hostile_files.headers,
    "code beside models": hostile_files.code_beside_models,
    "chat templates": hostile_files.chat_templates,
    "YAML": hostile_files.yaml_files,
    "data files": hostile_files.data_files,
    "formulas": hostile_texts.cells,
    "HTML": hostile_texts.pages,
    "terminal": hostile_texts.terminals,
    "traversal": hostile_texts.traversals,
    "links": hostile_texts.links,
    "indexes": hostile_texts.indexes,
}
"""By kind what makes one and gives its use."""


class Outcome(NamedTuple):
    """How the process that used a hostile file ended."""

    code: int
    lines: list[str]
    events: list[str]


@cache
def _prepared() -> None:
    """What the readers import: before the fork, and before anything is watched."""
    import datasets  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import torch
    import transformers

    import saelink.api
    import saelink.model.load
    import saelink.saes.formats
    import saelink.share.export  # noqa: F401
    from saelink import configure
    from saelink.model.remarks import quiet

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    quiet()
    configure()


def hostile_case(case: int, folder: Path) -> str:
    """One file of the kind whose turn it is. Raises AssertionError for what it brought about."""
    _prepared()
    kind, make = list(MAKERS.items())[case % len(MAKERS)]
    chance = random.Random(f"hostile {case}")
    lair, own, outside = (folder / name for name in ("lair", "own", "outside"))
    for path in (lair, own, outside):
        path.mkdir()
    (outside / "precious.txt").write_text("precious")
    use = make(chance, Trap(lair, own, outside))
    before = state_of(outside)
    ended = _used(use, [own], lair)
    assert state_of(outside) == before, f"{kind}: something was written outside"
    assert not ended.events, f"{kind}: {ended.events[:3]}"
    assert ended.code in (0, 1), f"{kind}: exit code {ended.code}: {ended.lines}"
    assert len(ended.lines) == ended.code, f"{kind}: {ended.lines}"
    assert all(line.isprintable() for line in ended.lines), f"{kind}: {ended.lines}"
    return f"{kind}: {'refused' if ended.code else 'harmless'}"


def _used(use: Callable[[], Any], allowed: list[Path], lair: Path) -> Outcome:
    """In a forked process; its line as the command line prints it."""

    def work() -> dict[str, Any]:
        import os
        import tempfile

        from saelink.cli.launch import one_line
        from saelink.errors import printable

        tempfile.tempdir = str(allowed[0])
        os.environ |= {"HOME": str(allowed[0]), "HF_HOME": str(allowed[0] / "hf")}
        os.chdir(lair)
        lines: list[str] = []

        def guarded() -> None:
            try:
                use()
            except Exception as error:
                lines.append(printable(one_line(error)))

        return {"events": watching(guarded, allowed, lair), "lines": lines}

    ended = Child(work).join()
    if ended.told is None:
        return Outcome(ended.code or 70, ended.lines[-3:], [])
    return Outcome(len(ended.told["lines"]), list(ended.told["lines"]), list(ended.told["events"]))
