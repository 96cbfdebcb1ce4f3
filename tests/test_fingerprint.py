"""The fingerprint of a store: equal stores have one, and what changed is the one line that differs."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saelink.store.draft import Draft
from saelink.store.recipe import Plan
from saelink.store.store import Store

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "fingerprint.py"

Fingerprint = Callable[..., list[str]]

PLAN = Plan("stage", 1, {"number": 1}, {}, "a test")


@pytest.fixture(scope="module")
def fingerprint() -> Fingerprint:
    spec = importlib.util.spec_from_file_location("fingerprint_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.fingerprint


def packed(value: Any) -> bytes:
    """A zip with one gzipped table, as an export is."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("0.jsonl", gzip.compress(json.dumps(value).encode()))
    return data.getvalue()


def outputs(folder: Path, *, x: float = 1.0, weight: float = 0.5, token: str = "king", fvu: float = 0.25) -> Path:
    """A store of two artifacts with every kind of file that is listed or left out."""

    def fill(draft: Draft) -> dict[str, Any]:
        tensors = {"x": torch.tensor([x, 2.0]), "y": torch.zeros(0, 3), "z": torch.ones(2, dtype=torch.bfloat16)}
        draft.save_tensors("a.safetensors", tensors)
        draft.save_json("edges.json", [{"source": 1, "target_token": token, "weight": weight}])
        draft.save_bytes("edges.csv", f"source,token,weight\n1,{token},{weight}\n".encode())
        draft.save_bytes("export.zip", packed({"texts": [token], "weight": weight}))
        draft.save_bytes("circuits.txt", token.encode())
        return {"fvu": fvu, "tokens": [token]}

    def scalar(draft: Draft) -> dict[str, Any]:
        draft.save_tensors("b.safetensors", {"n": torch.tensor(3)})
        return {}

    store = Store(folder)
    artifact = store.build(PLAN, fill)
    store.build(Plan("other", 1, {}, {"input": artifact.key}, ""), scalar)
    return folder


def differing(one: list[str], two: list[str]) -> list[str]:
    """What the lines that are not the same are about, without stage, key and digest."""
    assert len(one) == len(two)
    changed = [(a, b) for a, b in zip(one, two, strict=True) if a != b]
    assert all(a.split()[:-1] == b.split()[:-1] for a, b in changed)
    return [" ".join(a.split()[2:-1]) for a, _ in changed]


def test_equal_stores_have_equal_lists(fingerprint: Fingerprint, tmp_path: Path) -> None:
    one, two = fingerprint(outputs(tmp_path / "one")), fingerprint(outputs(tmp_path / "two"))
    assert one == two
    about = [" ".join(line.split()[2:-1]) for line in one if line.startswith(f"stage {PLAN.key} ")]
    tensors = [f"a.safetensors {name}" for name in "xyz"]
    assert about == ["facts", *tensors, "edges.csv", "edges.json", "export.zip 0.jsonl"]
    assert sum(line.startswith("other ") for line in one) == 2


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({"x": 1.0000001}, ["a.safetensors x"]),
        ({"x": -1.0}, ["a.safetensors x"]),
        ({"fvu": 0.5}, ["facts"]),
        ({"weight": 0.75}, ["edges.csv", "edges.json", "export.zip 0.jsonl"]),
    ],
)
def test_what_changed_is_the_line_that_differs(
    fingerprint: Fingerprint, tmp_path: Path, change: dict[str, float], lines: list[str]
) -> None:
    one, two = fingerprint(outputs(tmp_path / "one")), fingerprint(outputs(tmp_path / "two", **change))  # type: ignore[arg-type]
    assert differing(one, two) == lines


def test_type_and_shape_of_a_tensor_count(fingerprint: Fingerprint, tmp_path: Path) -> None:
    """Also where the bytes are the same."""
    lists = []
    zero = torch.zeros(4)
    for number, tensor in enumerate([zero, zero.view(torch.int32), zero.reshape(2, 2)]):
        store = Store(tmp_path / str(number))
        store.build(PLAN, lambda draft, tensor=tensor: draft.save_tensors("a.safetensors", {"x": tensor}) or {})
        lists.append(tuple(fingerprint(store.root)))
    assert len(set(lists)) == 3


def test_labels_are_left_out_unless_asked_for(fingerprint: Fingerprint, tmp_path: Path) -> None:
    one, two = outputs(tmp_path / "one"), outputs(tmp_path / "two", token="queen")
    assert fingerprint(one) == fingerprint(two)
    labelled = differing(fingerprint(one, labels=True), fingerprint(two, labels=True))
    assert labelled == ["facts", "circuits.txt", "edges.csv", "edges.json", "export.zip 0.jsonl"]


def test_an_empty_folder_has_no_lines(fingerprint: Fingerprint, tmp_path: Path) -> None:
    assert fingerprint(tmp_path) == []
