"""What the report of link=ov shows of heads: the terminal's readers' values, and arcs, bars and tables in Chromium."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saelink.cli.jobs import looks_of
from saelink.evidence import moved_cards
from saelink.evidence.moved_edges import moved_edges
from saelink.evidence.moved_heads import head_card
from saelink.interventions.moved_effects import MovedEffectsStage
from saelink.job import Job
from saelink.looks.deletions import QKDeletionsStage
from saelink.looks.stage import QKStage, before_attention
from saelink.report.heads import HeadPages, sentence_of
from saelink.report.render import PAGE_FILE
from saelink.report.stage import ReportStage
from saelink.store.artifact import Artifact
from saelink.store.store import Store
from saelink.terminal.moved import BINS

from helpers.browsing import Visit
from helpers.reports import SETTINGS, made, pieces
from helpers.world import World

OV = (
    "link=ov", "layer=1", "link.kept=40", "solver=exact", "verify.tokens_per_source=6", "report.l1_alphas=[]",
    "report.ablated=2", "qk.tokens=512", "qk.pairs=3", "qk.together=[1,3]", "qk.nulls=false",
)  # fmt: skip

Made = tuple[Artifact, Artifact, Job]
"""The report before anything was measured, the one after, and the job."""


@pytest.fixture(scope="module")
def reports(world: World, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("heads")
    before, store = made(world, folder, *OV)
    job = Job(world.config(folder, *SETTINGS, *OV), store)
    MovedEffectsStage(job).pull()
    looks_of(job)
    return before, made(world, folder, *OV)[0], job


@pytest.fixture
def visit(browser: Any, reports: Made) -> Visit:
    return Visit(browser, reports[1].file(PAGE_FILE))


def bins(distances: list[float]) -> list[float]:
    """Shares of BINS in a text of 16 tokens, by counting each distance."""
    found = [0.0] * sum(first < 16 for first in BINS)
    for distance, share in enumerate(distances):
        found[max(i for i, first in enumerate(BINS) if first <= distance)] += share
    return found


def test_a_card_has_what_the_terminal_prints_of_its_edges(reports: Made) -> None:
    _, artifact, job = reports
    data = pieces(artifact)
    heads = data["head"]["heads"]
    assert heads["targets"] == len(data["moved/0"]) > 40 and heads["d_source"] == 48 and len(heads["alone"]) == 2
    for target in [heads["alone"][0], 13]:
        expected = moved_edges(job, target)
        shown = data["moved/0"][str(target)]
        assert len(shown) == len(expected) > 0
        for edge, own in zip(shown, expected, strict=True):
            assert (f"IF{edge['source']}", edge["near"], edge["far"]) == (own.name, own.near, own.far)
            assert (edge["claim"], edge["effect"]) == pytest.approx((own.claim, own.effect), rel=1e-3)
            assert {head: share for head, share, _ in edge["heads"]} == pytest.approx(own.heads, rel=1e-3, abs=1e-5)
            alone = {head: value for head, _, value in edge["heads"]}
            wanted = own.alone if target in heads["alone"] else dict.fromkeys(own.heads)
            assert wanted is not None
            for head, value in wanted.items():
                assert alone[head] == (None if value is None else pytest.approx(value, rel=1e-3, abs=1e-5))
            assert [share for _, share in edge["bins"]] == pytest.approx(bins(own.distances), abs=2e-3)
            assert [share for _, share in edge["tokens"]] == pytest.approx([s for _, s in own.tokens], rel=1e-3)
            for example, whole in zip(edge["examples"], own.examples, strict=True):
                assert (example["tokens"], example["key"], example["query"], example["head"]) == whole[:4]
                assert example["part"] == pytest.approx(whole.part, rel=1e-3)
            column = edge["heads"][0][0] * heads["d_source"] + edge["source"]
            assert data["index"]["source_name"][column] == f"h{edge['heads'][0][0]}.{own.name}"


def test_a_heads_page_has_what_the_terminal_prints_of_it(reports: Made) -> None:
    _, artifact, job = reports
    data = pieces(artifact)
    looking = before_attention(job)
    qk = QKStage(looking).find()
    assert qk is not None
    tested = QKDeletionsStage(looking, qk).find()
    assert tested is not None
    for head in range(4):
        shown, own = data[f"head/{head}"], head_card(job, head)
        assert (shown["group"], shown["near"], shown["far"]) == (own.group, own.near, own.far)
        assert shown["share"] == pytest.approx(own.share, rel=1e-3)
        assert shown["cosines"] == pytest.approx(own.cosines, abs=1e-4)
        assert [share for _, share in shown["bins"]] == pytest.approx(bins(own.distances), abs=2e-3)
        assert [f"IF{number}" for number, _ in shown["sources"]] == [name for name, _, _ in own.sources]
        named = [(f"IF{edge['source']}", f"OF{edge['target']}") for edge in shown["edges"]]
        assert named == [(edge.source, edge.target) for edge in own.edges]
        for edge, whole in zip(shown["edges"], own.edges, strict=True):
            assert (edge["part"], edge["share"]) == pytest.approx((whole.part, whole.share), rel=1e-3)
            assert [e["tokens"] for e in edge["examples"]] == [e.tokens for e in whole.examples]
        measured, looks = qk.json("heads.json")[head], shown["qk"]
        assert looks["together"] == measured["together"]["without sinks"] and looks["kinds"] == measured["kinds"]
        for name, mode in (("leading", "without sinks"), ("strongest", "strongest")):
            for pair, source in zip(looks[name], measured["pairs"][mode], strict=True):
                both = {key: pair[key] for key in source if key in pair and key not in ("offsets", "examples")}
                assert both == {key: source[key] for key in both} and "control" in both and "more_than_control" in both
        assert looks["qk_deletions"] == tested.json("deletions.json")[head]
        listed = data["head"]["heads"]["cards"][head]
        assert (listed["share"], listed["kinds"]) == (shown["share"], looks["kinds"])
    example = data["head/0"]["qk"]["strongest"][0]["examples"][0]
    place = qk.json("heads.json")[0]["pairs"]["strongest"][0]["examples"][0]
    ids = job.tokens.tensors("test.safetensors")["ids"][place["sequence"]]
    for end in ("query", "key"):
        assert example["tokens"][example[end]] == job.vocabulary[int(ids[place[end]])]


def test_what_was_not_measured_names_the_command(browser: Any, reports: Made) -> None:
    before, after, _ = reports
    assert before.key != after.key, "the key has what was measured since"
    visit = Visit(browser, before.file(PAGE_FILE))
    assert "saelink verify link=ov layer=1 verify.qk=true" in visit.go("#/heads")
    text = visit.go("#/head/1")
    assert "saelink verify link=ov layer=1 verify.qk=true" in text and "Leading pairs" not in text
    text = visit.go("#/target/13")
    assert "was not measured: saelink verify link=ov layer=1, then" in text
    assert ", measured" not in text
    assert visit.complaints() == []


def test_many_heads_and_latents_are_looked_at_when_asked(
    browser: Any, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moved_cards, "MOST", 0)
    artifact, _ = made(world, tmp_path, *OV, "report.ablated=0")
    assert not any(name.startswith(("moved/", "head/")) for name in pieces(artifact))
    visit = Visit(browser, artifact.file(PAGE_FILE))
    for place in ("#/heads", "#/target/13"):
        assert "saelink show head 0 link=ov layer=1" in visit.go(place)
    assert "no such place" in visit.go("#/head/0")
    assert visit.complaints() == []


def test_other_links_have_no_heads(world: World, tmp_path: Path, browser: Any) -> None:
    job = Job(world.config(tmp_path, *SETTINGS, "solver=exact"), Store(tmp_path))
    pages = HeadPages(job)
    assert pages.shown() is None and pages.inputs() == {} and pages.cards() == []
    artifact = ReportStage(job).pull()
    visit = Visit(browser, artifact.file(PAGE_FILE))
    visit.go()
    assert not visit.all("#menu-heads")
    assert "no such place" in visit.go("#/heads") and "no such place" in visit.go("#/head/0")


ENDS = """
const line = arguments[0];
const box = (e) => e.getBoundingClientRect();
const [curve, tip] = [...line.querySelectorAll(".arc path")];
const at = (t) => {
  const point = curve.getPointAtLength(t * curve.getTotalLength());
  return point.x + box(line).left;
};
const words = ["from", "to"].map((name) => box(line.querySelector("." + name)));
const middle = box(tip).left + box(tip).width / 2;
return [at(0), at(1), middle, ...words.map((r) => [r.left, r.right]), box(tip).bottom - words[1].top];
"""


def check_arcs(visit: Visit, expected: list[tuple[str, str]]) -> None:
    """The sentences in sight: the words at both ends, and an arc that leads from the one to the other."""
    lines = visit.all("main .sentence .line")
    visit.wait(lambda: all(line.find_elements("css selector", ".arc path") for line in lines))
    assert len(lines) == len(expected)
    for line, (key, query) in zip(lines, expected, strict=True):
        start, end, tip, source, target, above = visit.run(ENDS, line)
        words = [line.find_element("css selector", f".{name}").text for name in ("from", "to")]
        assert words == [key, query]
        loose = 6 if source == target else 1  # a loop stands on both sides of its word's middle
        assert source[0] - loose <= start <= source[1] + loose and target[0] - loose <= end <= target[1] + loose
        assert abs(tip - end) < 2 and -6 < above < 6


def ends(examples: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(example["tokens"][example["key"]], example["tokens"][example["query"]]) for example in examples]


def test_from_the_menu_to_a_head_and_to_a_card(visit: Visit, reports: Made) -> None:
    data = pieces(reports[1])
    visit.go()
    visit.one("#menu-heads").send_keys("\n")
    visit.at("Heads")
    visit.press("j", "j", "j", "ENTER")
    visit.at("Head 2")
    assert visit.one("#menu-heads").get_attribute("aria-current") == "page"
    assert visit.browser.title.startswith("Head 2")
    card = data["head/2"]
    pairs = [pair for pair in card["qk"]["strongest"] if pair.get("examples")]
    check_arcs(visit, ends([e for each in [*card["edges"], *pairs] for e in each["examples"]]))
    headings = [row.text for row in visit.all("main th")]
    assert {"at the query", "at the key", "control", "more", "what goes", "latents change"} <= set(headings)
    bars = visit.one("main .bars")
    for name, share in card["bins"]:
        assert f"{name} " in bars.get_attribute("aria-label") or share < 0.0005
    heights = [float(bar.get_attribute("height")) for bar in visit.all("main .bars rect")]
    shares = [share for _, share in card["bins"]]
    assert [each / max(heights) for each in heights] == pytest.approx([s / max(shares) for s in shares], abs=1e-3)
    visit.press("k")
    visit.at("Head 1")
    visit.press("ESCAPE")
    visit.at("Heads")
    visit.go("#/head/2")
    edge = card["edges"][0]
    visit.link(f"OF{edge['target']}").click()
    visit.at(f"OF{edge['target']}")
    assert visit.complaints() == []


def test_a_card_has_arcs_and_heads(visit: Visit, reports: Made) -> None:
    data = pieces(reports[1])
    target = data["head"]["heads"]["alone"][0]
    text = visit.go(f"#/target/{target}")
    edges = data["moved/0"][str(target)]
    assert "What heads move to it" in text and "alone" in text and "measured" in text
    check_arcs(visit, ends([example for edge in edges for example in edge["examples"]]))
    groups = visit.all("main .sentence [role=group]")
    first = edges[0]["examples"][0]
    says = groups[0].get_attribute("aria-label")
    assert says.startswith(f"Head {first['head']} moves IF{edges[0]['source']} from ")
    assert all(token in says for token in first["tokens"])
    assert len(visit.all("main .moved .bars")) == len(edges)
    visit.one("main .moved table a").click()
    visit.at(f"Head {edges[0]['heads'][0][0]}")
    visit.go(f"#/target/{target}")
    visit.one("main .moved h3 a").click()
    visit.at(f"h{edges[0]['heads'][0][0]}.IF{edges[0]['source']}")
    assert f"Moved by head {edges[0]['heads'][0][0]}." in visit.text
    assert visit.complaints() == [], "among them the picture, whose boxes are named h3.IF7"


PLACES = ["#/heads", "#/head/2", "#/target/13"]


@pytest.mark.parametrize("where", PLACES)
def test_every_control_of_heads_has_a_name_and_it_fits_a_phone(visit: Visit, where: str) -> None:
    visit.go(where)
    visit.check_controls()
    assert visit.width_on_phone(where) <= 390


def test_axe_finds_nothing_serious_about_heads(visit: Visit) -> None:
    assert visit.serious(PLACES) == []


def test_a_long_sentence_has_a_gap() -> None:
    tokens = [f" word{i}" for i in range(100)]
    short = sentence_of(tokens, 4, 90)
    assert short["tokens"][short["key"]] == " word4" and short["tokens"][short["query"]] == " word90"
    assert short["tokens"].count(None) == 1 and len(short["tokens"]) < 40
    assert sentence_of(tokens[:20], 3, 15) == {"tokens": tokens[:20], "key": 3, "query": 15}
