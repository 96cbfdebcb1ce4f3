"""Circuits as text: what is confirmed stands first, what is not says so, and nothing rounds to zero."""

from __future__ import annotations

from typing import Any

import pytest

from saelink.evidence.circuits import circuit_text

CIRCUIT: dict[str, Any] = {
    "unit": "OF1",
    "id": 1,
    "token": "king",
    "terms": [
        {"weight": 0.9, "unit": "IF7", "id": 7, "token": "old"},
        {"weight": -0.5, "unit": "IF8", "id": 8},
        {"weight": 0.3, "unit": "H2", "id": 2},
        {"weight": 0.004, "unit": "IF9", "id": 9},
    ],
}


def test_without_verdicts_it_says_unverified() -> None:
    assert circuit_text(CIRCUIT) == 'OF1 "king" = .90 IF7 "old" - .50 IF8 + .30 H2   (unverified)'


@pytest.mark.parametrize(
    ("verdicts", "text"),
    [
        ({7: "confirmed", 8: "confirmed", 9: "faint"}, '.90 IF7 "old" - .50 IF8 + .30 H2'),
        ({7: "no effect", 8: "confirmed", 9: "faint"}, '-.50 IF8 + .30 H2 + .90 IF7 "old" (no effect)'),
        ({7: "weaker", 8: "opposite"}, '.30 H2 + .90 IF7 "old" (weaker) - .50 IF8 (opposite)'),
    ],
)
def test_confirmed_edges_come_first_and_others_say_why(verdicts: dict[int, str], text: str) -> None:
    assert circuit_text(CIRCUIT, lambda source, _: verdicts.get(source)) == f'OF1 "king" = {text}'


def test_a_circuit_of_nothing_that_shows_is_zero() -> None:
    assert circuit_text({**CIRCUIT, "terms": CIRCUIT["terms"][3:]}, lambda *_: None) == 'OF1 "king" = 0'
