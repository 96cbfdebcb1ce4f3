"""The page in Chromium: every control by mouse and by keyboard, any token as text, nothing that axe finds serious."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from saelink.evidence.effectiveness import EffectivenessStage
from saelink.evidence.evaluate import EvaluateStage
from saelink.evidence.verify import VerifyStage
from saelink.job import Job
from saelink.report.notebook import Opened
from saelink.report.render import PAGE_FILE
from saelink.store.artifact import Artifact
from saelink.store.store import Store

from helpers.browsing import Visit
from helpers.reports import SETTINGS, made, pieces
from helpers.world import World

VIEWS = ["#/", "#/circuits", "#/sources", "#/outliers", "#/target/3", "#/source/2", "#/compare/3"]


@pytest.fixture(scope="module")
def report(world: World, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A report of three penalties with verdicts, beside an mlp."""
    folder = tmp_path_factory.mktemp("report")
    store = Store(folder)
    EvaluateStage(Job(world.config(folder, "connector=mlp", "connector.d_hidden=8", "l1_alpha=1e-3"), store)).pull()
    job = Job(world.config(folder, *SETTINGS, "solver=exact"), store)
    VerifyStage(job).pull()
    EffectivenessStage(job).pull()
    return made(world, folder, "solver=exact")[0]


@pytest.fixture
def visit(browser: Any, report: Artifact) -> Visit:
    return Visit(browser, report.file(PAGE_FILE))


def saved(visit: Visit, folder: Path, name: str) -> str:
    """What a button has saved; the file is taken away again."""
    path = folder / name
    visit.wait(lambda: path.exists() and path.stat().st_size)
    text = path.read_text()
    path.unlink()
    return text


def names(visit: Visit) -> list[str]:
    """The latents of a list in its order."""
    return [link.text for link in visit.all("main .listing tbody th a")]


def test_tokens_are_text_in_the_browser(browser: Any, nasty: tuple[Artifact, Store]) -> None:
    artifact, _ = nasty
    visit = Visit(browser, artifact.file(PAGE_FILE))
    seen = ""
    for place in ("#/", "#/circuits", "#/sources", *(f"#/target/{i}" for i in range(8)), "#/source/2", "#/outliers"):
        seen += visit.go(place)
        assert browser.title.endswith(f"{pieces(artifact)['head']['title']} · saelink")
        assert not visit.all("main script, main img")
    for text in (
        "<script>document.title='broken'</script>", "onerror=", "مرحبا", "new⏎line", "\ufffd", "\\u202e", "&lt;",
    ):  # fmt: skip
        assert text in seen, text
    assert visit.complaints() == []


def test_the_first_view_answers_in_figures(visit: Visit, report: Artifact) -> None:
    text = visit.go()
    for expected in ("target latents", "What targets compute", "unclear", "Which edges hold in the model", "confirmed",
                     "mean predictor", "oracle", "Percent linear", "Loss while training", "What was run",
                     "random weights", "permuted decoders"):  # fmt: skip
        assert expected in text, expected
    words = [word for word in pieces(report)["index"]["fits"][0]["word"] if word]
    for logic in ("copy", "unclear", "dense"):
        assert f"{logic} {words.count(logic)}" in text
    why = visit.one("main details summary")
    assert f"Why {words.count('unclear')} are unclear" in why.text
    why.click()
    visit.one("main details ul a").click()
    visit.at("Circuits")
    assert "logic=unclear" in visit.here and "why=" in visit.here


def test_a_plot_is_drawn_when_it_comes_into_view(visit: Visit) -> None:
    visit.go()
    visit.wait(lambda: visit.all("#frontier"))
    assert visit.run("return document.querySelector('#frontier').getBoundingClientRect().top") > 1100
    visit.run("return new Promise((done) => setTimeout(done, 500))")
    assert visit.run("return typeof window.Plotly") == "undefined", "unpacked before a plot is seen"
    visit.run("document.querySelector('#frontier').scrollIntoView()")
    visit.wait(lambda: visit.all("#frontier .main-svg"))
    visit.go("#/target/7")
    visit.run("document.querySelector('.plot').scrollIntoView()")
    visit.wait(lambda: visit.all(".plot .main-svg"))
    visit.go()
    visit.wait(lambda: visit.all(".plot"))
    assert not visit.all(".main-svg")
    visit.run("window.dispatchEvent(new Event('beforeprint'))")
    visit.wait(lambda: visit.all(".plot") and not visit.all(".plot:empty"))
    assert visit.complaints() == []


