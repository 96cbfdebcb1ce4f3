"""The store under whatever order of events: builds, breaks, resumed work, damage, removal, garbage, two stores at once.

`Events` keeps beside the store what should be in it (the model), and compares after every step.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from saelink.errors import SaelinkError
from saelink.store.artifact import Artifact
from saelink.store.draft import JOURNAL, Draft
from saelink.store.manifest import MANIFEST
from saelink.store.recipe import Plan
from saelink.store.store import Store

PLANS = [Plan(stage, 1, {"number": number}, {}, "a test") for stage, number in (("one", 1), ("one", 2), ("two", 1))]

FILES = ["a.safetensors", "b.json", "c.txt"]

DAMAGE = ["flip", "truncate", "grow", "delete"]

plans = st.sampled_from(PLANS)
counts = st.integers(0, len(FILES))


class Broken(BaseException):
    """What ends a build in the middle, as an interrupt of the keyboard does."""


def store_at(root: Path) -> Store:
    """A store that keeps quiet."""
    return Store(root)


def write(draft: Draft, name: str) -> None:
    """One file of an artifact; its bytes follow from the plan alone."""
    number = draft.plan.recipe["number"]
    if name == "a.safetensors":
        draft.save_tensors(name, {"x": torch.arange(5) + number, "y": torch.ones(2, 3)})
    elif name == "b.json":
        draft.save_json(name, {"number": number, "stage": draft.plan.stage})
    else:
        draft.save_bytes(name, f"{draft.plan.stage} {number}".encode() * 20)


def facts(plan: Plan) -> dict[str, Any]:
    return {"n": plan.recipe["number"]}


def fill(draft: Draft) -> dict[str, Any]:
    for name in FILES:
        if name not in draft:
            write(draft, name)
    return facts(draft.plan)


def damage(path: Path, how: str, place: int) -> None:
    """Change a file behind the store's back."""
    data = bytearray(path.read_bytes())
    if how == "delete":
        path.unlink()
        return
    if how == "flip":
        data[place % len(data)] ^= 1 << place % 8
    path.write_bytes({"flip": data, "truncate": data[: place % len(data)], "grow": data + b"x"}[how])


def never(draft: Draft) -> dict[str, Any]:
    raise AssertionError(f"{draft.plan.key} is made although it is there")


@dataclass
class Unfinished:
    """What the model knows of an unfinished artifact."""

    finished: set[str] = field(default_factory=set)
    """The files that a resumed build finds finished."""
    perhaps: set[str] = field(default_factory=set)
    """Those that it may find or not: what was noted of them was damaged, or of others."""


