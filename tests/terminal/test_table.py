"""Tables, pairs and formulas fit the terminal and keep every word."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from saelink.terminal.table import Column, formula_lines, pair_lines, table_lines

WORDS = st.lists(st.text("abcdé漢0.,", min_size=1, max_size=12), min_size=1, max_size=20)

WEIGHTS = st.integers(1, 99).map(lambda w: f".{w:02d}")


@given(
    st.lists(st.tuples(st.text("abc", min_size=1, max_size=10), WORDS), min_size=1, max_size=4), st.integers(30, 120)
)
def test_pairs_wrap_and_lose_nothing(pairs: list[tuple[str, list[str]]], width: int) -> None:
    lines = pair_lines([(name, " ".join(words)) for name, words in pairs], width)
    assert all(cell_len(line) <= width for line in lines)
    said = "".join("".join(lines).split())
    expected = sorted("".join(name + "".join(words) for name, words in pairs))
    assert sorted(said) == expected


@given(st.lists(st.tuples(st.sampled_from("+-"), WEIGHTS, st.integers(0, 9999)), max_size=12), st.integers(40, 100))
def test_a_formula_breaks_in_front_of_its_terms(terms: list[tuple[str, str, int]], width: int) -> None:
    text = 'OF12 "a" = 1.20 IF3 " + b"' + "".join(f' {sign} {weight} IF{n} "c"' for sign, weight, n in terms)
    lines = formula_lines(text, width)
    assert all(cell_len(line) <= width for line in lines)
    assert re.sub(r"\s+", " ", " ".join(lines)).strip() == text
    assert formula_lines(text) == [f"  {text}"]


def test_a_table_without_titles_has_no_header() -> None:
    rows = [("a", "1"), ("bb", "10")]
    assert table_lines([Column(), Column(right=True)], rows, indent=2) == ["  a    1", "  bb  10"]
    assert table_lines([Column("x"), Column("y", right=True)], rows)[0].split() == ["x", "y"]
