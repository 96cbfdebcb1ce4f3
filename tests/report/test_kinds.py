"""Connectors of two kinds on one page: which one is shown, named and compared, and what is advised."""

from __future__ import annotations

from typing import Any

import pytest

from saelink.evidence.verify import VerifyStage
from saelink.fit.train import TrainStage
from saelink.job import Job
from saelink.report.render import PAGE_FILE
from saelink.store.artifact import Artifact
from saelink.store.store import Store

from helpers.browsing import Visit
from helpers.reports import SETTINGS, made, pieces
from helpers.world import World

CAUSAL = ["solver=causal", "l1_alpha=1e-3", "solver.tokens=2048"]


@pytest.fixture(scope="module")
def reports(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    """A lasso at three penalties, alone and with a causal connector behind them, all verified."""
    folder = tmp_path_factory.mktemp("kinds")
    store = Store(folder)
    VerifyStage(Job(world.config(folder, *SETTINGS, "solver=exact"), store)).pull()
    alone = made(world, folder, "solver=exact")[0]
    causal = Job(world.config(folder, *SETTINGS, *CAUSAL), store)
    VerifyStage(causal).pull()
    return alone, made(world, folder, "solver=exact", f"report.connectors=[{TrainStage(causal).key}]")[0]


@pytest.fixture
def visit(browser: Any, reports: tuple[Artifact, Artifact]) -> Visit:
    return Visit(browser, reports[1].file(PAGE_FILE))


def named(report: Artifact) -> list[str]:
    return [f"{fit['name']}, l1_alpha {fit['l1_alpha']:.3g}" for fit in pieces(report)["head"]["fits"]]


def test_the_first_view_shows_the_connector_one_chooses(visit: Visit, reports: tuple[Artifact, Artifact]) -> None:
    found = pieces(reports[1])
    fits, last = found["head"]["fits"], len(found["head"]["fits"]) - 1
    assert [fit["name"] == fits[0]["name"] for fit in fits] == [True] * last + [False]
    visit.go()
    assert [option.text for option in visit.all("#fit option")] == named(reports[1])
    for number in (0, last):
        visit.one(f"#fit option[value='{number}']").click()
        fvu = f"{fits[number]['metrics']['fvu']:.2g}".removeprefix("0")
        visit.wait(lambda fvu=fvu: fvu in visit.one("main .tiles .tile:nth-of-type(3) .big").text)
        n_predicted = sum(fvu is not None and fvu < 0.5 for fvu in found["index"]["fits"][number]["fvu"])
        tile = visit.one("main .tiles .tile:nth-of-type(2) a")
        assert tile.text == f"{n_predicted:,}"
    tile.click()
    visit.at("Circuits")
    assert f"fit={last}" in visit.here, "its links lead to the same connector"
    assert visit.complaints() == []


def test_claims_are_named_by_kind_and_penalty(visit: Visit, reports: tuple[Artifact, Artifact]) -> None:
    visit.go()
    rows = [link.text for link in visit.all("main table tr.own a") if "l1_alpha" in link.text]
    verified = pieces(reports[1])["head"]["verified"]
    assert rows == [named(reports[1])[v["fit"]] for v in verified] and len(rows) == len(set(rows)) > 1


def test_a_comparison_begins_with_another_kind(visit: Visit, reports: tuple[Artifact, Artifact]) -> None:
    names = named(reports[1])
    for fit, other in ((0, len(names) - 1), (len(names) - 1, 0)):
        visit.go(f"#/compare/7?fit={fit}" if fit else "#/compare/7")
        chosen = [visit.one(f"#{name} option:checked").text for name in ("fit", "with")]
        assert chosen == [names[fit], names[other]]


def test_a_causal_fit_is_advised_where_there_is_none(
    visit: Visit, browser: Any, reports: tuple[Artifact, Artifact]
) -> None:
    advice = "solver=causal"
    assert advice in Visit(browser, reports[0].file(PAGE_FILE)).go()
    for where in ("#/", "#/compare/7"):
        assert advice not in visit.go(where)
