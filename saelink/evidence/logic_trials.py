"""The logic of a target as a claim about interventions, tested in the model: the stage `logic_trials`.

The word for a target's logic is read from counts (see logic). Here its sources are taken out on the tokens that it is
about, with everything else as it was, and the target is read again:

    A copies         where A is on and the target fires: without A it is silent
    A or B           where one of them is on: without it the target is silent; where several are on: without any one of
                     them it still fires, without all of them it is silent
    A and B          where both are on and the target fires: without A it is silent, without B it is silent
    A and not B      where both are on: without B the target fires, at least half as often as it does where A is on and
                     B is not; and where it fires there, without A it is silent
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypedDict

import torch

from saelink import memory
from saelink.evidence.edges import TARGETS_FILE, EdgesStage
from saelink.evidence.intervals import Share, share_of
from saelink.evidence.logic import HIGH, MIN_TOKENS
from saelink.fit.train import TrainStage, fitted_connector
from saelink.interventions.block import most_tokens, open_block, opened_sizes
from saelink.interventions.effects import ablation_recipe, check_measurable, measurable
from saelink.interventions.joint import Gone, Joint, each, evenly
from saelink.job import Job, JobStage
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.stage import Need

TRIALS_FILE = "trials.json"

WORDS = ("copy", "or", "and", "and not")
"""Words that are claims about interventions."""

OUTCOMES = ("holds", "fails", "undecided")
"""Whether what the word claims happens on more than half of the tokens; undecided where the interval holds both."""

MOST_TOKENS = 4096
"""Tokens of one trial, evenly spread over those that it is about."""


class Asked(NamedTuple):
    """What is claimed of some tokens."""

    on: tuple[int, ...]
    """Sources that are on there,"""
    off: tuple[int, ...]
    """and that are not."""
    fires: bool | None
    """Whether only tokens are meant where the target fires; None for all."""
    fires_after: bool
    """What the target does once the sources are gone."""
    token: torch.Tensor
    """[m] the tokens,"""
    gone: Gone
    """and what goes from them."""
    sources: tuple[int, ...]
    """The same as numbers."""
    any_one: bool = False
    """Whether the tokens are there once for each of `sources`, which goes alone."""
    bar: float = HIGH
    """The share of the tokens on which it must happen."""


class Trial(NamedTuple):
    """What came of it."""

    asked: Asked
    before: int
    """Tokens on which the target fires before,"""
    after: int
    """and after."""
    as_claimed: Share

    @property
    def outcome(self) -> str:
        """Of OUTCOMES."""
        if self.as_claimed.tokens < MIN_TOKENS:
            return "undecided"
        bar = self.asked.bar
        return "holds" if self.as_claimed.low > bar else "fails" if self.as_claimed.high < bar else "undecided"


def claims_of(joint: Joint, word: str, target: int, sources: list[int]) -> list[Asked]:
    """What a word claims of interventions on the tokens that the model was run on."""
    fired = joint.target_on(target)
    on = {source: joint.source_on(source) for source in sources}

    def where(these: tuple[int, ...], not_these: tuple[int, ...], fires: bool | None) -> torch.Tensor:
        mask = torch.ones(len(joint), dtype=torch.bool) if fires is None else fired == fires
        for source in these:
            mask = mask & on[source]
        for source in not_these:
            mask = mask & ~on[source]
        return evenly(mask.nonzero().flatten(), MOST_TOKENS)

    def asked(
        these: tuple[int, ...], not_these: tuple[int, ...], gone: int, fires: bool | None, after: bool,
        bar: float = HIGH,
    ) -> Asked:  # fmt: skip
        token = where(these, not_these, fires)
        return Asked(these, not_these, fires, after, token, each(token, gone), (gone,), bar=bar)

    if word == "copy":
        return [asked((sources[0],), (), sources[0], True, False)]
    if word == "and":
        both = (sources[0], sources[1])
        return [asked(both, (), source, True, False) for source in both]
    if word == "and not":
        a, b = sources
        alone = on[a] & ~on[b]
        rate = int((alone & fired).sum()) / max(int(alone.sum()), 1)
        return [asked((a, b), (), b, None, True, HIGH * rate), asked((a,), (b,), a, True, False)]
    assert word == "or"
    singly = [asked((i,), tuple(j for j in sources if j != i), i, True, False) for i in sources]
    count = torch.stack([on[source] for source in sources]).sum(0)
    token = evenly(((count > 1) & fired).nonzero().flatten(), MOST_TOKENS // len(sources))
    if len(token) < MIN_TOKENS:
        return singly
    together = torch.stack([on[source][token] for source in sources], 1)  # [m, sources]
    row, place = together.nonzero(as_tuple=True)
    everything, numbers = tuple(sources), torch.tensor(sources)
    alone = Gone(torch.arange(len(row)), numbers[place])
    return [
        *singly,
        Asked((), (), True, True, token[row], alone, everything, any_one=True),
        Asked((), (), True, False, token, Gone(row, numbers[place]), everything),
    ]


def tried(joint: Joint, asked: list[tuple[int, Asked]], document: torch.Tensor) -> list[Trial]:
    """What comes of claims on targets; `document` [n] that each token is of."""
    token = torch.cat([torch.zeros(0, dtype=torch.int64), *(each.token for _, each in asked)])
    lengths = [len(claim.token) for _, claim in asked]
    target = torch.repeat_interleave(torch.tensor([of for of, _ in asked]).long(), torch.tensor(lengths).long())
    rows, sources, first = [token[:0]], [token[:0]], 0
    for (_, claim), length in zip(asked, lengths, strict=True):
        rows.append(claim.gone.row + first)
        sources.append(claim.gone.source)
        first += length
    pre = joint.without(token, Gone(torch.cat(rows), torch.cat(sources)), target)
    after = joint.is_on(pre, token, target)
    before = joint.is_on(joint.own(token, target), token, target)
    trials = []
    for (_, claim), was, now in zip(asked, before.split(lengths), after.split(lengths), strict=True):
        share = share_of(now == claim.fires_after, document[claim.token])
        trials.append(Trial(claim, int(was.sum()), int(now.sum()), share))
    return trials


def outcome_of(trials: list[Trial]) -> str:
    """Of OUTCOMES: a word holds where every claim of it does, and fails where one fails."""
    outcomes = {trial.outcome for trial in trials}
    return "fails" if "fails" in outcomes else "undecided" if "undecided" in outcomes or not trials else "holds"


class TriedLogic(TypedDict):
    """A target's logic, tested; sources are numbered as the connector numbers them."""

    word: str
    inputs: list[int]
    outcome: str
    trials: list[dict[str, Any]]
    """Each: `on`, `off`, `gone`, `any_one`, `fires` and `fires_after` as in Asked, `tokens`, `before`, `after`, `share`
    (as claimed), `low`, `high`, `bar`, `outcome`."""


