"""What the Python functions return shows itself, on a terminal and in a notebook; help(saelink) names them."""

from __future__ import annotations

import inspect
import pydoc
import re
import subprocess
import sys
import textwrap
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import saelink
from saelink.errors import SaelinkError
from saelink.report.html import box, facts_table, grid, lines_of_text, link, note, picture, shares_bar
from saelink.report.shown import ByHook, EdgeVerdict, LoadedConnector, Shown, Sweep, VerifiedEdges
from saelink.store.store import Store
from saelink.tracking.sweep import gathered

from helpers.world import World

QUIET = saelink.Observer()

NASTY = "<script>alert(1)</script>\"'><img src=x>&amp;"

SMALL = ["solver=exact", "l1_alpha=1e-3", "report.ablated=1", "report.l1_alphas=[]"]


class Reader(HTMLParser):
    """The tags of a piece of HTML, which has to close what it opens, and its text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag != "img":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_text_is_escaped() -> None:
    parts = [
        box(NASTY), facts_table([(NASTY, NASTY)]), grid([NASTY], [[NASTY]]), lines_of_text([NASTY]), link(NASTY, NASTY),
        note(NASTY), picture(b"png", NASTY, 10), shares_bar([(NASTY, 1.0, "#fff")]),
    ]  # fmt: skip
    for part in parts:
        read = Reader(part)
        assert "script" not in read.tags and read.tags.count("img") == ("data:image" in part), part
        assert NASTY in read.text or "data:image" in part


@pytest.fixture(scope="module")
def results(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One of everything that the functions give, in one store."""
    outputs = tmp_path_factory.mktemp("shown")
    job = world.config(outputs, *SMALL)
    made: dict[str, Any] = {
        "acts": saelink.cache_acts(job, QUIET),
        "latents": saelink.encode_latents(job, QUIET),
        "connector": saelink.fit_connector(job, QUIET),
        "evaluation": saelink.evaluate_connector(job, QUIET),
        "verdicts": saelink.verify_edges(job, QUIET),
        "report": saelink.make_report(job, QUIET),
        "export": saelink.export_connector(job, QUIET),
        "graph": saelink.prompt_graph(job, "the old king sat on the mat", QUIET),
    }
    made["sweep"] = saelink.sweep_connectors(
        world.config(outputs, "solver=exact", "l1_alpha=[1e-3,1e-2]"),
        world.config(outputs, "connector=nonlinear", "solver.tokens=4096", "l1_alpha=1e-3"),
        observer=QUIET,
    )
    made["opened"] = saelink.open(made["report"].key, str(outputs))
    made["loaded"] = saelink.load_connector(made["export"].path)
    return made


def test_everything_shows_itself(results: dict[str, Any]) -> None:
    for name, result in results.items():
        html = Reader(result._repr_html_())
        assert {"script", "style", "link"}.isdisjoint(html.tags), name
        assert len(repr(result).splitlines()) >= 3 and "object at" not in repr(result), name
    facts = results["connector"].facts
    for shown in (repr(results["connector"]), Reader(results["connector"]._repr_html_()).text):
        for expected in (
            "blocks.1.hook_resid_mid -> blocks.1.hook_mlp_out", "linear, l1_alpha 0.001, by exact", "layer 1",
            f"{facts['validation_fvu']:.3f}", f"{facts['n_edges']:,} non-zero", f"{facts['l1']:.3f}",
        ):  # fmt: skip
            assert expected in shown, expected
    circuit = results["evaluation"].file("circuits.txt").read_text().splitlines()[0]
    assert circuit in repr(results["evaluation"]) and circuit in Reader(results["evaluation"]._repr_html_()).text
    assert "report.html" in results["report"]._repr_html_()
    kinds = {"acts": ByHook, "verdicts": VerifiedEdges, "sweep": Sweep, "loaded": LoadedConnector, "graph": Shown}
    assert all(isinstance(results[name], kind) for name, kind in kinds.items())


