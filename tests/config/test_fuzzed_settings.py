"""Anything for a setting: it is accepted, or refused in one line. benchmarks/fuzzed_settings.py does it at length."""

from __future__ import annotations

from pathlib import Path

import pytest

import saelink
from saelink.errors import SaelinkError

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


@pytest.mark.parametrize("word", ["=5", "+=5", "++=[1]", "= 5", "~", "~=5", "=18446744073709551616"])
def test_what_has_no_name_is_no_setting(word: str) -> None:
    for others in ([], ["$sae=post", "++data=hub"]):
        with pytest.raises(SaelinkError, match="there is no name; settings are key=value, such as layer=3"):
            saelink.configure(*others, word)


@pytest.mark.parametrize("folder", ["/me/.venv/lib/python3.11/site-packages/", "/usr/lib/python3.12/", "/me/"])
def test_a_failure_names_no_folder_of_this_machine(folder: str) -> None:
    from benchmarks.fuzzed_settings import told

    trace = f'Traceback:\n  File "{folder}saelink/job.py", line 7, in f\n    x\nValueError: y'
    assert told(trace) == 'Traceback:\n  File "saelink/job.py", line 7, in f\n    x\nValueError: y'