def test_search_as_one_types(visit: Visit, report: Artifact) -> None:
    visit.go("#/circuits")
    index = pieces(report)["index"]
    token = index["token"][7]
    visit.press("/", *token)
    visit.wait(lambda: visit.all("#offers li"))
    offered = [option.text for option in visit.all("#offers li")]
    assert all(f'"{token}"' in text for text in offered)
    assert any("source" in text for text in offered) or token not in index["source_token"]
    assert visit.one("#query").get_attribute("aria-expanded") == "true"
    visit.press("ARROW_DOWN", "ARROW_DOWN", "ARROW_UP")
    chosen = visit.one('#offers [aria-selected="true"]')
    assert chosen.get_attribute("id") == visit.one("#query").get_attribute("aria-activedescendant")
    name = chosen.text.split()[0]
    visit.press("ENTER")
    visit.at(name)
    assert not visit.one("#offers").is_displayed()
    visit.press("/", "I", "F", "3")
    visit.wait(lambda: visit.all("#offers li"))
    visit.one("#offers li").click()
    visit.at("IF3")
    visit.press("/", "x", "ESCAPE")  # nothing is offered for it
    assert visit.focused.get_attribute("id") != "query"
    visit.search(token)
    visit.at("Circuits")
    assert token in visit.one("main .listing tbody th").text
    visit.search("of7")
    visit.at("OF7")
    assert visit.complaints() == []


def test_a_list_is_sorted_filtered_and_saved(visit: Visit, report: Artifact, downloads: Path) -> None:
    fit = pieces(report)["index"]["fits"][0]
    visit.go("#/circuits")
    visit.one("#sort-edges").click()
    visit.wait(lambda: visit.all('th[aria-sort="ascending"] #sort-edges'))
    assert visit.focused.get_attribute("id") == "sort-edges", "the focus stays on the header"
    visit.press("ENTER")
    visit.wait(lambda: visit.all('th[aria-sort="descending"] #sort-edges'))
    edges = [fit["n_edges"][int(name[2:])] for name in names(visit)]
    assert edges == sorted(edges, reverse=True) and len(edges) == 48
    visit.one("#verdict option[value='confirmed']").click()
    visit.wait(lambda: "verdict=confirmed" in visit.here)
    expected = [i for i, counts in enumerate(fit["verdicts"]) if counts and counts[0]]
    visit.wait(lambda: len(names(visit)) == len(expected))
    visit.one("#csv").send_keys(" ")
    rows = list(csv.DictReader(saved(visit, downloads, "circuits.csv").splitlines()))
    assert [f"OF{row['target']}" for row in rows] == names(visit)
    assert [int(row["edges"]) for row in rows] == [fit["n_edges"][int(row["target"])] for row in rows]
    visit.browser.back()
    visit.wait(lambda: "verdict" not in visit.here and len(names(visit)) == 48)
    assert visit.complaints() == []


def test_circuits_by_what_the_output_owes_to_them(visit: Visit, report: Artifact) -> None:
    owed = pieces(report)["index"]["fits"][0]["effectiveness"]
    ranked = sorted((i for i, value in enumerate(owed) if value is not None), key=lambda i: -owed[i])
    visit.go("#/circuits")
    visit.one("#sort-effectiveness").click()
    visit.wait(lambda: names(visit)[0] == f"OF{ranked[0]}")
    assert [owed[int(name[2:])] for name in names(visit)] == [owed[i] for i in ranked][: len(names(visit))]
    visit.one("#owes option[value='50']").click()
    visit.wait(lambda: "owes=50" in visit.here)
    carry = next(n for n in range(len(ranked)) if sum(owed[i] for i in ranked[:n]) >= sum(filter(None, owed)) / 2)
    visit.wait(lambda: f"{carry} targets" in visit.text)
    assert names(visit) == [f"OF{i}" for i in ranked[:carry]]
    assert visit.complaints() == []


def test_keys_walk_through_a_list_and_its_cards(visit: Visit) -> None:
    visit.go("#/circuits?sort=-edges")
    listed = names(visit)
    visit.press("j", "j", "j", "k")
    assert visit.focused.text == listed[1]
    visit.press("ENTER")
    visit.at(listed[1])
    visit.press("j")
    visit.at(listed[2])
    visit.press("k")
    visit.at(listed[1])
    visit.press("ESCAPE")
    visit.at("Circuits")
    assert visit.here == "#/circuits?sort=-edges" and names(visit) == listed
    visit.press("ESCAPE")
    visit.wait(lambda: visit.here == "#/circuits")


def test_back_returns_to_where_one_was(visit: Visit) -> None:
    visit.go("#/circuits")
    link = visit.all("main .listing tbody th a")[30]
    name = link.text
    visit.run("arguments[0].scrollIntoView({block: 'center'})", link)
    there = visit.run("return window.scrollY")
    link.click()
    visit.at(name)
    assert visit.run("return window.scrollY") == 0
    assert visit.browser.title.startswith(name)
    visit.browser.back()
    visit.at("Circuits")
    visit.wait(lambda: abs(visit.run("return window.scrollY") - there) < 3)
    visit.wait(lambda: visit.focused.text == name)
    assert visit.browser.title.startswith("Circuits")


