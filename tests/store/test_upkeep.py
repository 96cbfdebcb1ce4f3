"""Looking after a store: what is listed and removed is the store's own, and nobody is in another's way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from saelink.errors import SaelinkError
from saelink.store.artifact import Artifact, RemovedError
from saelink.store.draft import JOURNAL, Draft
from saelink.store.files import json_bytes, temporary_of
from saelink.store.manifest import MANIFEST
from saelink.store.recipe import Plan
from saelink.store.seal import sealed
from saelink.store.store import Store
from saelink.store.upkeep import MARKER

from helpers.world import Run

KEY = "0123456789ab"


def plan(number: int = 1, stage: str = "stage") -> Plan:
    return Plan(stage, 1, {"number": number}, {}, "a test")


def fill(draft: Draft) -> dict[str, Any]:
    draft.save_bytes("a.txt", b"words of " + str(draft.plan.recipe["number"]).encode())
    draft.save_json("b.json", {"y": 1})
    return {"n": 10}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


# --------------------------------------------------------------------------- what is a store


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder of another program, some of whose names are those of a store's."""
    for name in (
        f"one/{KEY}.partial/a",
        "one/film.partial/b",
        f"one/.{KEY}.7.removed/c",
        f"x/{KEY}/d",
    ):
        path = tmp_path / "other" / name
        path.parent.mkdir(parents=True)
        path.write_text("precious")
    (tmp_path / "other" / "one" / f".{KEY}.lock").touch()
    return tmp_path / "other"


@pytest.mark.parametrize("command", [["gc"], ["rm", KEY], ["ls"]])
def test_a_folder_that_is_no_store_stays_as_it_is(saelink: Run, foreign: Path, command: list[str]) -> None:
    before = names(foreign)
    code, out, err = saelink(*command, "-o", str(foreign), bare=True)
    assert (code, out) == (1, "")
    assert "is no store of saelink" in err and len(err.splitlines()) == 1
    assert names(foreign) == before


def test_in_a_store_among_other_things_only_its_own_names_are_garbage(foreign: Path) -> None:
    store = Store(foreign)
    store.build(plan(), fill)
    removed = {path.name for path, _ in store.collect_garbage()}
    assert removed == {f"{KEY}.partial", f".{KEY}.7.removed"}
    assert (foreign / "one" / "film.partial" / "b").exists()


def test_a_store_that_lost_its_mark_gets_it_back(store: Store) -> None:
    store.build(plan(), fill)
    (store.root / MARKER).unlink()
    with pytest.raises(SaelinkError, match=f"is no store of saelink: there is no {MARKER} in it"):
        store.listing()
    again = Store(store.root)
    assert again.up_to_date(plan()) is not None
    assert len(again.listing()[0]) == 1


def test_no_folder_and_an_empty_one_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "none"):
        store = Store(tmp_path / name)
        assert store.listing() == ([], [])
        assert list(store.collect_garbage()) == []


# --------------------------------------------------------------------------- removals


def half_removed(store: Store, suffix: str = "") -> Path:
    """What a removal that was killed leaves."""
    artifact = store.build(plan(), fill)
    doomed = artifact.path.with_name(f".{artifact.key}{suffix}.4711.removed")
    artifact.path.rename(doomed)
    return doomed


@pytest.mark.parametrize("suffix", ["", ".partial"])
def test_a_removal_under_way_is_left_to_whoever_is_at_it(store: Store, suffix: str) -> None:
    doomed = half_removed(store, suffix)
    with FileLock(doomed.with_name(f".{plan().key}.lock")):
        assert list(store.collect_garbage()) == []
        assert names(doomed) == ["a.txt", "b.json", MANIFEST]
    assert [path for path, _ in store.collect_garbage()] == [doomed]
    assert list((store.root / "stage").iterdir()) == []


