"""Pairs for a blind judge: one edge that ablation confirmed, one source without, and nothing else tells them apart."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.evidence.verdicts import Verdicts
from saelink.evidence.verify import verdicts_of
from saelink.job import Job
from saelink.share.blind import BlindFacts, BlindStage, score
from saelink.store.artifact import Artifact
from saelink.store.store import Store

Drawn = tuple[Job, Artifact[BlindFacts]]


@pytest.fixture
def drawn(config: Callable[..., Config], store: Store) -> Drawn:
    job = Job(config("solver=exact", "l1_alpha=1e-3", "blind.pairs=12", "blind.sentences=3"), store)
    return job, BlindStage(job).pull()


def test_a_pair_is_a_confirmed_edge_and_no_edge(drawn: Drawn) -> None:
    job, artifact = drawn
    judged = verdicts_of(job)
    assert judged is not None
    verdicts, truth = Verdicts(judged), artifact.json("truth.json")
    assert 0 < len(truth) == artifact.facts["pairs"] <= 12
    assert len({pair["target"] for pair in truth.values()}) == len(truth)
    for pair in truth.values():
        found = verdicts.of(pair["edge"], pair["target"])
        assert found is not None and found[2] == "confirmed" and found[1] == pair["effect"] > 0
        assert verdicts.of(pair["none"], pair["target"]) is None
        assert pair["none"] not in [source for source, _ in verdicts.missed(pair["target"])]
    assert {pair["answer"] for pair in truth.values()} <= {"A", "B"}


def test_the_sheet_shows_sentences_and_no_truth(drawn: Drawn) -> None:
    _, artifact = drawn
    asked = artifact.json("pairs.json")
    assert [pair["pair"] for pair in asked["pairs"]] == list(range(1, artifact.facts["pairs"] + 1))
    sheet = artifact.file("sheet.md").read_text()
    for pair in asked["pairs"]:
        assert set(pair) == {"pair", "target", "A", "B"}
        for sentences in (pair["target"], pair["A"], pair["B"]):
            assert 0 < len(sentences) <= 3
            assert all(sentence in sheet and sentence.count("**") == 2 for sentence in sentences)
    assert "OF" not in sheet and "IF" not in sheet and "effect" not in sheet


def test_answers_are_counted(drawn: Drawn, tmp_path: Path) -> None:
    _, artifact = drawn
    truth = {pair: each["answer"] for pair, each in artifact.json("truth.json").items()}
    n = len(truth)
    rows = list(csv.DictReader(artifact.file("answers.csv").read_text().splitlines()))
    assert [row["pair"] for row in rows] == sorted(truth, key=int) and not any(row["answer"] for row in rows)
    (tmp_path / "right.json").write_text(json.dumps({int(pair): answer.lower() for pair, answer in truth.items()}))
    perfect = score(artifact, str(tmp_path / "right.json"))
    assert (perfect.right, perfect.answered, perfect.pairs, perfect.high) == (n, n, n, 1) and perfect.p == 0.5**n
    wrong = [f"{pair},{'B' if truth[pair] == 'A' else 'A'}" for pair in sorted(truth, key=int)]
    (tmp_path / "wrong.csv").write_text("\n".join(["pair,answer", *wrong[:-1], f"{n},"]))
    bad = score(artifact, str(tmp_path / "wrong.csv"))
    assert (bad.right, bad.answered, round(bad.low, 9), bad.p) == (0, n - 1, 0, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pair,answer\n99,A\n", "there is no pair 99"),
        ("pair,answer\n1,C\n", "pair 1 has the answer 'C'"),
        ("a,b\n1,A\n", "give CSV with the columns pair and answer"),
        ("{1", "give CSV with the columns pair and answer"),
        ("[]", "no pair has an answer"),
        ("pair,answer\n1,\n", "no pair has an answer"),
        ('{"1": {"a": 2}}', "pair 1 has the answer"),
    ],
)
def test_answers_that_are_none_are_one_line(drawn: Drawn, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "answers").write_text(text)
    with pytest.raises(SaelinkError, match=f"^{tmp_path}/answers: .*{said}") as caught:
        score(drawn[1], str(tmp_path / "answers"))
    assert "\n" not in str(caught.value)


def test_without_verdicts_it_says_what_to_run(config: Callable[..., Config], store: Store) -> None:
    with pytest.raises(SaelinkError, match="saelink verify"):
        BlindStage(Job(config("solver=exact", "l1_alpha=1e-3", "eval.verify=false"), store))
