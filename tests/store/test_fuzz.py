"""Random damage to everything in a store: a rerun ends with bytes and facts of an undisturbed one, or with one line."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from saelink.errors import SaelinkError
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.recipe import Plan
from saelink.store.store import Store
from saelink.store.upkeep import MARKER

SHARDS = [f"shard-{number}.safetensors" for number in range(3)]

ROWS = Plan("rows", 1, {"seed": 3, "scale": 0.1}, {}, "numbers in shards")
SUMS = Plan("sums", 2, {"power": 2}, {"rows": ROWS.key}, "what they come to")


class Broken(BaseException):
    """What ends a run in the middle, as an interrupt of the keyboard does."""


def rows(store: Store, shared: bool, end: int | None) -> Artifact[Any]:
    """A resumable stage that makes shards and finds its facts by reading them back; broken off before shard `end`."""
    found = store.up_to_date(ROWS)
    if found is not None:
        return found
    with store.drafts([ROWS], resumable=True, shared=shared) as drafts:
        (draft,) = drafts
        for name, claim in store.claims(drafts, SHARDS):
            number = SHARDS.index(name)
            if number == end:
                raise Broken
            draft.save_tensors(name, {"x": torch.arange(4) * (number + 1)})
            claim.release()
        return store.finish(draft, lambda: {"total": sum(total(draft.tensors(name)["x"]) for name in SHARDS)})


def total(x: torch.Tensor) -> int:
    return int(x.sum())


def sums(store: Store, before: Artifact[Any], end: int | None) -> Artifact[Any]:
    """A stage that starts afresh: it computes from the first one's files and facts."""

    def make(draft: Draft) -> dict[str, Any]:
        draft.save_json("sums.json", [total(before.tensors(name)["x"]) for name in SHARDS])
        if end == len(SHARDS):
            raise Broken
        draft.save_bytes("words.txt", str(before.facts).encode())
        return {"largest": 3 * before.facts["total"]}

    return store.up_to_date(SUMS) or store.build(SUMS, make)


def run(root: Path, shared: bool = False, end: int | None = None) -> dict[str, Any]:
    """Facts and bytes of both stages, as whoever uses them reads them. Raises SaelinkError for what was damaged."""
    store = Store(root)
    made = [rows(store, shared, end)]
    made.append(sums(store, made[0], end))
    found: dict[str, Any] = {}
    for artifact in made:
        found[artifact.stage] = artifact.facts, artifact.recipe, artifact.manifest["inputs"]
        found |= {f"{artifact.stage}/{name}": artifact.file(name).read_bytes() for name in artifact.files}
    return found


def damage(root: Path, file: int, how: str, place: int) -> None:
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != MARKER)
    if not files:
        return
    path = files[file % len(files)]
    data = bytearray(path.read_bytes())
    if how == "delete" or not data:
        path.unlink()
    elif how == "flip":
        data[place % len(data)] ^= 1 << file % 8
        path.write_bytes(data)
    elif how == "byte":
        data[place % len(data)] = file % 256
        path.write_bytes(data)
    else:
        path.write_bytes(data[: place % len(data)])


numbers = st.integers(0, 2**16)
damages = st.lists(
    st.tuples(numbers, st.sampled_from(["flip", "byte", "cut", "delete"]), numbers), min_size=1, max_size=3
)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Without what takes most of the time of a small store and changes nothing here."""
    with patch("os.fsync"), patch("saelink.store.provenance.package_versions", return_value={"saelink": "0"}):
        yield


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("undisturbed"))


@settings(max_examples=settings().max_examples * 3, phases=[phase for phase in Phase if phase != Phase.explain])
@given(
    end=st.none() | st.integers(0, len(SHARDS)),
    rounds=st.lists(damages, min_size=1, max_size=3),
    shared=st.booleans(),
)
def test_a_rerun_gives_the_same_or_one_line(
    expected: dict[str, Any], end: int | None, rounds: list[list[Any]], shared: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "outputs"
        try:
            run(root, shared, end)
        except Broken:
            assert end is not None
        for changes in rounds:
            for change in changes:
                damage(root, *change)
            store = Store(root)
            whole, damaged = store.listing()
            assert len(whole) + len(damaged) == len(list(root.glob("*/????????????")))
            if end is None:
                list(store.collect_garbage())
            settle(root, shared, expected)


def settle(root: Path, shared: bool, expected: dict[str, Any]) -> None:
    """Run until it ends, doing each time what the line says: at most once for either artifact."""
    for _ in range(3):
        try:
            found = run(root, shared)
        except SaelinkError as error:
            line = str(error)
        else:
            assert found == expected
            return
        way_out = re.fullmatch(rf"{root}/\S+ .+: the (\w+) artifact is damaged; `saelink rm ([0-9a-f]+)` .*", line)
        assert way_out is not None, line
        assert Store(root).remove(way_out[2])[0].parent.name == way_out[1]
    raise AssertionError("it does not end")