def test_all_edges_of_a_target_can_be_reached(visit: Visit, report: Artifact) -> None:
    n_edges = pieces(report)["index"]["fits"][0]["n_edges"]
    most = max(range(48), key=lambda i: n_edges[i] or 0)
    visit.go(f"#/target/{most}")
    summary = visit.one("#all-edges summary")
    assert summary.text == f"All {n_edges[most]} edges"
    summary.send_keys("\n")
    visit.wait(lambda: len(visit.all("#all-edges tbody tr")) == n_edges[most])
    visit.one("#all-edges tbody a").click()
    visit.at("IF")
    visit.browser.back()
    visit.wait(lambda: len(visit.all("#all-edges tbody tr")) == n_edges[most])
    assert visit.complaints() == []


def test_the_picture_of_a_circuit(visit: Visit, downloads: Path) -> None:
    visit.go("#/target/7")
    svg = visit.one("svg.diagram")
    boxes = lambda: [box.get_attribute("data-box") for box in visit.all("svg.diagram [data-box]")]  # noqa: E731
    assert "OF7" in boxes() and any(name.startswith("IF") for name in boxes())
    assert visit.all("svg.diagram text.label")[0].text.strip()[0] in "+\N{MINUS SIGN}"
    before = svg.get_dom_attribute("viewBox")
    svg.click()
    visit.press("+")
    assert svg.get_dom_attribute("viewBox") != before
    visit.press("ARROW_LEFT", "0")
    assert svg.get_dom_attribute("viewBox") == before
    visit.one("#OF7-in").click()
    assert svg.get_dom_attribute("viewBox") != before
    visit.one("#OF7-all").click()
    expander = visit.all('svg.diagram [data-expand^="IF"]')[-1]
    name = expander.get_attribute("data-expand")
    shown = len(boxes())
    visit.run("arguments[0].focus()", expander)
    visit.press("ENTER")
    visit.wait(lambda: visit.all(f'[data-expand="{name}"][aria-expanded="true"]'))
    assert len(boxes()) >= shown
    assert visit.focused.get_attribute("data-expand") == name, "the focus stays on what was expanded"
    visit.one("figure details summary").click()
    said = [item.text for item in visit.all("figure details li")]
    assert said and all(" to OF" in text or " to H" in text for text in said)
    visit.one("#OF7-save").click()
    drawing = ElementTree.fromstring(saved(visit, downloads, "OF7.svg"))
    assert drawing.tag.endswith("svg") and "OF7" in "".join(drawing.itertext())
    source = next(box for box in boxes() if box.startswith("IF"))
    visit.run("arguments[0].focus()", visit.one(f'svg.diagram [data-box="{source}"]'))
    visit.press("ENTER")
    visit.at(source)
    assert visit.complaints() == []


def test_labels_are_kept_saved_and_loaded(visit: Visit, downloads: Path, tmp_path: Path) -> None:
    visit.go("#/target/7")
    visit.one("#label").send_keys("royal titles", "\t", "seen in histories", "\t")
    visit.one("#star").click()
    assert visit.one("#star").get_attribute("aria-pressed") == "true"
    visit.go("#/circuits?mine=star")
    assert names(visit) == ["OF7"] and "royal titles" in visit.text
    visit.press("/", *"royal")
    visit.wait(lambda: visit.all("#offers li"))
    visit.press("ARROW_DOWN", "ENTER")
    visit.at("OF7")
    visit.go()
    visit.one("#save-labels").click()
    text = saved(visit, downloads, "labels.json")
    (entry,) = json.loads(text)["latents"]
    assert entry["latent"] == 7 and entry["label"] == "royal titles" and entry["star"]
    entry["label"] = "queens"
    other = {**entry, "sae": "another"}
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"saelink_labels": 1, "latents": [entry, other]}))
    visit.one("#load-labels").send_keys(str(path))
    visit.wait(lambda: "1 labels loaded, 1 left out" in visit.text)
    visit.go("#/target/7")
    assert visit.one("#label").get_attribute("value") == "queens"
    path.write_text("{}")
    visit.go()
    visit.one("#load-labels").send_keys(str(path))
    visit.wait(lambda: "can't be read: not a file of labels" in visit.text)
    visit.run("localStorage.clear()")
    assert visit.complaints() == []


def test_an_example_is_text_with_its_values_on_demand(visit: Visit, report: Artifact) -> None:
    visit.go("#/target/7")
    examples = Opened(report).target(7).data["examples"]
    assert visit.one(".flowing mark").text == examples[0]["tokens"][examples[0]["at"]].strip()
    assert not visit.all("table.grid")
    visit.one(".example summary").send_keys("\n")
    visit.wait(lambda: visit.all("table.grid td.at"))
    rows = [row.text for row in visit.all(".example:first-of-type table.grid th")]
    assert "activation" in rows and "predicted" in rows


