"""Damage to what the store itself writes: each is named in one line, or only the work that it hit is done again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saelink.config.schema import WandbConfig, WandbMode
from saelink.errors import SaelinkError
from saelink.store.artifact import Artifact
from saelink.store.draft import JOURNAL, Draft
from saelink.store.files import json_bytes
from saelink.store.manifest import MANIFEST
from saelink.store.recipe import Plan
from saelink.store.seal import sealed
from saelink.store.store import Store
from saelink.tracking.project import Project
from saelink.tracking.runs import publish_key
from saelink.tracking.sweep import begin, failures, record, sweep_folder, write_pareto

from helpers.observing import Lines
from helpers.world import Run

NAMES = ["a.safetensors", "b.json", "c.txt"]


def plan(number: int = 1, **inputs: str) -> Plan:
    return Plan("stage", 1, {"number": number}, inputs, "a test")


def fill(draft: Draft) -> dict[str, Any]:
    writes: dict[str, Callable[[str], None]] = {
        "a.safetensors": lambda name: draft.save_tensors(name, {"x": torch.arange(10)}),
        "b.json": lambda name: draft.save_json(name, {"y": 1}),
        "c.txt": lambda name: draft.save_bytes(name, b"words"),
    }
    for name in NAMES:
        if name not in draft:
            writes[name](name)
    return {"n": 10, "share": 0.25}


def one_line(error: pytest.ExceptionInfo[SaelinkError], folder: Path) -> None:
    assert "\n" not in str(error.value)
    assert str(folder / MANIFEST) in str(error.value)
    assert f"`saelink rm {folder.name}`" in str(error.value)


# --------------------------------------------------------------------------- manifests


def test_a_flipped_bit_of_a_manifest_is_named(store: Store) -> None:
    """Whichever it is: in the facts, in a recorded hash, in the recipe, in the name of an entry."""
    mine = plan(input="0" * 12)
    artifact = store.build(mine, fill)
    path = artifact.path / MANIFEST
    data = path.read_bytes()
    for place in range(0, len(data), 3):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(SaelinkError, match="the stage artifact is damaged") as error:
            store.find(mine)
        one_line(error, artifact.path)


@pytest.mark.parametrize("length", [0, 1, 40, -2])
def test_a_cut_manifest_is_named(store: Store, length: int) -> None:
    artifact = store.build(plan(), fill)
    path = artifact.path / MANIFEST
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(SaelinkError, match="can't be read") as error:
        store.build(plan(), fill)
    one_line(error, artifact.path)


OTHERS = ["[]", "null", "1", '"facts"', "[" * 100_000, "1" * 5000, '{"n": NaN}', '{"n": 1e999}', '{"n": 1}']


@pytest.mark.parametrize("text", OTHERS, ids=range(len(OTHERS)))
def test_a_manifest_that_is_something_else_is_named(store: Store, text: str) -> None:
    artifact = store.build(plan(), fill)
    (artifact.path / MANIFEST).write_text(text)
    with pytest.raises(SaelinkError, match=r"can't be read|earlier versions") as error:
        store.find(plan())
    one_line(error, artifact.path)


@pytest.mark.parametrize("missing", ["facts", "files", "inputs", "provenance", "about", "version"])
def test_a_manifest_without_an_entry_is_named(store: Store, missing: str) -> None:
    """Also with the right checksum, as another version might write it."""
    artifact = store.build(plan(), fill)
    path = artifact.path / MANIFEST
    entries = {name: value for name, value in json.loads(path.read_bytes()).items() if name not in (missing, "sha256")}
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"))
    path.write_bytes(json_bytes({**entries, "sha256": hashlib.sha256(text.encode()).hexdigest()}))
    with pytest.raises(SaelinkError, match=f"lacks {missing}: ") as error:
        store.find(plan())
    one_line(error, artifact.path)


def test_a_manifest_of_an_earlier_version_is_named(store: Store) -> None:
    """It has no checksum; the line says so, and the way out leads out."""
    artifact = store.build(plan(), fill)
    path = artifact.path / MANIFEST
    entries = json.loads(path.read_bytes())
    del entries["sha256"]
    path.write_bytes(json_bytes(entries))
    with pytest.raises(SaelinkError, match="no sha256 of itself, like those of earlier versions") as error:
        store.find(plan())
    one_line(error, artifact.path)
    store.remove(artifact.key)
    assert store.build(plan(), fill).facts == artifact.facts


def test_the_manifest_of_another_artifact_is_named(store: Store) -> None:
    one, two = store.build(plan(1), fill), store.build(plan(2), fill)
    (two.path / MANIFEST).write_bytes((one.path / MANIFEST).read_bytes())
    with pytest.raises(SaelinkError, match=f"is of the stage artifact {one.key}: ") as error:
        store.find(plan(2))
    one_line(error, two.path)
    moved = two.path.with_name("0" * 12)
    one.path.rename(moved)
    with pytest.raises(SaelinkError, match=f"is of the stage artifact {one.key}: "):
        Artifact(moved)


def test_a_manifest_may_be_laid_out_anew(store: Store) -> None:
    """Its checksum is of what it says."""
    artifact = store.build(plan(), fill)
    path = artifact.path / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_bytes())))
    found = store.find(plan())
    assert found is not None
    assert found.manifest == artifact.manifest


def test_facts_that_json_changes_have_a_checksum_too(store: Store) -> None:
    """Tuples, and numbers as names of entries, which sort otherwise as text."""
    facts = {"shape": (2, 3), "by_layer": {10: "x", 9: "y"}, "word": "é\u2028\x7f", "small": 1e-300, "minus": -0.0}
    artifact = store.build(plan(), lambda _: facts)
    assert artifact.facts == {**facts, "shape": [2, 3], "by_layer": {"10": "x", "9": "y"}}


# --------------------------------------------------------------------------- unfinished work


def begun(store: Store, of: Plan | None = None) -> Path:
    """The folder of an artifact whose making was broken off after its last file."""
    with store.drafts([of or plan()], resumable=True) as (draft,):
        fill(draft)
    return draft.folder


def taken_over(store: Store) -> set[str]:
    """What a resumed build finds finished."""
    with store.drafts([plan()], resumable=True) as (draft,):
        return {name for name in NAMES if name in draft}


BAD_LINES = [
    b"\xff\xfe\x80", b"[1]", b'"b.json"', b"7", b"null", b"{}", b'{"name": 1, "size": 1, "sha256": "x"}',
    b'{"name": "b.json"}', b'{"name": "b.json", "size": "7", "sha256": "x"}', b'{"name": ["b.json"], "size": 7}',
    b'{"name": "b.json", "size": 7, "sha256": null}', b'{"name": "\\u0000", "size": 7, "sha256": "x"}',
    b'{"name": "\\ud800", "size": 7, "sha256": "x"}', b'{"name": "../..", "size": 7, "sha256": "x"}',
    b'{"name": "", "size": 4096, "sha256": "x"}', b"[" * 100_000, b"1" * 5000, b"\x00\x00\x00{", b"\x0b\x1c\x85",
]  # fmt: skip


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_damaged_line_of_a_journal_loses_its_own_file_only(store: Store, line: bytes) -> None:
    path = begun(store) / JOURNAL
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(line if b"b.json" in old else old for old in lines))
    assert taken_over(store) == {"a.safetensors", "c.txt"}
    assert store.build(plan(), fill).files == NAMES


def test_a_line_that_names_another_file_loses_its_own_file_only(store: Store) -> None:
    path = begun(store) / JOURNAL
    path.write_bytes(path.read_bytes().replace(b'"c.txt"', b'"b.json"'))
    assert taken_over(store) == {"a.safetensors", "b.json"}


def test_a_flipped_bit_of_a_journal_loses_one_file_at_most(store: Store) -> None:
    path = begun(store) / JOURNAL
    data = path.read_bytes()
    for place in range(0, len(data), 3):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        assert len(taken_over(store)) >= 2, place


def test_the_journal_counts_on_top_of_the_manifest(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a stop just before the rename a manifest notes the work; what is done since then is in a journal."""
    with store.drafts([plan()], resumable=True) as (draft,):
        facts = fill(draft)
        with monkeypatch.context() as stop:
            stop.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                store.commit(draft, facts)
    assert not (draft.folder / JOURNAL).exists()
    with store.drafts([plan()], resumable=True) as (draft,):
        draft.save_bytes("c.txt", b"words, more of them")
    assert taken_over(store) == set(NAMES)
    (draft.folder / MANIFEST).write_bytes(b"{")
    assert taken_over(store) == {"c.txt"}
    for text in ('{"files": 1}', '{"files": {"c.txt": 1}}', "[]", '{"files": {"c.txt": {"size": 1}}}'):
        (draft.folder / MANIFEST).write_text(text)
        assert taken_over(store) == {"c.txt"}