class LogicTrialsFacts(TypedDict):
    circuits: int
    outcomes: dict[str, dict[str, int]]
    """By word how many circuits have which outcome."""


class LogicTrialsStage(JobStage[LogicTrialsFacts]):
    """The logic that the stage `edges` reads from counts, tested in the model on test documents.

    File `trials.json`: by target a `TriedLogic`. Raises SaelinkError for a link whose effects can't be measured.
    """

    name = "logic_trials"
    version = 1

    def __init__(self, job: Job):
        super().__init__(job)
        check_measurable(job.cfg)

    def recipe(self) -> dict[str, Any]:
        cfg = self.job.cfg
        return {
            "tokens": most_tokens(cfg, "test"),
            "drop_positions": cfg.data.drop_positions,
            "max_norm_ratio": cfg.data.max_norm_ratio,
            "model_dtype": cfg.model.dtype.name,
            **ablation_recipe(cfg),
        }

    def inputs(self) -> dict[str, str]:
        return {**self.latents_inputs(), "edges": EdgesStage(self.job).key, "model": self.job.model.artifact.key}

    def about(self) -> str:
        return TrainStage(self.job).about()

    def need(self) -> Need:
        sizes = opened_sizes(self.job)
        needed = memory.joint(*sizes) + memory.asked(sizes.target, sizes.n_tokens)
        return Need(needed, "use fewer tokens (verify.tokens) or SAEs with fewer latents")

    def make(self, draft: Draft) -> LogicTrialsFacts:
        job = self.job
        logic = dict(named_logic(job))
        joint = Joint(open_block(job, "test"), job.sides.scales, job.cfg.verify.ablation)
        job.observer.say(f"logic_trials: {len(logic):,} named circuits")
        claims = {target: claims_of(joint, each["word"], target, each["inputs"]) for target, each in logic.items()}
        asked = [(target, claim) for target, mine in claims.items() for claim in mine]
        trials = iter(tried(joint, asked, documents_of(job, len(joint))))
        found: dict[str, TriedLogic] = {}
        outcomes: dict[str, dict[str, int]] = {word: dict.fromkeys(OUTCOMES, 0) for word in WORDS}
        for target, mine in claims.items():
            tests = [next(trials) for _ in mine]
            word, outcome = logic[target]["word"], outcome_of(tests)
            outcomes[word][outcome] += 1
            found[str(target)] = {
                "word": word, "inputs": logic[target]["inputs"], "outcome": outcome,
                "trials": [_as_data(trial) for trial in tests],
            }  # fmt: skip
        draft.save_json(TRIALS_FILE, found)
        return {"circuits": len(found), "outcomes": outcomes}


def named_logic(job: Job) -> Iterator[tuple[int, dict[str, Any]]]:
    """By target the logic that names source latents, as the stage `edges` says it."""
    edges = EdgesStage(job).pull()
    connector = fitted_connector(TrainStage(job).pull())
    lines = edges.file(TARGETS_FILE).read_bytes().splitlines()
    for target, line in zip(connector.target_ids.tolist(), lines, strict=True):
        logic = json.loads(line)["logic"]
        if logic["word"] in WORDS and all(source < connector.direct for source in logic["inputs"]):
            yield target, logic


def documents_of(job: Job, n: int) -> torch.Tensor:
    """[n] int64: the document of each of the first test tokens that count."""
    from saelink.latents.link import load_split

    document = job.tokens.tensors("test.safetensors")["document"].flatten().long()
    return document[load_split(job.cfg, job.sides, "test").row[:n]]


def logic_trials(job: Job) -> Mapping[str, TriedLogic] | None:
    """By target the tested logic of the configured connector, where it has been tested."""
    artifact = found_trials(job)
    return None if artifact is None else artifact.json(TRIALS_FILE)


def found_trials(job: Job) -> Artifact[LogicTrialsFacts] | None:
    """The tests of the configured connector's logic, where `saelink verify` made them."""
    return LogicTrialsStage(job).find() if measurable(job.cfg) else None


def _as_data(trial: Trial) -> dict[str, Any]:
    asked, share = trial.asked, trial.as_claimed
    return {
        "on": list(asked.on),
        "off": list(asked.off),
        "gone": list(asked.sources),
        "any_one": asked.any_one,
        "fires": asked.fires,
        "fires_after": asked.fires_after,
        "tokens": share.tokens,
        "before": trial.before,
        "after": trial.after,
        "share": round(share.share, 4),
        "low": round(share.low, 4),
        "high": round(share.high, 4),
        "bar": round(asked.bar, 4),
        "outcome": trial.outcome,
    }