def test_two_connectors_side_by_side(visit: Visit, report: Artifact) -> None:
    found = pieces(report)
    visit.go("#/target/7")
    visit.link("compare connectors").click()
    visit.at("OF7 in two connectors")
    visit.wait(lambda: len(visit.all("main section h2 a")) == 2)
    text = visit.text
    for fit in (0, 1):
        assert f"FVU {found[f'circuit{fit}/0']['7']['fvu']:.3g}" in text
    visit.one("#with option[value='2']").click()
    visit.wait(lambda: "with=2" in visit.here and "l1_alpha 0.03" in visit.one("main section:nth-of-type(2) h2").text)
    assert visit.focused.get_attribute("id") == "with"
    assert visit.complaints() == []


CHOICES = [
    ("#/circuits", "fit"), ("#/circuits", "logic"), ("#/circuits?logic=unclear", "why"), ("#/circuits", "verdict"),
    ("#/circuits", "fvu"), ("#/circuits", "effect"), ("#/circuits", "owes"), ("#/circuits", "mine"),
    ("#/sources", "mine"), ("#/target/7", "fit"), ("#/compare/7", "fit"), ("#/compare/7?with=1", "with"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "name"), CHOICES)
def test_a_choice_is_made_by_keyboard(visit: Visit, where: str, name: str) -> None:
    visit.go(where)
    before = visit.here
    visit.run("arguments[0].focus()", visit.one(f"main #{name}"))
    visit.press("ARROW_DOWN")
    visit.wait(lambda: visit.here != before and f"{name}=" in visit.here)
    visit.wait(lambda: visit.focused.get_attribute("id") == name)
    assert visit.complaints() == []


@pytest.mark.parametrize("where", VIEWS)
def test_every_control_has_a_name_and_what_titles_say_is_there_without_a_mouse(visit: Visit, where: str) -> None:
    visit.go(where)
    visit.check_controls()


def test_neighbours_notes_and_the_rest_by_keyboard(visit: Visit) -> None:
    visit.go("#/target/7")
    for key, name in (("next", "OF8"), ("previous", "OF7")):
        visit.one(f"#{key}").send_keys("\n")
        visit.at(name)
    visit.one("#note").send_keys("a note", "\t")
    visit.wait(lambda: "kept in this browser" in visit.text)
    visit.one("#star").send_keys(" ")
    assert visit.one("#star").text.startswith("★")
    visit.one("#star").send_keys("\n")
    assert visit.one("#star").text.startswith("☆")
    visit.run("localStorage.clear()")
    before = visit.one("svg.diagram").get_dom_attribute("viewBox")
    visit.one("#OF7-out").send_keys(" ")
    assert visit.one("svg.diagram").get_dom_attribute("viewBox") != before
    visit.one("#OF7-all").send_keys("\n")
    assert visit.one("svg.diagram").get_dom_attribute("viewBox") == before
    for menu, title in (("sources", "Source latents"), ("outliers", "Outlier latents"), ("circuits", "Circuits")):
        visit.one(f"#menu-{menu}").send_keys("\n")
        visit.at(title)
    assert visit.one("#menu-circuits").get_attribute("aria-current") == "page"
    visit.one("main .columns-mean summary").send_keys("\n")
    assert "squared error over variance" in visit.one("main .columns-mean dl").text
    assert visit.complaints() == []


def test_a_permalink_names_the_connector(visit: Visit) -> None:
    visit.go("#/circuits")
    visit.one("#fit option[value='1']").click()
    visit.wait(lambda: "fit=1" in visit.here)
    visit.at("Circuits")
    first = visit.one("main tbody a")
    name = first.text
    first.click()
    visit.at(name)
    assert "fit=1" in visit.here


def test_a_report_without_verdicts_says_so(browser: Any, world: World, tmp_path: Path) -> None:
    artifact, _ = made(world, tmp_path, "solver=exact", "eval.verify=false", "report.ablated=0")
    visit = Visit(browser, artifact.file(PAGE_FILE))
    assert "Not measured: see below." in visit.go()
    assert "(unverified)" in visit.go("#/circuits") and not visit.all("#verdict, #sort-effect")
    assert "edges are not verified" in visit.go("#/target/7")
    visit.go("#/compare/7")
    assert visit.complaints() == []


def test_axe_finds_nothing_serious(visit: Visit) -> None:
    assert visit.serious(VIEWS) == []


@pytest.mark.parametrize("where", ["#/", "#/circuits", "#/target/3", "#/outliers", "#/compare/3", "#/sources"])
def test_it_fits_a_phone(browser: Any, nasty: tuple[Artifact, Store], where: str) -> None:
    assert Visit(browser, nasty[0].file(PAGE_FILE)).width_on_phone(where) <= 390