def flip_last(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_workers_make_a_damaged_file_of_the_right_size_again(store: Store) -> None:
    flip_last(begun(store) / "c.txt")
    with store.drafts([plan()], resumable=True, shared=True) as (one,):
        with store.drafts([plan()], resumable=True, shared=True) as (two,):
            made = []
            for draft in (one, two):
                draft.refresh()
            assert [name for name in NAMES if name not in one] == ["c.txt"]
            for name, claim in store.claims([one], NAMES):
                fill(one)
                made.append(name)
                claim.release()
            assert made == ["c.txt"]
            assert list(store.claims([two], NAMES)) == []
            artifact = store.finish(two, lambda: {"n": 10})
    assert artifact.file("c.txt").read_bytes() == b"words"


def test_a_resumed_draft_is_hashed_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(store)
    with store.drafts([plan()], resumable=True, shared=True) as (draft,):
        monkeypatch.setattr("saelink.store.draft.file_sha256", lambda _: pytest.fail("hashed again"))
        draft.refresh()
        assert torch.equal(draft.tensors("a.safetensors")["x"], torch.arange(10))


def test_what_another_worker_wrote_is_compared_before_it_is_read(store: Store) -> None:
    """What a worker sums up from files of others enters facts, so they are not taken by their size."""
    with store.drafts([plan()], resumable=True, shared=True) as (one,):
        with store.drafts([plan()], resumable=True, shared=True) as (two,):
            one.save_tensors("a.safetensors", {"x": torch.arange(10)})
            two.refresh()
            assert "a.safetensors" in two
            flip_last(two.folder / "a.safetensors")
            with pytest.raises(SaelinkError, match=r"a\.safetensors was damaged .* the same command again"):
                two.tensors("a.safetensors")
    assert taken_over(store) == set()


# --------------------------------------------------------------------------- looking after a store


@pytest.fixture
def damaged(store: Store) -> tuple[list[Artifact[Any]], list[Path]]:
    """Two whole artifacts, and the folders of two with a manifest that is cut or missing."""
    artifacts = [store.build(plan(number), fill) for number in range(4)]
    broken = sorted(artifact.path for artifact in artifacts[2:])
    (broken[0] / MANIFEST).write_text("{")
    (broken[1] / MANIFEST).unlink()
    return artifacts[:2], broken


def test_the_others_are_listed(store: Store, damaged: tuple[list[Artifact[Any]], list[Path]]) -> None:
    whole, broken = damaged
    listed, left_out = store.listing()
    assert [artifact.key for artifact in listed] == [artifact.key for artifact in whole]
    assert left_out == broken
    lines = Lines()
    store = Store(store.root, lines)
    for _ in range(2):
        assert [artifact.key for artifact in store.artifacts()] == [artifact.key for artifact in whole]
    assert lines.said == [f"{store.root}: 2 damaged artifacts are left out; `saelink ls` lists what is there"]


def test_ls_rm_and_gc_of_a_damaged_store(
    saelink: Run, store: Store, damaged: tuple[list[Artifact[Any]], list[Path]]
) -> None:
    whole, broken = damaged
    code, out, err = saelink("ls", bare=True)
    assert (code, err) == (0, "")
    header, *rows, total = [line.split() for line in out.splitlines()]
    assert header == ["stage", "key", "FVU", "size", "age", "what"]
    assert " ".join(total).startswith("4 artifacts in outputs, ")
    assert [row[1] for row in rows] == [*(artifact.key for artifact in whole), *(folder.name for folder in broken)]
    for row, folder in zip(rows[2:], broken, strict=True):
        size = sum(path.stat().st_size for path in folder.iterdir())
        assert " ".join(row) == f"stage {folder.name} {size} bytes damaged: `saelink rm {folder.name}` removes it"
    left = begun(store, plan(9))
    code, out, err = saelink("gc", bare=True)
    assert (code, err) == (0, "")
    assert f"removed outputs/stage/{left.name}" in out
    for folder in broken:
        assert saelink("rm", folder.name, bare=True)[0] == 0
        assert not folder.exists()
    assert len(saelink("ls", bare=True)[1].splitlines()) == 2 + 2


def trained(store: Store, l1_alpha: float) -> Artifact[Any]:
    """What the table of a sweep needs of a connector."""
    names = ("validation_mse", "l1", "validation_fvu", "n_edges", "n_edges_above_0.01", "n_targets")
    recipe = {"connector": {"name": "linear"}, "solver": {"name": "exact"}, "l1_alpha": l1_alpha, "min_rate": 0.0}
    recipe |= {"latent_scale": "x", "drop_positions": 1, "max_norm_ratio": 2.0}
    described = {"model": "m", "layer": 1, "link": "mlp", "data": "d", "sources": ["a"], "target": "b", "sae": "s"}
    facts: dict[str, Any] = {**dict.fromkeys(names, 1 + l1_alpha), "n_tokens": 10}
    facts |= {"described": {**described, "sae_width": [4, 4], "sae_l0": [1.0, 1.0]}}
    return store.build(Plan("train", 1, recipe, {"target": "0" * 12}, "mlp, layer 1"), lambda _: facts)


def test_pareto_leaves_a_damaged_connector_out_and_says_so(tmp_path: Path) -> None:
    lines = Lines()
    store = Store(tmp_path / "outputs", lines)
    connectors = [trained(store, alpha) for alpha in (0.1, 0.2, 0.3)]
    for connector in connectors:
        record(store, "sweep1", connector, "layer=1")
    (connectors[0].path / MANIFEST).write_text("{")
    store.remove(connectors[1].key)
    rows = write_pareto(store, "sweep1").rows
    assert [row["train"] for row in rows] == [connectors[2].key]
    assert len((sweep_folder(store, "sweep1") / "pareto.csv").read_text().splitlines()) == 2
    said = [line for line in lines.said if line.startswith("pareto: left out: ")]
    assert len(said) == 2
    assert all(any(connector.key in line for line in said) for connector in connectors[:2])


@pytest.fixture
def swept(tmp_path: Path) -> tuple[Store, list[str], Path]:
    """A sweep of two jobs, its lines, and the note of the first."""
    lines = Lines()
    store = Store(tmp_path / "outputs", lines)
    for alpha in (0.1, 0.2):
        record(store, "sweep1", trained(store, alpha), f"l1_alpha={alpha}")
    return store, lines.said, min((sweep_folder(store, "sweep1") / "jobs").iterdir())


def test_any_change_of_a_sweeps_record_is_named(swept: tuple[Store, list[str], Path]) -> None:
    """A key, an override, the name of an entry: what is wrong is left out, in one line, whichever bit it is."""
    store, said, note = swept
    data = note.read_bytes()
    for place in range(0, len(data) - 1, 23):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        note.write_bytes(flipped)
        said.clear()
        assert len(write_pareto(store, "sweep1").rows) == 1, place
        assert [line for line in said if line.startswith(str(note))] == said and len(said) == 1
    for content in (b"", b"[]", b"7", b"\xff", b"[" * 100_000, b'{"train": "x", "job": "y"}', data[:-9]):
        note.write_bytes(content)
        assert len(write_pareto(store, "sweep1").rows) == 1


def test_a_record_in_anothers_place_is_named(swept: tuple[Store, list[str], Path]) -> None:
    store, said, note = swept
    other = next(path for path in note.parent.iterdir() if path != note)
    said.clear()
    note.write_bytes(other.read_bytes())
    assert len(write_pareto(store, "sweep1").rows) == 1
    assert said == [f"{note} is another job's: it is left out; the sweep's command again writes it anew"]
    shutil.copytree(note.parent.parent, note.parent.parent.with_name("sweep2"))
    with pytest.raises(SaelinkError, match="sweep2: no job of it has made a connector yet"):
        write_pareto(store, "sweep2")


@pytest.mark.parametrize("name", ["../../precious", "sweep1/../..", "x", "", "sweep", "sweep 1"])
def test_a_sweeps_name_leads_nowhere_else(store: Store, name: str) -> None:
    (store.root.parent / "precious").mkdir()
    for use in (begin, write_pareto, failures):
        with pytest.raises(SaelinkError, match="names are like sweep"):
            use(store, name)
    assert (store.root.parent / "precious").exists()


def noted(store: Store, **entries: Any) -> tuple[Project, Path]:
    """A project, and its note of the run `run1` with these entries changed."""
    project = Project(WandbConfig(mode=WandbMode.offline, project="p"), store)
    run = store.root / "wandb" / "offline-run-1-run1"
    run.mkdir(parents=True, exist_ok=True)
    path = store.root / "wandb" / "published" / "_p" / "run1.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    note = {"run": "run1", "content": {"x": 1}, "online": False, "folder": run.name, **entries}
    path.write_bytes(json_bytes(sealed(note)))
    return project, path


def test_any_change_of_a_note_of_wandb_counts_as_none(store: Store) -> None:
    project, path = noted(store)
    assert project.shows("run1", {"x": 1}) and not project.shows("run1", {"x": 2})
    data = path.read_bytes()
    for place in range(0, len(data) - 1, 23):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        assert project.noted("run1") == {}, place
    path.write_bytes(data)
    shutil.copy(path, path.with_name("run2.json"))
    assert project.noted("run2") == {}


@pytest.mark.parametrize("folder", ["../../precious", "/precious", "..", "published", None, 3])
def test_a_note_of_wandb_names_no_other_folder(store: Store, folder: Any) -> None:
    """The folder of a run that is replaced is deleted."""
    project, _ = noted(store, folder=folder)
    assert not project.shows("run1", {"x": 1})
    assert project._folder_of(project.noted("run1")) is None  # noqa: SLF001


def test_a_projects_notes_stay_in_a_folder(store: Store) -> None:
    for name in ("../../x", "a/b:c", ".."):
        path = Project(WandbConfig(project=name, entity="../e"), store)._note_path("run1")  # noqa: SLF001
        assert path.parent.parent == store.root / "wandb" / "published"


def test_track_copes_with_other_damaged_artifacts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    connector = trained(store, 0.1)
    evaluations = [
        store.build(Plan("evaluate", 1, {"n": n}, {"connector": connector.key}, ""), lambda _: {}) for n in range(2)
    ]
    (evaluations[1].path / MANIFEST).write_text("{")
    published = []
    monkeypatch.setattr("saelink.tracking.runs.publish", lambda *arguments, **_: published.append(arguments))
    publish_key(WandbConfig(mode=WandbMode.offline), store, connector.key)
    assert [argument.key for argument in published[0][1:]] == [connector.key, evaluations[0].key]
    (connector.path / MANIFEST).write_text("{")
    with pytest.raises(SaelinkError, match="can't be read") as error:
        publish_key(WandbConfig(mode=WandbMode.offline), store, connector.key)
    one_line(error, connector.path)