def test_what_goes_away_meanwhile_is_no_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once: each looks, then one removes what the other has seen."""
    doomed = half_removed(store)
    for number in (2, 3):
        store.build(plan(number), fill)
    removed: list[Path] = []
    rmtree = shutil.rmtree

    def other_first(folder: Path) -> None:
        if folder not in removed:
            removed.append(folder)
            rmtree(folder)
        rmtree(folder)

    monkeypatch.setattr("saelink.store.locks.shutil.rmtree", other_first)
    assert list(store.collect_garbage()) == []
    assert not doomed.exists()
    monkeypatch.undo()
    rename = Path.rename

    def vanished(path: Path, target: Path) -> Path:
        rmtree(path)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", vanished)
    with pytest.raises(SaelinkError, match="was removed by another process just now"):
        store.remove(plan(2).key)


def test_a_reader_of_a_removed_artifact_is_told_so(store: Store) -> None:
    """At each moment: before its manifest is read, before a file is compared, before it is opened."""
    artifact = store.build(plan(), fill)
    held = store.build(plan(2), fill)
    held.file("b.json")
    for key in (artifact.key, held.key):
        store.remove(key)
    for use in (lambda: artifact.file("a.txt"), lambda: held.json("b.json"), lambda: Artifact(artifact.path)):
        with pytest.raises(RemovedError, match=r"was removed while it was read; the same command as before") as error:
            use()
        assert "damaged" not in str(error.value)
    assert store.find(plan()) is None


def test_it_is_found_or_not_while_it_is_removed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.build(plan(), fill)
    monkeypatch.setattr("saelink.store.artifact.read_manifest", vanishing)
    assert store.find(plan()) is None
    assert store.listing() == ([], [])


def vanishing(folder: Path) -> Any:
    from saelink.store.manifest import read_manifest

    shutil.rmtree(folder)
    return read_manifest(folder)


def test_ls_bears_that_an_artifact_vanishes(saelink: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind its back, after its manifest was read."""
    for number in range(3):
        store.build(plan(number), fill)
    read = Artifact.__init__

    def then_removed(self: Artifact[Any], path: Path) -> None:
        read(self, path)
        if path.name == plan(1).key:
            shutil.rmtree(path)

    monkeypatch.setattr(Artifact, "__init__", then_removed)
    code, out, err = saelink("ls", bare=True)
    assert (code, err) == (0, "")
    assert all(plan(number).key in out for number in (0, 2))


def test_nothing_is_left_of_killed_writers(store: Store) -> None:
    """Temporary files, wherever they were written: of the dead they go, of the living they stay."""
    store.build(plan(), fill)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, kept = [], []
    for folder in (store.root, store.root / "sweeps" / "sweep1" / "jobs", store.root / "wandb" / "published" / "p"):
        folder.mkdir(parents=True, exist_ok=True)
        mine = temporary_of(folder / "x.json")
        theirs = mine.with_name(mine.name.replace(f".{os.getpid()}.", f".{dead.pid}."))
        elsewhere = mine.with_name(f".x.json.another-host.{dead.pid}.1.tmp")
        other = folder / ".unrelated.tmp"
        for path in (mine, theirs, elsewhere, other):
            path.touch()
        left.append(theirs)
        kept += [mine, elsewhere, other]
    list(store.collect_garbage())
    assert not [path for path in left if path.exists()]
    assert all(path.exists() for path in kept)


# --------------------------------------------------------------------------- names and links


@pytest.mark.parametrize("name", ["../../precious", "/etc/hostname", "..", ".", "", "a/../b.json", "x\x1b[2J"])
def test_a_name_in_a_manifest_leads_nowhere_else(store: Store, name: str) -> None:
    """Also with a right checksum: a store may come from elsewhere."""
    (store.root.parent / "precious").write_text("{}")
    artifact = store.build(plan(), fill)
    entries = json.loads((artifact.path / MANIFEST).read_bytes())
    entries["files"][name] = entries["files"].pop("b.json")
    del entries["sha256"]
    (artifact.path / MANIFEST).write_bytes(json_bytes(sealed(entries)))
    with pytest.raises(SaelinkError, match="has files of another form: the stage artifact is damaged"):
        store.find(plan())


WRONG = {"facts": [], "recipe": "x", "inputs": {"a": 1}, "version": "1", "provenance": {}, "about": None, "stage": 1}


@pytest.mark.parametrize("entry", WRONG)
def test_an_entry_of_another_form_is_named(saelink: Run, store: Store, entry: str) -> None:
    artifact = store.build(plan(), fill)
    store.build(plan(2), fill)
    entries = json.loads((artifact.path / MANIFEST).read_bytes())
    entries[entry] = WRONG[entry]
    del entries["sha256"]
    (artifact.path / MANIFEST).write_bytes(json_bytes(sealed(entries)))
    with pytest.raises(SaelinkError, match=f"has {entry} of another form"):
        store.find(plan())
    code, out, err = saelink("ls", bare=True)
    assert (code, err) == (0, "") and f"damaged: `saelink rm {artifact.key}` removes it" in out and plan(2).key in out


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
@pytest.mark.parametrize("name", ["a.txt", MANIFEST])
def test_a_file_of_an_artifact_is_a_file_of_its_own(store: Store, kind: str, name: str) -> None:
    artifact = store.build(plan(), fill)
    path = artifact.path / name
    path.rename(store.root.parent / "elsewhere")
    if kind == "link":
        path.symlink_to(store.root.parent / "elsewhere")
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)  # a reader would wait for ever
    with pytest.raises(SaelinkError, match="is no file of its own: the stage artifact is damaged"):
        Artifact(artifact.path).file(name)


