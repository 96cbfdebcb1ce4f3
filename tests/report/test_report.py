"""The report: what it holds, any token as text, and the page in a real browser where there is one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import saelink
from saelink.errors import SaelinkError
from saelink.evidence.evaluate import EvaluateStage
from saelink.evidence.verdicts import VERDICTS
from saelink.evidence.verify import VerifyStage
from saelink.job import Job
from saelink.report.cards.cards import Cards
from saelink.report.render import PAGE_FILE
from saelink.report.stage import ReportStage
from saelink.report.stored import edges_at
from saelink.store.artifact import Artifact
from saelink.store.store import Store

from helpers.reports import SETTINGS, made, pieces
from helpers.world import Run, World


def test_it_holds_what_the_artifacts_hold(world: World, tmp_path: Path) -> None:
    artifact, store = made(world, tmp_path, "solver=exact")
    assert ReportStage(Job(world.config(store.root, *SETTINGS, "solver=exact"), store)).pull().key == artifact.key
    found = pieces(artifact)
    head, index = found["head"], found["index"]
    assert [fit["l1_alpha"] for fit in head["fits"]] == [1e-3, 1e-2, 3e-2]
    cards = Cards(Job(world.config(store.root, "solver=exact", "l1_alpha=1e-3"), store))
    opened = saelink.open(artifact.key, str(store.root))
    for latent in cards.wiring.connector.target_ids[:5].tolist():
        card, read = cards.target(latent), opened.target(latent).data
        assert [edge["name"] for edge in read["edges"]] == [edge["name"] for edge in card["edges"]]
        assert read["logic"] == card["logic"] and read["beside"] == card["beside"]
        for mine, stored in zip(card["examples"], read["examples"], strict=True):
            assert {**mine, "value": float(f"{mine['value']:.3g}")} == stored
        assert index["fits"][0]["n_edges"][latent] == card["n_edges"]
    rows = {row["name"]: row for row in head["table"]}
    assert rows["mean predictor"]["fvu"] == pytest.approx(1, abs=0.05)
    assert rows["oracle"]["fvu"] > 0  # the SAEs are random
    metrics = cards.wiring.evaluation.json("metrics.json")
    assert head["table"][0]["fvu"] == metrics["fvu"] and head["table"][0]["n_edges"] == metrics["n_edges"]
    assert sum(point["elbow"] for point in head["frontier"]) == 1
    assert found["ablations/target"], "the highlighted latents' examples are ablated"


def test_it_is_made_anew_when_there_is_more_to_show(world: World, tmp_path: Path) -> None:
    first, store = made(world, tmp_path, "solver=exact", "report.ablated=0")
    EvaluateStage(Job(world.config(store.root, "connector=nonlinear", "l1_alpha=1e-3"), store)).pull()
    second, _ = made(world, tmp_path, "solver=exact", "report.ablated=0")
    assert first.key != second.key
    names = [row["name"] for row in pieces(second)["head"]["table"]]
    assert "nonlinear by adam" in names and len(pieces(second)["index"]["gains"]) == 1


def test_its_bytes_are_those_of_its_key_whoever_made_one_first(world: World, tmp_path: Path) -> None:
    """Names and the command stand on the page, so they are part of the key."""
    others = [{}, {"model": "another/model"}, {"data": "another"}, {"link": "of mine"}]

    def report(store: Store, names: dict[str, str], command: str | None = None) -> Artifact:
        cfg = world.config(store.root, "solver=exact", "report.ablated=0", "report.l1_alphas=[]")
        for part, name in names.items():
            cfg = replace(cfg, **{part: replace(getattr(cfg, part), name=name)})
        return ReportStage(Job(cfg, store), command).pull()

    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    pages = {}
    for artifact in [*(report(one, names) for names in others), report(one, {}, "saelink report")]:
        pages[artifact.key] = artifact.file(PAGE_FILE).read_bytes()
    assert len(pages) == 5
    for artifact in [report(two, {}, "saelink report"), *(report(two, names) for names in others[::-1])]:
        assert pages[artifact.key] == artifact.file(PAGE_FILE).read_bytes()


def test_hidden_units_have_cards(world: World, tmp_path: Path) -> None:
    artifact, _ = made(world, tmp_path, "connector=mlp", "connector.d_hidden=8", "connector.bias=true")
    found = pieces(artifact)
    assert len(found["hidden/0"]) == 8 and sum(found["head"]["hidden_units"]["counts"].values()) == 8
    assert len(found["head"]["fits"]) == 1, "only what costs little is fitted for the frontier"
    view = saelink.open(artifact.key, str(tmp_path)).hidden(3)
    assert view.data["name"] == "H3" and "H3" in repr(view)


def test_fewer_cards_keep_the_best_predicted(world: World, tmp_path: Path) -> None:
    artifact, _ = made(world, tmp_path, "solver=exact", "report.cards=5", "report.ablated=0")
    found = pieces(artifact)
    kept = [latent for latent, card in found["target/0"].items() if card["examples"]["place"]]
    assert len(kept) == 5 and len(found["target/0"]) == 48
    assert [latent for latent, card in found["circuit0/0"].items() if "beside" in card] == kept


def test_cards_from_python(nasty: tuple[Artifact, Store]) -> None:
    artifact, store = nasty
    for key in (artifact.key, artifact.facts["connectors"][0][:6]):
        opened = saelink.open(key, str(store.root))
        view = opened.target(int(next(iter(pieces(artifact)["circuit0/0"]))))
        assert view.data["explained"] and view.data["edges"]
        assert "<script>" not in view._repr_html_() and "predicted by" in view._repr_html_()
    assert opened.source(3).data["name"] == "IF3"
    for mistake in (lambda: opened.target(48), lambda: opened.hidden(0), lambda: saelink.open("zzz", str(store.root))):
        with pytest.raises(SaelinkError):
            mistake()


def test_no_token_gets_out_of_its_text(nasty: tuple[Artifact, Store]) -> None:
    page = nasty[0].file(PAGE_FILE).read_text()
    assert "<script>document.title" not in page and "onerror" not in page.replace("script.onerror", "")
    assert page.count("</script>") == page.count("<script"), "no token ends a script"
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page, "nothing is fetched"


def test_verdicts_stand_on_the_edges(world: World, tmp_path: Path) -> None:
    before, store = made(world, tmp_path, "solver=exact")
    alone, *_ = pieces(before)["head"]["verified"]
    assert "nulls" not in alone
    cfg = world.config(store.root, *SETTINGS, "solver=exact")
    judged = VerifyStage(Job(cfg, store)).pull()
    artifact = ReportStage(Job(cfg, store)).pull()
    assert artifact.key != before.key, "what verify adds makes the page anew"
    found, figures = pieces(artifact), judged.json("figures.json")
    mine, *others = found["head"]["verified"]
    assert [entry["fit"] for entry in others] == [1, 2] and not any("nulls" in entry for entry in others)
    assert mine["figures"] == alone["figures"]
    assert mine["fit"] == 0 and mine["figures"]["edges_confirmed"] == figures["edges_confirmed"]
    assert set(mine["nulls"]) == {"permuted decoders", "random weights", "shuffled pairs"}
    tensors = judged.tensors("edges.safetensors")
    expected = {
        (int(s), int(t)): (float(c), float(e), VERDICTS[int(v)])
        for s, t, c, e, v in zip(*(tensors[n] for n in ("source", "target", "claim", "effect", "verdict")), strict=True)
    }
    missed = {(int(s), int(t)) for s, t in zip(tensors["missed_source"], tensors["missed_target"], strict=True)}
    seen = 0
    for latent, circuit in found["circuit0/0"].items():
        assert {(entry["input"], int(latent)) for entry in circuit["missed"]} <= missed
        for edge in edges_at(found["edges0/0"], int(latent), VERDICTS) or []:
            if (edge["number"], int(latent)) in expected:  # not into a target that never fires on these tokens
                claim, effect, verdict = expected[edge["number"], int(latent)]
                assert edge["verdict"] == verdict and edge["effect"] == pytest.approx(effect, abs=6e-3)
                assert edge["claim"] == pytest.approx(claim, abs=6e-3)
                seen += 1
    assert seen > 10
    target = next(latent for _, latent in expected)
    assert any(verdict in repr(saelink.open(artifact.key, str(store.root)).target(target)) for verdict in VERDICTS)


def test_report_on_the_command_line(saelink: Run, tmp_path: Path) -> None:
    path = tmp_path / "sub" / "page.html"
    code, out, err = saelink("report", "solver=exact", *SETTINGS, f"report.path={path}")
    assert code == 0, err
    page = path.read_text()
    assert page.startswith("<!doctype html>") and str(path) in out
    given = page.split('"command": "')[1].split('"')[0]
    assert given.startswith("saelink report") and "solver=exact" in given and "report.ablated=2" in given
    assert "runtime" not in given and "report.path" not in given, "the page holds nothing of where it was made"
