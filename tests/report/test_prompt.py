"""A prompt's graph as a page, in the browser where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saelink.circuits.stage import LayersGraphStage
from saelink.job import Job
from saelink.report.prompt import GraphPageStage
from saelink.share.graph.stage import GraphStage
from saelink.store.store import Store

from helpers.browsing import Visit
from helpers.world import Run, World


def test_the_command_writes_the_page(saelink: Run) -> None:
    code, out, err = saelink("graph", "the old king sat", "solver=exact", "l1_alpha=1e-3")
    assert code == 0, err
    (page,) = (Path(line.split(maxsplit=1)[1]) for line in out.splitlines() if line.strip().startswith("page"))
    text = page.read_text()
    assert "the old king sat" in text and "http://" not in text.replace("http://www.w3.org", "")


def test_a_graph_is_walked_by_mouse_and_keyboard(browser: Any, world: World, tmp_path: Path) -> None:
    store = Store(tmp_path)
    cfg = world.config(tmp_path, "solver=exact", "l1_alpha=1e-3")
    cfg.graph.prompt = "the old king sat on the mat"
    job = Job(cfg, store)
    graph, page = GraphStage(job).pull(), GraphPageStage(job).pull()
    document = graph.json(f"{graph.facts['slug']}.json")
    visit = Visit(browser, page.file(page.facts["file"]))
    visit.go("")
    boxes = visit.all("svg.diagram [data-box]")
    tokens = [node for node in document["nodes"] if node["feature_type"] == "embedding"]
    assert len(boxes) >= len(tokens)
    assert len(visit.all("svg.diagram .edge")) == min(60, len(document["links"]))
    target = next(node for node in document["nodes"] if node["clerp"].startswith("OF"))
    box = visit.one(f'[data-box="{target["node_id"]}"]')
    visit.run("arguments[0].focus()", box)
    visit.press("ENTER")
    visit.wait(lambda: visit.all("main h2"))
    assert target["clerp"].split()[0] in visit.one("main h2").text
    into = [link for link in document["links"] if link["target"] == target["node_id"]]
    assert len(visit.one("main section").find_elements("css selector", "tbody tr")) == len(into)
    assert f"saelink show target {target['clerp'].split()[0][2:]}" in visit.text
    visit.one("main section button").click()
    visit.wait(lambda: target["clerp"].split()[0] not in visit.one("main h2").text)
    most = visit.all("#links option")[-1]
    most.click()
    visit.wait(lambda: len(visit.all("svg.diagram .edge")) == len(document["links"]))
    assert visit.complaints() == []


def test_a_graph_over_layers_has_columns_for_each(browser: Any, world: World, tmp_path: Path) -> None:
    store = Store(tmp_path)
    cfg = world.config(tmp_path, "layers=all", "circuit.edges=gradient", "graph.node_share=0.99", "circuit.alike=1")
    cfg.graph.prompt = "the old king sat on the mat"
    job = Job(cfg, store)
    graph, page = LayersGraphStage(job).pull(), GraphPageStage(job).pull()
    document = graph.json(f"{graph.facts['slug']}.json")
    visit = Visit(browser, page.file(page.facts["file"]))
    visit.go("")
    assert len(visit.all("svg.diagram .edge")) == min(60, len(document["links"]))
    latent = next(link["target"] for link in document["links"] if not link["target"].startswith("7_"))
    box = visit.one(f'[data-box="{latent}"]')
    visit.run("arguments[0].focus()", box)
    visit.press("ENTER")
    visit.wait(lambda: visit.all("main h2"))
    assert "of what leads to it is error" in visit.text and "completeness" in visit.text
    assert visit.complaints() == []


def test_supernodes_are_taken_apart(browser: Any, world: World, tmp_path: Path) -> None:
    store = Store(tmp_path)
    cfg = world.config(tmp_path, "layers=all", "circuit.edges=gradient", "graph.node_share=0.99", "circuit.alike=0.5")
    cfg.graph.prompt = "the old king sat on the mat"
    job = Job(cfg, store)
    graph, page = LayersGraphStage(job).pull(), GraphPageStage(job).pull()
    document = graph.json(f"{graph.facts['slug']}.json")
    groups = document["qParams"]["supernodes"]
    assert len(groups) == graph.facts["groups"] > 0
    visit = Visit(browser, page.file(page.facts["file"]))
    visit.go("")
    visit.all("#links option")[-1].click()
    visit.wait(lambda: visit.all('[data-box="group 0"]'))
    members = groups[0][1:]
    assert not visit.all(f'[data-box="{members[0]}"]')
    box = visit.one('[data-box="group 0"]')
    visit.run("arguments[0].focus()", box)
    visit.press("ENTER")
    visit.wait(lambda: visit.all(".members li"))
    assert len(visit.all(".members li")) == len(members)
    button = next(each for each in visit.all("main button") if each.text == "Take apart")
    button.click()
    visit.wait(lambda: visit.all(f'[data-box="{members[0]}"]'))
    assert not visit.all('[data-box="group 0"]')
    visit.all("#groups option")[0].click()
    visit.wait(lambda: visit.all('[data-box="group 0"]'))
    assert visit.complaints() == []
