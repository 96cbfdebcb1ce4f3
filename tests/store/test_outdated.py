"""`saelink gc --outdated`: artifacts of earlier versions and what was made from them, nothing else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from saelink.cli.versions import stage_versions, why_old
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.outdated import outdated, remove_outdated
from saelink.store.recipe import Plan
from saelink.store.store import Store

from helpers.world import Run

VERSIONS = {"cache": 3, "encode": 2, "train": 6, "evaluate": 5, "model": 3, "examples": 3}


def fill(draft: Draft) -> dict[str, Any]:
    draft.save_bytes("a.txt", b"words")
    return {}


def made(store: Store, stage: str, version: int, recipe: dict[str, Any] | None = None, **inputs: str) -> Artifact[Any]:
    return store.build(Plan(stage, version, {"n": version, **(recipe or {})}, inputs, f"{stage} of a test"), fill)


def found(store: Store) -> dict[str, str]:
    return {each.key: each.why for each in outdated(store, lambda artifact: why_old(artifact, VERSIONS))}


@pytest.fixture
def chain(store: Store) -> dict[str, Artifact[Any]]:
    """A model, an old and a new cache of it, what was made from each, and a stage that nobody knows."""
    model = made(store, "model", 3)
    old, new = made(store, "cache", 2, model=model.key), made(store, "cache", 3, model=model.key)
    encoded = made(store, "encode", 2, acts=old.key, sae="folder:1")
    fit = made(store, "train", 6, source0=encoded.key)
    return {
        "model": model, "old": old, "new": new, "encoded": encoded, "fit": fit,
        "good": made(store, "encode", 2, acts=new.key, sae="folder:1"),
        "started": made(store, "train", 6, {"connector": {"init": fit.key}}, source0="other"),
        "later": made(store, "cache", 4, model=model.key),
        "foreign": made(store, "mine", 1),
    }  # fmt: skip


def test_an_earlier_version_takes_with_it_what_was_made_from_it(store: Store, chain: dict[str, Artifact[Any]]) -> None:
    assert found(store) == {
        chain["old"].key: "version 2, now 3",
        chain["encoded"].key: f"made from cache {chain['old'].key}",
        chain["fit"].key: f"made from encode {chain['encoded'].key}",
        chain["started"].key: f"made from train {chain['fit'].key}",
    }


def test_users_go_before_what_they_were_made_from(store: Store, chain: dict[str, Artifact[Any]]) -> None:
    order = list(found(store))
    assert order == [chain[name].key for name in ("started", "fit", "encoded", "old")]


@pytest.mark.parametrize(
    ("stage", "recipe", "inputs", "why"),
    [
        ("train", {"gram": 0, "lasso": 2}, {}, "gram of version 0, now 1"),
        ("train", {"gram": 1, "lasso": 1}, {}, "lasso of version 1, now 2"),
        ("encode", {}, {"sae": "hub:a/b@0/x read 1"}, "SAE files read by version 1, now 2"),
    ],
)
def test_versions_inside_a_recipe_count(
    store: Store, stage: str, recipe: dict[str, Any], inputs: dict[str, str], why: str
) -> None:
    artifact = made(store, stage, VERSIONS[stage], recipe, **inputs)
    assert found(store) == {artifact.key: why}


def test_every_stage_of_the_program_has_its_version() -> None:
    versions = stage_versions()
    assert {"model", "tokens", "cache", "encode", "gram", "products", "train", "report", "graph", "experiment"} <= {
        *versions
    }
    assert all(isinstance(version, int) and version >= 1 for version in versions.values())


def test_what_is_held_or_behind_a_link_stays(store: Store, chain: dict[str, Artifact[Any]], tmp_path: Path) -> None:
    held = chain["encoded"]
    elsewhere = Store(tmp_path / "elsewhere")
    theirs = made(elsewhere, "examples", 1)
    (store.root / "examples").symlink_to(elsewhere.root / "examples")
    listed = outdated(store, lambda artifact: why_old(artifact, VERSIONS))
    assert theirs.key not in {each.key for each in listed}
    lock = FileLock(held.path.with_name(f".{held.key}.lock"))
    with lock.acquire():
        code = (
            "import sys; from pathlib import Path; from saelink.store.locks import delete_unless_held;"
            "print(delete_unless_held(Path(sys.argv[1]), sys.argv[2]))"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, str(held.path), held.key], capture_output=True, text=True, check=True
        )
        assert other.stdout.strip() == "False"
    assert held.path.exists() and theirs.path.exists()
    gone = {each.key for each, removed in remove_outdated(listed) if removed}
    assert gone == {chain[name].key for name in ("started", "fit", "encoded", "old")}
    assert {a.key for a in store.artifacts()} == {
        chain[name].key for name in ("model", "new", "good", "later", "foreign")
    } | {theirs.key}


def make_old(root: Path) -> str:
    """A real store's cache with an artifact of version 1 beside it."""
    store = Store(root)
    return made(store, "cache", 1).key


def test_the_command_lists_and_needs_a_yes(saelink: Run, tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    key = make_old(root)
    made(Store(root), "mine", 1)
    code, out, err = saelink("gc", "--outdated", "-o", str(root), bare=True)
    assert code == 1 and "--yes removes what is listed" in err and len(err.splitlines()) == 1
    assert key in out and "version 1, now" in out and "1 outdated artifact in" in out
    assert (root / "cache" / key).exists()
    code, out, err = saelink("gc", "--outdated", "--yes", "-o", str(root), bare=True)
    assert (code, err) == (0, "") and f"removed {root / 'cache' / key}" in out
    assert not (root / "cache" / key).exists() and len(list((root / "mine").glob("*/manifest.json"))) == 1
    code, out, _ = saelink("gc", "--outdated", "-o", str(root), bare=True)
    assert code == 0 and "no outdated artifacts" in out


@pytest.mark.parametrize(("answer", "stays"), [(b"n\n", True), (b"y\n", False)])
def test_whoever_sits_at_the_terminal_is_asked(tmp_path: Path, answer: bytes, stays: bool) -> None:
    root = tmp_path / "outputs"
    key = make_old(root)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "saelink", "gc", "--outdated", "-o", str(root)]
    process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    os.close(theirs)
    os.write(ours, answer)
    out, err = process.communicate(timeout=120)
    os.close(ours)
    assert process.returncode == 0, err
    assert b"remove? [y/N]" in out and (root / "cache" / key).exists() == stays