@pytest.mark.parametrize("name", [JOURNAL, MANIFEST, "a.txt"])
def test_unfinished_work_is_taken_from_no_pipe_or_link(store: Store, name: str) -> None:
    with store.drafts([plan()], resumable=True) as (draft,):
        fill(draft)
    path = draft.folder / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with store.drafts([plan()], resumable=True) as (draft,):
        assert ("a.txt" in draft) == (name == MANIFEST)


def test_gc_and_rm_follow_no_links(store: Store) -> None:
    elsewhere = Store(store.root.parent / "elsewhere")
    kept = [elsewhere.build(plan(number, "linked"), fill).path for number in (1, 2)]
    with elsewhere.drafts([plan(3, "linked")], resumable=True) as (draft,):
        fill(draft)
    store.build(plan(), fill)
    (store.root / "linked").symlink_to(elsewhere.root / "linked")
    (store.root / "stage" / f"{KEY}.partial").symlink_to(kept[1])
    with pytest.raises(SaelinkError, match=r"linked is a link; remove .* in the folder that it leads to"):
        store.remove(kept[0].name)
    assert [path.name for path, _ in store.collect_garbage()] == [f"{KEY}.partial"]
    assert draft.folder.exists() and all(Artifact(path).file("a.txt") for path in kept)
    link = store.root / "stage" / KEY
    link.symlink_to(kept[0])
    assert store.remove(KEY) == [link]
    assert not link.is_symlink() and kept[0].exists()


# --------------------------------------------------------------------------- unfinished work of another artifact


def test_the_unfinished_work_of_another_artifact_is_not_taken_over(store: Store) -> None:
    """Its folder was renamed, say: the journal fits the files, and both are another recipe's."""
    with store.drafts([plan(2)], resumable=True) as (draft,):
        fill(draft)
    draft.folder.rename(draft.folder.with_name(f"{plan().key}.partial"))
    with store.drafts([plan()], resumable=True) as (draft,):
        assert "a.txt" not in draft and "b.json" not in draft
        artifact = store.commit(draft, fill(draft))
    assert artifact.file("a.txt").read_bytes() == b"words of 1"


def test_the_manifest_of_another_artifact_notes_nothing(store: Store) -> None:
    other = store.build(plan(2), fill)
    shutil.copytree(other.path, other.path.with_name(f"{plan().key}.partial"))
    with store.drafts([plan()], resumable=True) as (draft,):
        assert "a.txt" not in draft


def test_a_failed_build_leaves_no_folder_behind(store: Store) -> None:
    """Of a stage that starts afresh nothing, of one that resumes what it finished."""

    def fails(draft: Draft) -> dict[str, Any]:
        fill(draft)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.build(plan(), fails)
    assert names(store.root) == [MARKER, "stage"]
    for work in (lambda _: None, fill):
        with suppress(KeyboardInterrupt), store.drafts([plan()], resumable=True) as (draft,):
            work(draft)
            raise KeyboardInterrupt
        assert draft.folder.exists() == (work is fill)


def test_a_worker_that_looks_just_before_the_end_makes_nothing_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other has written its manifest and is about to rename: what is done is still noted."""
    other, rename, given = Store(store.root), Path.rename, list[str]()
    with store.drafts([plan()], resumable=True, shared=True) as (one,):
        with other.drafts([plan()], resumable=True, shared=True) as (two,):
            facts = fill(one)

            def looked_first(path: Path, target: Path) -> Path:
                if path == one.folder:
                    given.extend(name for name, _ in islice(other.claims([two], ["a.txt", "b.json"]), 1))
                return rename(path, target)

            monkeypatch.setattr(Path, "rename", looked_first)
            artifact = store.finish(one, lambda: facts)
            assert given == []
            assert other.finish(two, lambda: facts).manifest == artifact.manifest
    assert names(artifact.path) == ["a.txt", "b.json", MANIFEST]


def test_gc_takes_what_a_worker_left_in_a_whole_artifact(store: Store) -> None:
    """It was killed between the rename and the clearing up."""
    artifact = store.build(plan(), fill)
    for name in (JOURNAL, ".a.txt.claim"):
        (artifact.path / name).touch()
    list(store.collect_garbage())
    assert names(artifact.path) == ["a.txt", "b.json", MANIFEST]


def test_what_a_running_worker_fills_is_not_removed(store: Store) -> None:
    other = Store(store.root)
    with store.drafts([plan()], resumable=True, shared=True) as (draft,):
        draft.save_bytes("a.txt", b"words")
        assert list(other.collect_garbage()) == []
        with pytest.raises(SaelinkError, match="is being made by another process right now"):
            other.remove(plan().key)
        assert (draft.folder / "a.txt").read_bytes() == b"words"
    assert [folder for folder, _ in other.collect_garbage()] == [draft.folder]
