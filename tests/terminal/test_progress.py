"""What is printed while work goes on: bars on a terminal of 80 columns, lines elsewhere, what is found once a stage."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from saelink.terminal.progress import TerminalObserver

WORK = """
import time
from saelink.terminal.progress import TerminalObserver
observer = TerminalObserver()
with observer.progress("train", 2304, "targets") as outer:
    for _ in range(4):
        outer.advance(500, "gap 1.2e-04")
        with observer.progress("effects", 400_000, done=1000) as inner:
            inner.advance(150_000)
            time.sleep(0.3)
        observer.say("gram 123456789abc: done in 3 s")
observer.say("the end")
"""


def on_a_terminal(code: str, out: Path | None = None) -> str:
    """All that arrives at a terminal of 80 columns; standard output goes to a file where one is given."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm"}
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        environment.pop(name, None)
    file = out.open("w") if out is not None else theirs
    process = subprocess.Popen([sys.executable, "-c", code], stdout=file, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # nobody writes any more
            break
        if not part:
            break
        shown += part
    assert process.wait() == 0, shown
    return shown.decode()


def test_bars_on_a_terminal() -> None:
    shown = on_a_terminal(WORK)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    rows = [row for row in re.split(r"[\r\n]+", plain) if row.strip()]
    bars = [row for row in rows if "targets" in row and "/s" in row]
    assert any("1,000/2,304 targets" in row and "gap 1.2e-04" in row for row in bars), rows
    assert any("151,000/400,000 tokens" in row for row in rows), rows
    assert all(len(row) <= 80 for row in rows), rows
    assert plain.count("gram 123456789abc: done in 3 s") == 4 and rows[-1].endswith("the end")


def test_lines_in_a_file_beside_bars_on_a_terminal(tmp_path: Path) -> None:
    shown = on_a_terminal(WORK, tmp_path / "out")
    lines = (tmp_path / "out").read_text().splitlines()
    assert lines == ["gram 123456789abc: done in 3 s"] * 4 + ["the end"]
    assert "targets" in shown and "the end" not in shown


def test_what_is_found_is_one_line_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    observer = TerminalObserver()
    for line in ("train a: up to date", "train b: up to date", "edges c: up to date"):
        observer.found(line)
    observer.say("train d: done in 1 s")
    TerminalObserver(verbose=False).found("gram e: up to date")
    assert capsys.readouterr().out.splitlines() == [
        "train a: up to date",
        "edges c: up to date",
        "train d: done in 1 s",
    ]
