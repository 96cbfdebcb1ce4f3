"""Flips, cuts and swaps over every kind of file that saelink writes: what is used is what was written."""

from __future__ import annotations

import atexit
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.faulty import ROWS, SHARDS, SUMS, chain
from saelink.errors import SaelinkError
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.recipe import Plan
from saelink.store.store import Store

DAMAGES = ("flip", "byte", "cut", "grow", "swap")


@dataclass(frozen=True)
class Kind:
    """A kind of file."""

    name: str
    paths: list[Path]
    used: Callable[[Path], Any]
    """What is read where this file is needed; raises ValueError where damage is found."""


@cache
def specimens() -> list[Kind]:
    """One folder for all cases: each damages a file, looks, and puts it back."""
    folder = Path(tempfile.mkdtemp(prefix="saelink-damage-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    root = folder / "outputs"
    store = Store(root)
    chain(root)
    more = [store.build(Plan("rows", 1, {"seed": n}, {}, ""), _fill(n)) for n in range(3)]
    found = [store.folder(ROWS), store.folder(SUMS), *(artifact.path for artifact in more)]
    return [
        Kind("manifest", [path / "manifest.json" for path in found], lambda path: Artifact(path.parent).manifest),
        Kind("file", [path for each in found for path in each.iterdir() if path.name != "manifest.json"], _file),
        Kind("artifact's folder", found, lambda path: Artifact(path).manifest),
        *_unfinished(folder),
        *_noted(store),
        *_exported(folder),
    ]


def _fill(number: int) -> Callable[[Draft], dict[str, Any]]:
    def fill(draft: Draft) -> dict[str, Any]:
        for name in SHARDS:
            draft.save_bytes(name, f"{name} {number}".encode() * 30)
        draft.save_json("facts.json", {"number": number, "shares": [0.25, 1e-9 * number]})
        return {"active_sum": 1.5 * (number + 1), "scales": [number, 2.0]}

    return fill


def _file(path: Path) -> bytes:
    return Artifact(path.parent).file(path.name).read_bytes()


def _unfinished(folder: Path) -> list[Kind]:
    """Journals, shards and manifests of work that was broken off: what is taken over has the bytes it had."""
    store = Store(folder / "unfinished")
    plans = [Plan("rows", 1, {"seed": n}, {}, "") for n in range(3)]
    for number, plan in enumerate(plans):
        with store.drafts([plan], resumable=True) as (draft,):
            _fill(number)(draft)
    by_folder = {store.root / "rows" / f"{plan.key}.partial": plan for plan in plans}
    written = {path: path.read_bytes() for each in by_folder for path in each.iterdir()}

    def taken_over(path: Path) -> Any:
        partial = path if path in by_folder else path.parent
        draft = Draft(by_folder[partial], partial, resumable=True)
        names = [name for name in (*SHARDS, "facts.json") if name in draft]
        wrong = [name for name in names if (partial / name).read_bytes() != written[partial / name]]
        assert not wrong, f"taken over with other bytes: {wrong}"
        if len(names) == 4:
            return "all"
        raise ValueError("found")

    journals = [path for path in written if path.suffix == ".jsonl"]
    shards = [path for path in written if path.suffix != ".jsonl"]
    kinds = [("journal", journals), ("unfinished file", shards), ("unfinished folder", list(by_folder))]
    return [Kind(name, paths, taken_over) for name, paths in kinds]


def _noted(store: Store) -> list[Kind]:
    """What sweeps and W&B note."""
    from saelink.config.schema import WandbConfig
    from saelink.store.files import json_bytes, write_durably
    from saelink.store.seal import sealed
    from saelink.tracking.project import Project
    from saelink.tracking.sweep import failures, record_failure, sweep_folder

    for job in range(4):
        record_failure(store, "sweep2", job, f"layer={job}: something else")
    lines = {failure["job"]: failure for failure in failures(store, "sweep2").notes}

    def line(_: Path) -> Any:
        found = {failure["job"]: failure for failure in failures(store, "sweep2").notes}
        wrong = [job for job, failure in found.items() if failure != lines[job]]
        assert not wrong, f"notes with other content: {wrong}"
        if len(found) == len(lines):
            return "all"
        raise ValueError("found")

    project = Project(WandbConfig(project="p"), store)
    folder = store.root / "wandb" / "published" / "_p"
    folder.mkdir(parents=True)
    for run in ("a", "b", "c"):
        note = {
            "run": run,
            "content": {"train": run * 12, "group": None},
            "online": False,
            "folder": f"offline-run-{run}",
        }
        write_durably(folder / f"{run}.json", json_bytes(sealed(note)))
    notes = {run: project.noted(run) for run in ("a", "b", "c")}
    assert all(notes.values())

    def noted(_: Path) -> Any:
        for run, note in notes.items():
            found = project.noted(run)
            assert found in ({}, note), f"the note of {run} says something else"
            if not found:
                raise ValueError("found")
        return "all"

    jobs = sorted((sweep_folder(store, "sweep2") / "failed").iterdir())
    return [Kind("sweep's note", jobs, line), Kind("W&B note", sorted(folder.iterdir()), noted)]


def _exported(folder: Path) -> list[Kind]:
    """Connectors as others get them."""
    import hashlib

    import torch
    from safetensors.torch import save

    from saelink.connectors.exported import CONFIG_FILE, WEIGHTS_FILE, ExportedConnector, exported_config
    from saelink.connectors.linear import LinearConnector

    paths: list[Path] = []
    for number in range(3):
        place = folder / f"export{number}"
        place.mkdir()
        torch.manual_seed(number)
        connector = LinearConnector(LinearConnector.Settings(), 6, torch.arange(5))
        with torch.no_grad():
            for tensor in connector.parameters():
                tensor.normal_()
        weights = save(connector.state_dict())
        settings = {"name": "linear", "bias": False, "init": "random"}
        said = {"connector": settings, "sources": [{"hook_name": "a", "d": 6, "scale": 0.5}]}
        said |= {"target": {"hook_name": "b", "d": 5, "scale": 2.0 + number}}
        (place / WEIGHTS_FILE).write_bytes(weights)
        (place / CONFIG_FILE).write_text(
            json.dumps(exported_config(said, hashlib.sha256(weights).hexdigest()), indent=1)
        )
        paths += [place / CONFIG_FILE, place / WEIGHTS_FILE]

    def loaded(path: Path) -> Any:
        found = ExportedConnector(path.parent)
        return found.config, found.weight.tolist(), found.target_scale

    return [
        Kind("export's cfg.json", [path for path in paths if path.name == CONFIG_FILE], loaded),
        Kind("export's weights", [path for path in paths if path.name == WEIGHTS_FILE], loaded),
    ]


def _damage(chance: random.Random, how: str, path: Path) -> None:
    data = bytearray(path.read_bytes())
    place = chance.randrange(len(data))
    if how == "flip":
        data[place] ^= 1 << chance.randrange(8)
    elif how == "byte":
        data[place] = chance.randrange(256)
    elif how == "cut":
        del data[place:]
    else:
        data += data[:1]
    path.write_bytes(data)


FOUND = object()


def _looked_at(kind: Kind, path: Path) -> Any:
    """What is used of a damaged file, or FOUND. Raises whatever is no line for a user."""
    try:
        return kind.used(path)
    except ValueError as error:
        if isinstance(error, SaelinkError) and "\n" not in str(error):
            return FOUND
        if str(error) == "found":
            return FOUND
        raise


def damaged_case(case: int, folder: Path) -> str:
    chance = random.Random(f"damage {case}")
    kind = specimens()[case % len(specimens())]
    path = chance.choice(kind.paths)
    how = "swap" if path.is_dir() else chance.choice(DAMAGES)
    others = [each for each in kind.paths if each != path and (path.is_dir() or each.read_bytes() != path.read_bytes())]
    other = chance.choice([each for each in others if path.suffix == each.suffix] or others)
    before = {each: kind.used(each) for each in (path, other)}
    aside = folder / "aside"
    swapped = [path, other] if how == "swap" else [path]
    copies = [] if path.is_dir() else [each.read_bytes() for each in swapped]
    if how == "swap":
        path.rename(aside)
        other.rename(path)
        aside.rename(other)
    else:
        _damage(chance, how, path)
    try:
        for each in swapped:
            found = _looked_at(kind, each)
            if found is not FOUND:
                assert found == before[each], f"{kind.name}, {how} of {each}: used with other content"
                assert how != "swap", f"{kind.name}, {how} of {each}: not seen"
                return f"{kind.name}: says the same"
    finally:
        if path.is_dir():
            path.rename(aside)
            other.rename(path)
            aside.rename(other)
        for each, data in zip(swapped, copies, strict=False):
            each.write_bytes(data)
    return f"{kind.name}: found"