class Events(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.stores = [store_at(self.root / "outputs") for _ in range(2)]
        self.whole: dict[str, set[str]] = {}
        """By key the finished artifacts, each with the files that were damaged since."""
        self.partial: dict[str, Unfinished] = {}
        """By key the unfinished ones."""
        self.bytes: dict[tuple[str, str], bytes] = {}
        """What a file held when it was first made."""

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def folder(self, plan: Plan) -> Path:
        return self.stores[0].folder(plan)

    def partial_folder(self, plan: Plan) -> Path:
        return self.folder(plan).with_name(f"{plan.key}.partial")

    def readable(self, plan: Plan) -> bool:
        """Whether there is a finished artifact with a manifest that can be read."""
        return plan.key in self.whole and MANIFEST not in self.whole[plan.key]

    def made(self, plan: Plan, artifact: Artifact) -> None:
        """It was just made: the model learns so, its files are those of every other time."""
        self.whole[plan.key] = set()
        self.partial.pop(plan.key, None)
        assert artifact.path == self.folder(plan)
        assert artifact.facts == facts(plan)
        assert {path.name for path in artifact.path.iterdir()} == {*FILES, MANIFEST}
        assert artifact.files == FILES
        for name in FILES:
            data = artifact.file(name).read_bytes()
            assert self.bytes.setdefault((plan.key, name), data) == data
            assert (artifact.path / name).stat().st_mode & 0o777 == 0o644

    # ----------------------------------------------------------------------- making

    @rule(store=st.integers(0, 1), plan=plans)
    def build(self, store: int, plan: Plan) -> None:
        if plan.key not in self.whole:
            self.made(plan, self.stores[store].build(plan, fill))
        elif self.readable(plan):
            assert self.stores[store].build(plan, never).facts == facts(plan)
        else:
            with pytest.raises(SaelinkError, match=rf"{plan.key}/{MANIFEST} .*damaged; `saelink rm {plan.key}"):
                self.stores[store].build(plan, never)

    @contextmanager
    def drafted(self, store: int, plan: Plan, resumable: bool, shared: bool = False) -> Any:
        """The one draft of a plan that is not finished. Holds what an earlier try finished if it is resumed."""
        with self.stores[store].drafts([plan], resumable=resumable, shared=shared) as (draft,):
            known = self.partial.get(plan.key) if resumable else None
            known = self.partial[plan.key] = known or Unfinished()
            found = {name for name in FILES if name in draft}
            assert known.finished <= found <= known.finished | known.perhaps
            known.finished, known.perhaps = found, set()
            yield draft, known

    @precondition(lambda self: len(self.whole) < len(PLANS))
    @rule(data=st.data(), store=st.integers(0, 1), count=counts, resumable=st.booleans(), killed=st.booleans(),
        how=st.sampled_from(["exception", "half a file", "half a line", "before the rename"]))  # fmt: skip
    def break_off(
        self, data: st.DataObject, store: int, count: int, resumable: bool, killed: bool, how: str
    ) -> None:  # fmt: skip
        """A build that ends after `count` files were written, some way or other; unless killed it clears up."""
        plan = data.draw(st.sampled_from([plan for plan in PLANS if plan.key not in self.whole]))
        clears_up = patch.object(Draft, "abandon") if killed else nullcontext()
        with suppress(Broken), clears_up, self.drafted(store, plan, resumable) as (draft, known):
            for name in FILES[:count]:
                if name not in draft:
                    write(draft, name)
                    known.finished.add(name)
            if how == "half a file":
                (draft.folder / ".b.json.1.2.tmp").write_bytes(b"{")
            elif how == "half a line":
                with (draft.folder / JOURNAL).open("a") as journal:
                    journal.write('\n{"name": "a.safetens')
            elif how == "before the rename":
                self.partial[plan.key] = Unfinished(set(FILES))
                with patch("os.rename", side_effect=Broken):
                    self.stores[store].commit(draft, fill(draft))
            raise Broken
        if not killed and not (resumable and self.partial[plan.key].finished):
            del self.partial[plan.key]

    @precondition(lambda self: self.partial)
    @rule(data=st.data(), store=st.integers(0, 1))
    def resume(self, data: st.DataObject, store: int) -> None:
        """What is finished is taken over, the rest is made."""
        plan = data.draw(st.sampled_from([plan for plan in PLANS if plan.key in self.partial]))
        with self.drafted(store, plan, resumable=True) as (draft, _):
            artifact = self.stores[store].commit(draft, fill(draft))
        self.made(plan, artifact)

    @precondition(lambda self: len(self.whole) < len(PLANS))
    @rule(data=st.data(), store=st.integers(0, 1), count=counts, order=st.permutations(FILES), ends=st.booleans())
    def share(self, data: st.DataObject, store: int, count: int, order: list[str], ends: bool) -> None:
        """Two workers on one draft: one writes `count` files, the other the rest; or neither comes to the end."""
        plan = data.draw(st.sampled_from([plan for plan in PLANS if plan.key not in self.whole]))
        computed: list[int] = []

        def found(draft: Draft) -> Callable[[], dict[str, Any]]:
            return lambda: computed.append(1) or facts(draft.plan)

        def work(store: int, draft: Draft, names: list[str]) -> None:
            for name, claim in self.stores[store].claims([draft], names):
                known = self.partial[plan.key]
                assert name not in known.finished, "done already"
                write(draft, name)
                claim.release()
                known.finished.add(name)

        try:
            with self.drafted(store, plan, resumable=True, shared=True) as (one, _):
                work(store, one, order[:count])
                with self.drafted(1 - store, plan, resumable=True, shared=True) as (two, _):
                    self.clean_meanwhile(self.stores[0], plan)
                    if not ends:
                        raise Broken
                    work(1 - store, two, order)
                    artifact = self.stores[1 - store].finish(two, found(two))
                assert self.stores[store].finish(one, found(one)).manifest == artifact.manifest
        except Broken:
            return
        assert computed == [1]
        self.made(plan, artifact)

    @precondition(lambda self: len(self.whole) < len(PLANS))
    @rule(data=st.data(), store=st.integers(0, 1))
    def build_among_others(self, data: st.DataObject, store: int) -> None:
        """While one store makes an artifact the other takes it for neither finished nor garbage."""
        plan = data.draw(st.sampled_from([plan for plan in PLANS if plan.key not in self.whole]))
        other = self.stores[1 - store]

        def make(draft: Draft) -> dict[str, Any]:
            result = fill(draft)
            assert other.find(plan) is None
            self.clean_meanwhile(other, plan)
            return result

        self.made(plan, self.stores[store].build(plan, make))

    def clean_meanwhile(self, store: Store, plan: Plan) -> None:
        """Work in progress is no garbage, and nobody removes it; what else is unfinished goes."""
        expected = {self.partial_folder(left) for left in PLANS if left.key in self.partial and left != plan}
        assert {path for path, _ in store.collect_garbage()} == expected
        self.partial = {key: known for key, known in self.partial.items() if key == plan.key}
        with pytest.raises(SaelinkError, match=f"{plan.key} is being made by another process"):
            store.remove(plan.key)

    # ----------------------------------------------------------------------- damage

    @precondition(lambda self: any(len(damaged) <= len(FILES) for damaged in self.whole.values()))
    @rule(data=st.data(), how=st.sampled_from(DAMAGE), place=st.integers(0, 10_000))
    def spoil(self, data: st.DataObject, how: str, place: int) -> None:
        """Change a file of a finished artifact, be it the manifest."""
        intact = [
            (plan, name) for plan in PLANS if plan.key in self.whole
            for name in [*FILES, MANIFEST] if name not in self.whole[plan.key]
        ]  # fmt: skip
        plan, name = data.draw(st.sampled_from(intact))
        damage(self.folder(plan) / name, how, place)
        self.whole[plan.key].add(name)

    @precondition(lambda self: any(known.finished for known in self.partial.values()))
    @rule(data=st.data(), how=st.sampled_from(DAMAGE), place=st.integers(0, 10_000))
    def spoil_unfinished(self, data: st.DataObject, how: str, place: int) -> None:
        """Change a finished file of an unfinished artifact: it is made again."""
        unfinished = [(plan, self.partial[plan.key]) for plan in PLANS if plan.key in self.partial]
        finished = [(plan, name) for plan, known in unfinished for name in sorted(known.finished)]
        plan, name = data.draw(st.sampled_from(finished))
        damage(self.partial_folder(plan) / name, how, place)
        self.partial[plan.key].finished.remove(name)

    @precondition(lambda self: self.notes())
    @rule(data=st.data(), how=st.sampled_from(DAMAGE), place=st.integers(0, 10_000))
    def spoil_notes(self, data: st.DataObject, how: str, place: int) -> None:
        """Change what is noted of an unfinished artifact: whatever is found in it still has its bytes."""
        plan, path = data.draw(st.sampled_from(self.notes()))
        damage(path, how, place)
        known = self.partial[plan.key]
        known.finished, known.perhaps = set(), known.finished | known.perhaps

    def notes(self) -> list[tuple[Plan, Path]]:
        """The journals and manifests of what is unfinished."""
        unfinished = [plan for plan in PLANS if plan.key in self.partial]
        paths = [(plan, self.partial_folder(plan) / name) for plan in unfinished for name in (JOURNAL, MANIFEST)]
        return [(plan, path) for plan, path in paths if path.exists() and path.stat().st_size]

    # ----------------------------------------------------------------------- looking after it

    @rule(store=st.integers(0, 1), plan=plans, digits=st.integers(4, 12))
    def remove(self, store: int, plan: Plan, digits: int) -> None:
        """Whatever is left of it, whole or not, by the first digits of its key."""
        there = {key for key in (*self.whole, *self.partial) if key.startswith(plan.key[:digits])}
        if not there:
            with pytest.raises(SaelinkError, match="no artifact has a key starting with"):
                self.stores[store].remove(plan.key[:digits])
            return
        removed = self.stores[store].remove(plan.key[:digits])
        expected = [self.folder(plan)] if plan.key in self.whole else []
        assert removed == expected + ([self.partial_folder(plan)] if plan.key in self.partial else [])
        self.whole.pop(plan.key, None)
        self.partial.pop(plan.key, None)
        assert not [path for path in self.folder(plan).parent.iterdir() if plan.key in path.name]

    @rule(store=st.integers(0, 1))
    def collect_garbage(self, store: int) -> None:
        """Unfinished work goes, finished artifacts stay; nothing else is left."""
        expected = {self.partial_folder(plan) for plan in PLANS if plan.key in self.partial}
        assert {path for path, _ in self.stores[store].collect_garbage()} == expected
        self.partial.clear()
        for stage in self.stages():
            left = {path.name for path in stage.iterdir()}
            locks = {f".{key}.lock" for key, damaged in self.whole.items() if MANIFEST in damaged}
            kept = {plan.key for plan in PLANS if plan.key in self.whole and plan.stage == stage.name}
            assert kept <= left <= kept | locks

    @rule(store=st.integers(0, 1))
    def open_again(self, store: int) -> None:
        """Another process takes over from one of the stores."""
        self.stores[store] = store_at(self.root / "outputs")

    # ----------------------------------------------------------------------- what always holds

    def stages(self) -> list[Path]:
        outputs = self.root / "outputs"
        return sorted(path for path in outputs.iterdir() if path.is_dir()) if outputs.exists() else []

    @invariant()
    def what_is_found_is_whole(self) -> None:
        for plan in PLANS:
            for store in self.stores:
                if plan.key not in self.whole:
                    assert store.find(plan) is None
                    assert store.up_to_date(plan) is None
                    continue
                if not self.readable(plan):
                    for look in (store.find, store.up_to_date):
                        with pytest.raises(SaelinkError, match=f"{plan.key}/{MANIFEST} .*damaged; `saelink rm") as line:
                            look(plan)
                        assert "\n" not in str(line.value)
                    continue
                artifact = store.find(plan)
                assert artifact is not None
                assert store.up_to_date(plan) is not None
                assert artifact.facts == facts(plan)
                assert artifact.recipe == plan.recipe
                assert artifact.files == FILES
                self.compare(artifact)

    def compare(self, artifact: Artifact) -> None:
        """Every file has the bytes it was made with, or its damage is named."""
        for name in FILES:
            if name in self.whole[artifact.key]:
                for use in (artifact.file, artifact.tensors if name.endswith("s") else artifact.json):
                    with pytest.raises(SaelinkError, match=rf"{artifact.key}/{name} .* damaged; `saelink rm") as error:
                        use(name)
                    assert "\n" not in str(error.value)
            else:
                assert artifact.file(name).read_bytes() == self.bytes[artifact.key, name]

    @invariant()
    def exactly_the_finished_ones_are_listed(self) -> None:
        """Those with a damaged manifest, or without one, stand apart."""
        store = self.stores[0]
        _, damaged = store.listing()
        unreadable = [plan for plan in PLANS if plan.key in self.whole and not self.readable(plan)]
        assert sorted(damaged) == sorted(self.folder(plan) for plan in unreadable)
        listed = [artifact.key for artifact in store.artifacts()]
        assert sorted(listed) == sorted(plan.key for plan in PLANS if self.readable(plan))
        for plan in PLANS:
            if self.readable(plan):
                assert store.get(plan.key).path == self.folder(plan)
            elif plan.key not in self.whole:
                with pytest.raises(SaelinkError, match="no artifact has a key"):
                    store.get(plan.key)

    @invariant()
    def nothing_lies_about(self) -> None:
        """Beside artifacts, unfinished ones and locks there is nothing; and of removals nothing is left."""
        for stage in self.stages():
            for path in stage.iterdir():
                key = path.name.strip(".").split(".")[0]
                plan = next(plan for plan in PLANS if plan.key == key and plan.stage == stage.name)
                if path == self.folder(plan):
                    assert key in self.whole
                elif path == self.partial_folder(plan):
                    assert key in self.partial
                else:
                    assert path.name == f".{key}.lock"


TestEvents = Events.TestCase
TestEvents.settings = settings(
    max_examples=settings().max_examples // 2,
    stateful_step_count=15,
    phases=[phase for phase in Phase if phase != Phase.explain],
)