def test_a_sweep_is_that_of_the_store(results: dict[str, Any]) -> None:
    sweep: Sweep = results["sweep"]
    store = Store(results["connector"].path.parents[1])
    assert [row["connector"] for row in sweep.points] == ["linear", "linear", "nonlinear"]
    assert sweep.points == gathered(store, sweep.id).rows == saelink.open_sweep(sweep.id, str(store.root)).points
    assert [connector.key for connector in sweep.connectors] == [row["train"] for row in sweep.points]
    assert {path.name for path in sweep.folder.iterdir()} == {"jobs", "pareto.csv", "pareto.png"}
    text = Reader(sweep._repr_html_()).text
    assert all(row["train"] in text and row["train"] in repr(sweep) for row in sweep.points)
    assert text.count("★") == 1 + sum(row["pareto"] for row in sweep.points)
    assert results["connector"].key in [row["train"] for row in sweep.points]  # as when it is fitted alone
    with pytest.raises(SaelinkError, match="sweep_connectors: give one"):
        saelink.sweep_connectors()
    with pytest.raises(SaelinkError, match="no sweep sweepno"):
        saelink.open_sweep("sweepno", str(store.root))


def test_verdicts_are_looked_up_by_edge(results: dict[str, Any]) -> None:
    verdicts: VerifiedEdges = results["verdicts"]
    edges = verdicts.tensors("edges.safetensors")
    source, target = int(edges["source"][0]), int(edges["target"][0])
    found = verdicts.edge(source, target)
    assert isinstance(found, EdgeVerdict) and found.claim == edges["claim"][0].item()
    claimed = {*zip(edges["source"].tolist(), edges["target"].tolist(), strict=True)}
    absent = next((s, target) for s in range(48) if (s, target) not in claimed)
    assert verdicts.edge(*absent) is None


def test_a_damaged_artifact_says_so(world: World, tmp_path: Path) -> None:
    fitted = saelink.fit_connector(world.config(tmp_path, *SMALL), QUIET)
    (fitted.path / "cfg.json").write_text("{}")
    again = Shown(fitted)
    assert "is damaged" in repr(again) and "is damaged" in again._repr_html_()


def test_showing_leaves_the_plots_of_a_notebook_alone(results: dict[str, Any]) -> None:
    """No backend is chosen, which would turn off a notebook's own pictures."""
    sweep: Sweep = results["sweep"]
    script = f"""
        import sys, saelink
        saelink.open_sweep({sweep.id!r}, {str(sweep.folder.parents[1])!r})._repr_html_()
        assert "matplotlib.figure" in sys.modules and "matplotlib.pyplot" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


def test_help_tells_what_to_call() -> None:
    doc = saelink.__doc__
    assert doc is not None and len(doc.splitlines()) <= 32
    text = pydoc.plain(pydoc.render_doc(saelink))
    for name in saelink.__all__:
        assert re.search(rf"\b{name}\b", doc), f"{name} is not in the package's docstring"
        described = inspect.getdoc(getattr(saelink, name))
        assert described and described.splitlines()[0] in text, name
        assert name in dir(saelink)
        if inspect.isfunction(getattr(saelink, name)):
            assert "Raises SaelinkError" in " ".join(described.split()), name


def test_the_example_of_the_docstring_runs(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from saelink import api

    configure = api.configure
    base = [o for o in world.overrides(tmp_path) if not o.startswith("solver")]
    monkeypatch.setattr(api, "configure", lambda *overrides: configure(*base, *overrides))
    example = [line[4:] for line in (saelink.__doc__ or "").splitlines() if line.startswith("    ")][:4]
    assert example[0] == "import saelink" and "evaluate_connector" in example[-1]
    names: dict[str, Any] = {}
    for line in example:  # a variable is assigned in every line but the first and the last
        exec(line, names)
    assert names["fitted"].key in {path.name for path in (tmp_path / "train").iterdir()}
