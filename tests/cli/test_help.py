"""`--help` and `--help-all` of the stage commands: what they say is true, complete and fits the terminal."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from saelink.cli.app import app
from saelink.cli.help import first_sentence, two_columns
from saelink.cli.pages import PAGES
from saelink.cli.words import is_change, is_override
from saelink.config.texts import docstrings

from helpers.world import Run, composed

HOUSEKEEPING = {"cite", "ls", "rm", "push", "gc", "pareto"}


def test_every_stage_command_has_a_page() -> None:
    assert set(PAGES) == {command.name for command in app.registered_commands} - HOUSEKEEPING


@pytest.mark.parametrize("command", PAGES)
def test_help_is_true_and_fits_the_terminal(saelink: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """Settings that exist, with the values of this command and their whole texts; no line is cut."""
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = saelink(command, "-h", "layer=3", "connector=skip", "l1_alpha=[1e-4,1e-3]", bare=True)
    assert code == 0 and not err and out.startswith(f"Usage: saelink {command} ")
    assert max(map(len, out.splitlines())) <= 80
    flat, page = " ".join(out.split()), PAGES[command]
    assert " ".join(page.about.split()) in flat and "linear, mlp, nonlinear, sae, skip*" in flat
    for text in [*page.settings, *(f"  {example}" for example in page.examples)]:
        assert f"\n{text}\n" in out
    raw: Any = OmegaConf.structured(composed(["connector=skip"]))
    names = re.findall(r"^  ([a-z_]\w*(?:\.\w+)*)=", out, re.MULTILINE)
    assert len(names) == len(set(names)) and 5 <= len(names) <= 40
    for name in names:
        above, _, last = name.rpartition(".")
        node = OmegaConf.select(raw, above) if above else raw
        assert first_sentence(docstrings(OmegaConf.get_type(node))[last]) in flat, name
    if "layer" in names:
        assert "layer=3 " in out
    if "l1_alpha" in names:
        assert "l1_alpha=[0.0001, 0.001]" in out and "connector.d_hidden=256 " in out
        assert "solver.unpenalised=0.5" in out


def test_help_on_a_narrow_terminal(saelink: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    code, out, _ = saelink("run", "-h", bare=True)
    examples = {f"  {example}" for example in PAGES["run"].examples}  # a command to copy stays on one line
    assert code == 0 and max(len(line) for line in out.splitlines() if line not in examples) <= 60


@pytest.mark.parametrize("example", [example for page in PAGES.values() for example in page.examples])
def test_examples_compose(example: str) -> None:
    program, command, *words = shlex.split(example)
    assert program == "saelink" and command in PAGES
    overrides = [word for word in words if is_override(word) and not is_change(word)]
    for swept in ([override] for override in overrides) if "-m" in words else [overrides]:
        composed([re.sub(r"=([^\[,]+),.*", r"=\1", override) for override in swept])


def test_help_all_lists_every_setting(saelink: Run, tmp_path: Path) -> None:
    code, out, _ = saelink("encode", "--help-all", "layer=3", bare=True)
    assert code == 0 and out.startswith("Usage: saelink encode ") and "Examples" not in out
    listed = out.split("settings.md explains each:\n")[1]
    assert OmegaConf.create(listed).layer == 3 and "kept_tokens: 4096" in listed
    code, job, _ = saelink("encode", "--cfg", "job", "layer=3", bare=True)
    assert code == 0 and OmegaConf.create(listed) == OmegaConf.create(job)
    assert list(tmp_path.iterdir()) == []


def test_what_stands_before_the_settings(saelink: Run) -> None:
    assert saelink("graph", "-h", bare=True)[1].startswith('Usage: saelink graph "PROMPT" [KEY=VALUE]...\n')
    assert saelink("show", "-h", bare=True)[1].startswith("Usage: saelink show (target|source|head) NUMBER [--json] ")
    assert saelink("track", "-h", bare=True)[1].startswith("Usage: saelink track KEY... ")
    assert "half a minute on 2 cores" in " ".join(saelink("verify", "-h", bare=True)[1].split())


def test_a_sentence_ends_where_the_next_begins() -> None:
    assert first_sentence("One, e.g. this. Two.") == "One, e.g. this"
    assert first_sentence("values, such as 1.5") == "values, such as 1.5"


def test_a_long_name_has_its_text_below() -> None:
    assert two_columns("a=1", "first second", 8, 15) == "  a=1   first\n        second"
    assert two_columns("a_long_name=1", "first", 8, 15) == "  a_long_name=1\n        first"


def test_the_version_is_the_packages(saelink: Run) -> None:
    from saelink import __version__

    assert saelink("--version", bare=True) == (0, f"saelink {__version__}\n", "")
