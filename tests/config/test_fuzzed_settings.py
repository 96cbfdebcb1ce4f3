"""Anything for a setting: it is accepted, or refused in one line. benchmarks/fuzzed_settings.py does it at length."""

from __future__ import annotations

from pathlib import Path

import pytest

COUNTS = {"configurations": 40, "commands": 25}


@pytest.mark.parametrize("kind", COUNTS)
def test_any_words_are_accepted_or_refused_in_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.fuzzed_settings import failures

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert list(failures(kind, "tests", COUNTS[kind], limit=float("inf"))) == []  # other words: the script
    assert list(tmp_path.iterdir()) == []
