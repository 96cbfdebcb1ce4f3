"""The store: whole artifacts or none, whatever is killed when; two processes; housekeeping."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from saelink.errors import SaelinkError
from saelink.store.draft import Draft
from saelink.store.files import write_durably
from saelink.store.recipe import Plan
from saelink.store.store import Store


def plan(number: float = 1, **inputs: str) -> Plan:
    return Plan("stage", 1, {"number": number}, inputs, "a test")


def fill(draft: Draft) -> dict[str, int]:
    draft.save_tensors("a.safetensors", {"x": torch.arange(10)})
    draft.save_json("b.json", {"y": 1})
    return {"n": 10}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "outputs")


def test_a_key_depends_on_all_that_counts_and_nothing_else() -> None:
    base = plan()
    same = Plan("stage", 1, {"number": 1}, {}, "other words")
    assert base.key == same.key
    assert len(base.key) == 12
    others = [plan(2), plan(a="k"), Plan("other", 1, base.recipe, {}, ""), Plan("stage", 2, base.recipe, {}, "")]
    assert len({base.key, *(other.key for other in others)}) == 5


def test_a_key_takes_no_nan_and_no_object() -> None:
    with pytest.raises(ValueError, match="JSON"):
        _ = plan(float("nan")).key


def test_build_makes_it_once(store: Store) -> None:
    calls: list[int] = []
    store.build(plan(), lambda draft: calls.append(1) or fill(draft))
    artifact = store.build(plan(), lambda draft: calls.append(1) or fill(draft))
    assert len(calls) == 1
    assert artifact.facts == {"n": 10}
    assert artifact.files == ["a.safetensors", "b.json"]
    assert torch.equal(artifact.tensors("a.safetensors")["x"], torch.arange(10))
    assert sorted(path.name for path in artifact.path.iterdir()) == ["a.safetensors", "b.json", "manifest.json"]
    assert (artifact.path / "a.safetensors").stat().st_mode & 0o777 == 0o644
    manifest = artifact.manifest
    assert manifest["recipe"] == {"number": 1}
    assert manifest["provenance"]["packages"]["torch"]


def test_a_failed_build_leaves_no_artifact(store: Store) -> None:
    def fails(draft: Draft) -> dict[str, int]:
        fill(draft)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.build(plan(), fails)
    assert store.find(plan()) is None
    assert store.artifacts() == []
    assert store.build(plan(), fill).facts == {"n": 10}


def test_what_is_not_resumable_starts_afresh(store: Store) -> None:
    folder = store.root / "stage" / f"{plan().key}.partial"
    folder.mkdir(parents=True)
    (folder / "old.bin").write_bytes(b"of another try")
    assert not (store.build(plan(), fill).path / "old.bin").exists()


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_durably(path, b"new")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("change", ["flip", "truncate", "remove", "grow"])
def test_every_damage_is_seen_before_use(store: Store, change: str) -> None:
    path = store.build(plan(), fill).path / "a.safetensors"
    data = bytearray(path.read_bytes())
    if change == "remove":
        path.unlink()
    else:
        data[-1] ^= change == "flip"
        path.write_bytes({"flip": data, "truncate": data[:-1], "grow": data + b"x"}[change])
    artifact = store.find(plan())
    assert artifact is not None
    with pytest.raises(SaelinkError, match=r"a\.safetensors .* saelink rm|a\.safetensors .*`saelink rm"):
        artifact.tensors("a.safetensors")


def test_a_file_is_hashed_once_per_process(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = store.build(plan(), fill)
    artifact.file("b.json")
    monkeypatch.setattr("saelink.store.artifact.file_sha256", lambda _: pytest.fail("hashed twice"))
    artifact.file("b.json")


# --------------------------------------------------------------------------- processes


def _slow_build(root: Path, started: Path, seconds: float) -> None:
    def make(draft: Draft) -> dict[str, int]:
        with started.open("a") as file:
            file.write("x")
        facts = fill(draft)
        time.sleep(seconds)
        return facts

    Store(root).build(plan(), make)


def test_two_processes_make_it_once(store: Store, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started = tmp_path / "started"
    processes = [context.Process(target=_slow_build, args=(store.root, started, 1.0)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)  # a machine that does other things takes minutes to import torch
        assert process.exitcode == 0
    assert started.read_text() == "x"
    assert len(store.artifacts()) == 1
    assert not list(store.root.glob("*/*.partial"))


def test_kill_9_leaves_nothing_that_looks_finished_and_frees_the_lock(store: Store, tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=_slow_build, args=(store.root, tmp_path / "started", 60.0)
    )
    process.start()
    partial = store.root / "stage" / f"{plan().key}.partial"
    deadline = time.monotonic() + 60
    while not (partial / "b.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(store.collect_garbage()) == [], "work in progress is no garbage"
    with pytest.raises(SaelinkError, match="another process"):
        store.remove(plan().key)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert store.artifacts() == []
    assert store.find(plan()) is None
    assert [path for path, _ in store.collect_garbage()] == [partial]
    assert not partial.exists()
    assert store.build(plan(), fill).facts == {"n": 10}


def test_without_locks_the_second_accepts_the_first(store: Store) -> None:
    """Where locks don't work both fill a folder; the rename of the slower one finds a whole artifact."""

    def overtaken(draft: Draft) -> dict[str, int]:
        facts = fill(draft)
        other = Draft(plan(), draft.folder.with_name("elsewhere.partial"), resumable=False)
        other.commit(store.folder(plan()), fill(other), "cpu")
        return facts

    assert store.build(plan(), overtaken).facts == {"n": 10}
    assert not list(store.root.glob("*/*.partial"))


# --------------------------------------------------------------------------- housekeeping


def test_get_and_remove_take_the_first_digits(store: Store) -> None:
    one, two = store.build(plan(1), fill), store.build(plan(2), fill)
    assert store.get(one.key[:6]).key == one.key
    for wrong in ("", "zzzz", "../stage", "*"):
        with pytest.raises(SaelinkError, match="saelink ls"):
            store.get(wrong) if wrong else store.get("")
    store.remove(one.key[:6])
    assert [artifact.key for artifact in store.artifacts()] == [two.key]
    assert list((store.root / "stage").iterdir()) == [two.path]


def test_need_space_refuses_in_one_line(store: Store) -> None:
    with pytest.raises(SaelinkError, match=r"a thing takes 1000000000\.0 GB in .* are free") as refusal:
        store.need_space("a thing", 10**18)
    assert "\n" not in str(refusal.value)


def test_the_manifest_is_plain_json_with_a_fixed_order(store: Store) -> None:
    text = (store.build(plan(), fill).path / "manifest.json").read_text()
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_gc_takes_the_lock_of_a_whole_artifact_and_no_other(store: Store) -> None:
    whole = store.build(plan(), fill)
    left = whole.path.with_name(f".{whole.key}.lock")
    making = whole.path.with_name(".0123456789ab.lock")
    left.touch()
    with FileLock(making):
        assert list(store.collect_garbage()) == []
        assert not left.exists()
        assert making.exists()
    list(store.collect_garbage())
    assert not making.exists(), "nobody holds it"


def test_peak_memory_is_this_programs_own() -> None:
    """Not that of the larger process it was started from."""
    import subprocess
    import sys

    large = bytearray(600_000_000)
    large[::4096] = b"x" * len(large[::4096])
    code = "from saelink.store.provenance import peak_memory_bytes; print(peak_memory_bytes())"
    peak = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    del large
    assert 1_000_000 < peak < 400_000_000
