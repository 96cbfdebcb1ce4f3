"""What a word claims of interventions holds where it was planted, and fails where only counts say it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from saelink.config.evidence import AblationValue
from saelink.config.schema import Config
from saelink.evidence.edges import TARGETS_FILE, EdgesStage
from saelink.evidence.intervals import share_of
from saelink.evidence.logic import wilson
from saelink.evidence.logic_trials import (
    TRIALS_FILE,
    WORDS,
    LogicTrialsStage,
    claims_of,
    logic_trials,
    outcome_of,
    tried,
)
from saelink.interventions.joint import Joint
from saelink.job import Job
from saelink.store.store import Store

from helpers.planted import RULES, planted_block, sources


def outcome(joint: Joint, word: str, inputs: list[int], target: int = 0) -> str:
    asked = [(target, claim) for claim in claims_of(joint, word, target, inputs)]
    return outcome_of(tried(joint, asked, torch.arange(len(joint)) // 20))


INPUTS = {"copy": [0], "or": [0, 1], "and": [0, 1], "and not": [0, 1]}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("norm", [False, True])
def test_a_planted_word_holds(word: str, seed: int, norm: bool) -> None:
    """Also behind a norm: there a large constant part of the stream keeps its scale steady."""
    a = sources(seed=seed)
    rest = torch.full((len(a), 1), 20.0) if norm else None
    module = torch.nn.RMSNorm(a.shape[1] + 1, eps=1e-6) if norm else None
    gain = 20.0 / (a.shape[1] + 1) ** 0.5 if norm else 1.0
    joint = Joint(planted_block(a, [RULES[word]], rest, module, gain=gain), [1.0, 1.0])
    assert outcome(joint, word, INPUTS[word]) == "holds"


def test_another_word_than_the_planted_one_fails() -> None:
    a = sources()
    joint = Joint(planted_block(a, list(RULES.values())), [1.0, 1.0])
    places = {word: i for i, word in enumerate(RULES)}
    assert outcome(joint, "and", [0, 1], places["or"]) == "fails"
    assert outcome(joint, "or", [0, 1], places["and"]) != "holds"
    assert outcome(joint, "copy", [1], places["copy"]) == "fails"


def test_a_suppressor_that_only_goes_with_the_real_one_fails() -> None:
    """C silences the target; B is on wherever C is and does nothing: counts can't tell them apart."""
    a = sources()
    a[:, 1] = torch.where(a[:, 2] > 0, 1.0, 0.0)
    joint = Joint(planted_block(a, [lambda s: torch.relu(s[:, 0] - 3 * s[:, 2])]), [1.0, 1.0])
    assert outcome(joint, "and not", [0, 1]) == "fails"
    assert outcome(joint, "and not", [0, 2]) == "holds"


def test_what_a_trial_counts() -> None:
    """A and not B: on tokens with both the target is off before; without B it is on; the bar is half the rate alone."""
    a = sources()
    joint = Joint(planted_block(a, [RULES["and not"]]), [1.0, 1.0])
    both, alone = tried(joint, [(0, claim) for claim in claims_of(joint, "and not", 0, [0, 1])], torch.arange(len(a)))
    n = int(((a[:, 0] > 0) & (a[:, 1] > 0)).sum())
    assert (both.before, both.after, both.as_claimed.tokens) == (0, n, n) and both.asked.bar == pytest.approx(0.5)
    m = int(((a[:, 0] > 0) & (a[:, 1] == 0)).sum())
    assert (alone.before, alone.after, alone.as_claimed.hits) == (m, 0, m)


def test_few_tokens_decide_nothing() -> None:
    a = torch.zeros(40, 4)
    a[:10, :2] = 1.0
    joint = Joint(planted_block(a, [RULES["and"]]), [1.0, 1.0])
    assert outcome(joint, "and", [0, 1]) == "undecided"


def test_resampling_takes_most_of_a_rare_latent_out() -> None:
    a = sources(density=0.05)
    joint = Joint(planted_block(a, [RULES["copy"]]), [1.0, 1.0], AblationValue.resample)
    (trial,) = tried(joint, [(0, claims_of(joint, "copy", 0, [0])[0])], torch.arange(len(a)))
    assert 0 < trial.after < 0.2 * trial.before and outcome(joint, "copy", [0]) == "holds"


def test_intervals_of_clusters() -> None:
    """With one token a document it is Wilson's; documents that agree within themselves count less."""
    hit = torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.3
    alone = share_of(hit, torch.arange(400))
    low, high = wilson(int(hit.sum()), 400)
    assert alone.low == pytest.approx(low, abs=2e-3) and alone.high == pytest.approx(high, abs=2e-3)
    clustered = share_of(hit.repeat_interleave(10), torch.arange(4000) // 10)
    assert clustered.share == alone.share and clustered.tokens == 4000
    assert clustered.high - clustered.low == pytest.approx(alone.high - alone.low, rel=0.05)
    nothing = share_of(torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.int64))
    assert (nothing.low, nothing.high, nothing.share) == (0.0, 1.0, 0.0)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    generator = torch.Generator().manual_seed(1)
    held = 0
    for _ in range(300):
        rate = torch.rand(60, generator=generator) < 0.4  # a document is all of one kind
        share = share_of(rate.repeat_interleave(8), torch.arange(480) // 8)
        held += share.low <= 0.4 <= share.high
    assert 0.91 <= held / 300 <= 0.99


def test_the_stage_tests_what_edges_names(
    config: Callable[..., Config], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"HIGH": 0.05, "MIN_TOKENS": 2, "EXPLAINED": 0.01}.items():  # random latents: any logic will do
        monkeypatch.setattr(f"saelink.evidence.logic.{name}", value)
    job = Job(config("solver=exact", "l1_alpha=1e-3"), store)
    edges = EdgesStage(job).pull()
    lines = [json.loads(line)["logic"] for line in edges.file(TARGETS_FILE).read_bytes().splitlines()]
    named = [logic for logic in lines if logic["word"] in WORDS]
    assert named and logic_trials(job) is None
    artifact = LogicTrialsStage(job).pull()
    found = artifact.json(TRIALS_FILE)
    assert len(found) == artifact.facts["circuits"] == len(named)
    assert sum(sum(each.values()) for each in artifact.facts["outcomes"].values()) == len(named)
    assert logic_trials(job) == found
    for target in found.values():
        assert target["outcome"] in ("holds", "fails", "undecided") and target["trials"]
        for trial in target["trials"]:
            assert 0 <= trial["low"] <= trial["share"] <= trial["high"] <= 1 or not trial["tokens"]
    other = Job(config("solver=exact", "l1_alpha=1e-3", "verify.ablation=resample"), store)
    assert LogicTrialsStage(other).key != artifact.key
