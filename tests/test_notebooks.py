"""examples/: every notebook runs from top to bottom on the small world, and shows what it promises."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from helpers.slurm import has
from helpers.world import TESTS, World

EXAMPLES = TESTS.parent / "examples"

NOTEBOOKS = sorted(path.stem for path in EXAMPLES.glob("*.ipynb"))

ON_SMALL_WORLD = """
from helpers.documented import completed
from saelink import api

configure = api.configure
api.configure = lambda *overrides: configure(*completed({world!r}, overrides))
"""
"""The first cell: `saelink.configure` fills in the small world's model, text and SAEs, and sizes that fit them."""


PROMISED = {
    "quickstart": ["linear, l1_alpha", "FVU", "Pareto", "data:image/png;base64", "open the page", "OF"],
    "your_saes": ["encode", "dead", "linear, l1_alpha", "Pareto"],
    "reading_circuits": ["logic", "precision 1x", "confirmed", "random weights", "predicts</span>"],
}
"""By notebook what its outputs show, as HTML."""

KERNEL = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
"""This Python's kernel, whatever others are installed for the user."""


def executed(notebook: Any, world: World, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The notebook's cells with their outputs, run in `folder`. Raises CellExecutionError where one fails."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # small matrices: threads would wait for each other
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    share = folder / "jupyter/kernels/python3"
    share.mkdir(parents=True)
    (share / "kernel.json").write_text(json.dumps({"argv": KERNEL, "display_name": "Python 3", "language": "python"}))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(folder / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "runtime"))
    first = nbformat.v4.new_code_cell(ON_SMALL_WORLD.format(world=world.overrides("outputs")))
    notebook.cells.insert(0, first)
    manager = AsyncKernelManager(kernel_name="python3", transport="ipc", connection_file=str(folder / "kernel"))
    NotebookClient(notebook, km=manager, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook.cells[1:]


def shown(cells: list[Any], kind: str) -> list[str]:
    """What the cells show as `kind` of MIME type."""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return [output["data"][kind] for output in outputs if kind in output.get("data", {})]


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty folder with a short name: the kernel's sockets lie in it, and their paths may have 107 bytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name: str, world: World, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "your_saes" and not has("sae_lens"):  # it and transformer-lens 4 exclude each other
        pytest.skip("trains SAEs with sae-lens")
    cells = executed(nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4), world, place, monkeypatch)
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code")
    for cell in cells:  # a result shows itself once, and nothing else is displayed
        assert sum("data" in output for output in cell.get("outputs", [])) <= 1, cell["source"]
    html = "\n".join(shown(cells, "text/html"))
    for promised in PROMISED[name]:
        assert promised in html, promised
    assert "<script" not in html and not re.search(r'src="(?!data:)', html)  # nothing is run or fetched


def test_every_notebook_promises_something() -> None:
    assert sorted(PROMISED) == NOTEBOOKS


def test_a_cell_that_fails_is_an_error(world: World, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell('import saelink\nsaelink.configure("no_such_setting=1")')]
    with pytest.raises(CellExecutionError, match=r"SaelinkError.*no_such_setting"):
        executed(notebook, world, place, monkeypatch)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_without_outputs(name: str) -> None:
    text = (EXAMPLES / f"{name}.ipynb").read_text()
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    assert not re.search(r"/(home|root|tmp|Users|work)/", text)
    for link in re.findall(r"\]\(([^)#:\s]+)\)", text):
        assert (EXAMPLES / link).exists(), link
