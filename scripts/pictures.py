"""The pictures of the docs: the terminal at 80 columns, and the charts that a run logs to W&B, read back from it.

    python scripts/pictures.py terminal FOLDER    # docs/terminal/*.png, in a folder where the quickstart was run
    python scripts/pictures.py charts RUN         # docs/charts.png, of an offline run of a connector or a sweep

The terminal's pictures need Chromium, which draws them.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

DOCS = Path(__file__).parent.parent / "docs"

COLUMNS = 80

SHOWN = {
    "help": ["--help"],
    "train-help": ["train", "--help"],
    "train": ["train", "solver=adam", "l1_alpha=1e-3", "wandb.mode=disabled"],
    "evaluate": ["evaluate"],
    "verify": ["verify"],
    "sweep": ["train", "l1_alpha=[1e-4,1e-3,1e-2]"],
    "ls": ["ls", "--stage", "train", "--stage", "evaluate", "--sort", "fvu"],
    "show": ["show", "target", "1262"],
    "mistake": ["train", "layr=3"],
}
"""By picture the command that it shows."""


def on_a_terminal(words: list[str], folder: Path) -> str:
    """What a command prints on a terminal, colours and all. Bars go elsewhere, because they leave nothing behind."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "saelink", *words], cwd=folder, env=environment, stdout=theirs, stderr=errors
        )
        os.close(theirs)
        printed = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # it has ended
                break
            if not part:
                break
            printed += part
        process.wait()
        errors.seek(0)
        printed += b"".join(line for line in errors.read().splitlines(True) if line.startswith(b"saelink:"))
    return printed.decode().replace("\r\n", "\n")


def draw_terminal(name: str, printed: str, folder: Path) -> None:
    """A PNG of the text as a terminal of 80 columns shows it."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    command = " ".join(SHOWN[name])
    console.print(Text.from_ansi(f"$ saelink {command}\n{printed.rstrip()}"), soft_wrap=False)
    svg = console.export_svg(title=f"saelink {command}", font_aspect_ratio=0.6)
    # Its fonts would be fetched from afar.
    svg = "\n".join(line for line in svg.splitlines() if "url(" not in line or "clip-path" in line)
    svg = svg.replace("Fira Code, monospace", "DejaVu Sans Mono, monospace").replace("Fira Code", "DejaVu Sans Mono")
    (page := folder / f"{name}.svg").write_text(svg)
    width, height = (float(part) for part in svg.split('viewBox="0 0 ')[1].split('"')[0].split())
    target = DOCS / "terminal" / f"{name}.png"
    subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--disable-background-networking", f"--window-size={width:.0f},{height:.0f}", f"--screenshot={target}",
         f"--user-data-dir={folder}/chromium", page.as_uri()],
        check=True, capture_output=True,
    )  # fmt: skip
    print(target)


def records(run: Path) -> list[dict[str, Any]]:
    """Every record of an offline run, by W&B's own reader."""
    wandb = Path(sys.executable).parent / "wandb"
    file = next(run.glob("*.wandb"))
    done = subprocess.run([wandb, "leet", "inspect", "--json", file], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def draw_charts(run: Path) -> None:
    """The curves and tables of a run as its dashboard draws them."""
    from matplotlib.figure import Figure

    history = [record["history"]["item"] for record in records(run) if record["type"] == "history"]
    curves = {
        ("way/l1", "L1"): {"way/mse": "the fit's way: MSE"},
        ("tokens", "tokens"): {"train_mse": "train MSE", "validation_mse": "validation MSE"},
        ("live/done", "done"): {"live/per_second": "units a second"},
    }
    tables = {
        name: next(run.glob(f"files/media/table/pareto/{name}_table_*.json")) for name in ("mse", "fvu", "n_edges")
    }
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    panels = figure.subplots(2, 3)
    for axes, ((step, label), shown) in zip(panels[0], curves.items(), strict=True):
        for name, title in shown.items():
            points = [(item[step], item[name]) for item in history if step in item and name in item]
            axes.plot(*zip(*points, strict=True), ".-", label=title) if points else axes.text(0.3, 0.5, "no points")
        axes.set(xlabel=label, title=", ".join(shown))
        axes.legend(fontsize=7) if len(shown) > 1 else None
    for axes, (name, file) in zip(panels[1], tables.items(), strict=True):
        table = json.loads(file.read_text())
        x, key, y = (table["columns"].index(column) for column in ("step", "lineKey", "lineVal"))
        for line in dict.fromkeys(row[key] for row in table["data"]):
            points = [(row[x], row[y]) for row in table["data"] if row[key] == line]
            axes.plot(*zip(*points, strict=True), ".-", label=line)
        axes.set(xlabel="log10 L1", title=f"pareto/{name} (log10)")
        axes.legend(fontsize=7)
    figure.savefig(DOCS / "charts.png", dpi=110, metadata={"Software": None})
    print(DOCS / "charts.png")


def main() -> None:
    match sys.argv[1:]:
        case ["terminal", folder, *names]:
            with tempfile.TemporaryDirectory() as temporary:
                for name in names or SHOWN:
                    draw_terminal(name, on_a_terminal(SHOWN[name], Path(folder)), Path(temporary))
        case ["charts", run]:
            draw_charts(Path(run))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
