"""`saelink ls`: what it lists, in which order, as a table that cuts nothing and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saelink.store.recipe import Plan
from saelink.store.store import Store
from saelink.terminal.experiments import rows_lines
from saelink.terminal.lines import Lines
from saelink.terminal.listing import place_of, print_artifacts, rows_of
from saelink.terminal.table import blocks

from helpers.world import Run

ARTIFACTS = [
    ("tokens", "wiki", {}, 10),
    ("cache", "smollm2 blocks.1.hook_mlp_out", {}, 5000),
    ("train", "smollm2 layer 1 mlp, linear, l1_alpha 0.001", {"validation_fvu": 0.351}, 40),
    ("train", "smollm2 layer 12 mlp_from_parts, two_nonlinear, l1_alpha 0.0008", {"validation_fvu": 0.2}, 30),
    ("evaluate", "pythia-70m-deduped layer 1 mlp, linear, l1_alpha 0.001", {"fvu": 0.4}, 20),
]


@pytest.fixture
def filled(store: Store) -> Store:
    for stage, about, facts, size in ARTIFACTS:
        with store.drafts([Plan(stage, 1, {}, {"of": about}, about)]) as (draft,):
            draft.save_bytes("file", b"x" * size)
            store.commit(draft, facts)
    return store


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("words", "stages"),
    [
        ([], ["tokens", "cache", "train", "train", "evaluate"]),
        (["--stage", "train"], ["train", "train"]),
        (["--stage", "cache", "--stage", "tokens"], ["tokens", "cache"]),
        (["--layer", "1"], ["cache", "train", "evaluate"]),
        (["--model", "smollm2"], ["cache", "train", "train"]),
        (["--model", "smollm2", "--layer", "12"], ["train"]),
        (["--layer", "7"], []),
        (["--sort", "stage"], ["cache", "evaluate", "tokens", "train", "train"]),
        (["--sort", "size", "--stage", "cache", "--stage", "tokens"], ["cache", "tokens"]),
    ],
)
def test_filters_and_order(saelink: Run, words: list[str], stages: list[str]) -> None:
    code, out, err = saelink("ls", *words, bare=True)
    assert code == 0 and not err
    *table, total = out.splitlines()
    assert [line.split()[0] for line in table[1:]] == stages
    assert total.startswith("1 artifact in outputs, " if len(stages) == 1 else f"{len(stages)} artifacts in outputs, ")
    code, out, _ = saelink("ls", "--json", *words, bare=True)
    assert code == 0 and [each["stage"] for each in json.loads(out)] == stages


@pytest.mark.usefixtures("filled")
def test_the_best_fit_comes_first_if_asked(saelink: Run) -> None:
    _, out, _ = saelink("ls", "--sort", "fvu", bare=True)
    assert [line.split()[2] for line in out.splitlines()[1:4]] == ["0.200", "0.351", "0.400"]
    found = json.loads(saelink("ls", "--sort", "fvu", "--json", bare=True)[1])
    assert [each["fvu"] for each in found] == [0.2, 0.351, 0.4, None, None]
    best = found[0]
    assert (best["model"], best["layer"], best["damaged"]) == ("smollm2", 12, False)
    assert Path(best["path"]).name == best["key"] and best["bytes"] > 30 and best["made"].endswith("Z")


@pytest.mark.parametrize("width", [80, 60])
def test_nothing_is_cut(filled: Store, width: int) -> None:
    lines = Lines()
    rows = rows_of(filled)
    print_artifacts(lines, rows, filled.root, width)
    assert max(map(len, lines.said[:-1])) <= width
    text = " ".join(" ".join(lines.said).split())
    for row in rows:
        assert row.key in text and "…" not in text
        assert width < 80 or set(row.about.split()) <= set(text.split())  # narrower, long words are folded


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--sort", "name"], "--sort name: give time, size, fvu, stage"),
        (["--stage", "trian"], "--stage trian: outputs has nothing of it; did you mean train?"),
        (["--stage", "graph"], "--stage graph: outputs has nothing of it"),
    ],
)
def test_a_wrong_word_gets_one_line(saelink: Run, words: list[str], line: str) -> None:
    assert saelink("ls", *words, bare=True) == (1, "", f"saelink: {line}\n")


def test_an_empty_store(saelink: Run) -> None:
    assert saelink("ls", bare=True) == (0, "0 artifacts in outputs, 0 bytes\n", "")
    assert saelink("ls", "--json", bare=True) == (0, "[]\n", "")


@pytest.mark.parametrize(
    ("stage", "about", "place"),
    [
        ("tokens", "wiki", (None, None)),
        ("norms", "smollm2, all layers", ("smollm2", None)),
        ("encode", "smollm2 blocks.3.hook_mlp_out, SAE shipped", ("smollm2", 3)),
        ("graph", "smollm2 layer 1 'blocks.2. layer 3'", ("smollm2", 1)),
        ("transcoder", "a/b beside smollm2 layer 1 mlp, linear", ("smollm2", 1)),
        ("model", "smollm2", ("smollm2", None)),
    ],
)
def test_model_and_layer(stage: str, about: str, place: tuple[str | None, int | None]) -> None:
    assert place_of(stage, about) == place


def test_a_wide_table_of_an_experiment_comes_in_parts() -> None:
    rows = [{"fit": name, **{f"figure_{i}": i * 1.5 for i in range(9)}, "n": 10_000} for name in ("one", "another")]
    rows[1] |= {f"figure_{i}": None for i in range(9)} | {"n": 7}
    whole = rows_lines(rows)
    assert [line.split() for line in whole[1:]] == [
        ["one", "0", *(f"{i * 1.5:.3g}" for i in range(1, 9)), "10,000"],
        ["another", *"---------", "7"],
    ]
    parts = rows_lines(rows, 60)
    assert max(map(len, parts)) <= 60 < max(map(len, whole))
    assert [line.split()[0] for line in parts if line] == ["fit", "one", "another"] * 2
    assert [name for line in parts if "fit" in line for name in line.split()[1:]] == list(rows[0])[1:]


@pytest.mark.parametrize("width", [None, 1, 12, 13, 100])
def test_each_column_is_in_one_part(width: int | None) -> None:
    parts = blocks([3, 5, 4, 9], 1, width)
    assert [column for part in parts for column in part[1:]] == [1, 2, 3]
    assert all(part[0] == 0 and len(part) > 1 for part in parts)
