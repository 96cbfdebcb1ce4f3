"""Pairs of latents for a blind judge, edges and none, and how a judge's answers are scored: the stage `blind`.

A judge sees sentences in which a target latent fires, and those of two source latents: one has an edge to the target
that ablation confirmed, the other none and no strong effect on it either, and fires about as often. Which is which is
in a file of its own.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from saelink import memory
from saelink.errors import SaelinkError, reason_of
from saelink.evidence.logic import wilson
from saelink.evidence.names import Names
from saelink.evidence.verdicts import Verdicts
from saelink.evidence.verify import verdicts_of
from saelink.fit.train import TrainStage
from saelink.job import Job, JobStage
from saelink.latents.examples import Examples, ExamplesStage, load_examples, tokens_around
from saelink.latents.stream import WINDOW, text_of
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.files import csv_bytes
from saelink.store.stage import Need

PAIRS_FILE, SHEET_FILE, ANSWERS_FILE, TRUTH_FILE = "pairs.json", "sheet.md", "answers.csv", "truth.json"

NEAR = 10
"""The source without an edge is one of so many that fire most nearly as often as the one with it."""

LETTERS = ("A", "B")

QUESTION = "Which of the two, A or B, makes the target fire? In each sentence **the token** is where the latent fires."


class BlindFacts(TypedDict):
    pairs: int


class Pair(NamedTuple):
    """A target, a source with a confirmed edge to it, and one with none."""

    target: int
    edge: int
    none: int
    effect: float
    """Of the edge, as a share of the target's mean active value."""


class Score(NamedTuple):
    """How a judge did."""

    right: int
    answered: int
    pairs: int
    low: float
    """95% interval of the share that is right (Wilson's)."""
    high: float
    p: float
    """How probable so many right ones, or more, are for a judge who guesses (binomial, one-sided)."""


class BlindStage(JobStage[BlindFacts]):
    """Pairs for a blind judge.

    Files: `pairs.json`, what a model is asked; `sheet.md`, the same for a person; `answers.csv`, to be filled in;
    `truth.json`, which is the edge, for the score. Raises SaelinkError for a connector without confirmed edges.
    """

    name = "blind"
    version = 1

    def __init__(self, job: Job):
        super().__init__(job)
        found = verdicts_of(job)
        if found is None:
            raise SaelinkError("blind: pairs are drawn from confirmed edges; run `saelink verify` with these settings")
        self._verdicts = found

    @property
    def device(self) -> str:
        return "cpu"

    def recipe(self) -> dict[str, Any]:
        blind = self.job.cfg.blind
        return {"pairs": blind.pairs, "sentences": blind.sentences, "seed": self.job.cfg.seed}

    def inputs(self) -> dict[str, str]:
        hooks = [side.facts["hook_name"] for side in [*self.job.sides.sources, self.job.sides.target]]
        examples = {f"examples{i}": ExamplesStage(self.job.cfg, self.store, hook).key for i, hook in enumerate(hooks)}
        return {"verdicts": self._verdicts.key, "tokens": self.job.tokens.key, **examples}

    def about(self) -> str:
        return TrainStage(self.job).about()

    def need(self) -> Need:
        job, sides = self.job, [*self.job.sides.sources, self.job.sides.target]
        stages = [ExamplesStage(job.cfg, job.store, side.facts["hook_name"]) for side in sides]
        shown = sum(stage.pull().size for stage in stages)
        return Need(
            memory.blind(self._verdicts.facts["edges"], shown), "use a larger l1_alpha, which keeps fewer edges"
        )

    def make(self, draft: Draft) -> BlindFacts:
        job, draw = self.job, random.Random(self.job.cfg.seed)
        sentences = _Sentences(job)
        pairs = _drawn(Verdicts(self._verdicts), sentences, job.cfg.blind.pairs, draw)
        if not pairs:
            raise SaelinkError("blind: no confirmed edge excites its target; try a smaller l1_alpha or more text")
        asked, truth = [], {}
        for number, pair in enumerate(pairs, 1):
            ends = [pair.edge, pair.none]
            draw.shuffle(ends)
            asked.append(
                {"pair": number, "target": sentences.of_target(pair.target)}
                | {letter: sentences.of_source(end) for letter, end in zip(LETTERS, ends, strict=True)}
            )
            truth[str(number)] = {"answer": LETTERS[ends.index(pair.edge)], **pair._asdict()}
        draft.save_json(PAIRS_FILE, {"question": QUESTION, "answers": list(LETTERS), "pairs": asked})
        draft.save_bytes(SHEET_FILE, _sheet(asked).encode())
        draft.save_bytes(ANSWERS_FILE, csv_bytes(["pair", "answer"], [{"pair": each["pair"]} for each in asked]))
        draft.save_json(TRUTH_FILE, truth)
        return {"pairs": len(pairs)}


class _Sentences:
    """Where the latents of a link fire most, as text."""

    def __init__(self, job: Job):
        self._sides, self._n, self._names = job.sides, job.cfg.blind.sentences, Names(job)
        self._text, self._context = text_of(job.tokens), job.tokens.facts["context_size"]
        sides = [*job.sides.sources, job.sides.target]
        self._found: list[Examples] = [
            load_examples(ExamplesStage(job.cfg, job.store, side.facts["hook_name"]).pull()) for side in sides
        ]
        fires = [each.histogram.sum(1).numpy() for each in self._found]
        self.source_fires = np.array([fires[place][latent] for place, latent in map(self._sides.side_of, self.sources)])

    @property
    def sources(self) -> range:
        return range(self._sides.d_source)

    def of_target(self, latent: int) -> list[str]:
        return self._of(self._found[-1], latent)

    def of_source(self, latent: int) -> list[str]:
        place, own = self._sides.side_of(latent)
        return self._of(self._found[place], own)

    def _of(self, found: Examples, latent: int) -> list[str]:
        places = found.top_place[latent]
        around = tokens_around(self._text, places[places >= 0][: self._n].numpy(), self._context)
        return [self._sentence(row) for row in around]

    def _sentence(self, ids: np.ndarray[Any, Any]) -> str:
        texts = ["" if token < 0 else self._names.text(int(token)) for token in ids]
        shown = texts[WINDOW]
        blank = shown[: len(shown) - len(shown.lstrip())]
        texts[WINDOW] = f"{blank}**{shown.strip() or '␣'}**"
        return " ".join("".join(texts).split())


def _drawn(verdicts: Verdicts, sentences: _Sentences, count: int, draw: random.Random) -> list[Pair]:
    """At most `count` pairs, each with a target of its own, its edge one at random of those that excite it."""
    order = np.argsort(sentences.source_fires, kind="stable")
    order = order[sentences.source_fires[order] > 0]
    rank = {int(source): i for i, source in enumerate(order)}
    pairs: list[Pair] = []
    targets = verdicts.targets()
    draw.shuffle(targets)
    for target in targets:
        into = verdicts.into(target)
        excites: list[tuple[int, float]] = []
        for source, word in sorted(into.items()):
            found = verdicts.of(source, target)
            if word == "confirmed" and found is not None and found[1] > 0 and source in rank:
                excites.append((source, found[1]))
        tied = {*into, *(source for source, _ in verdicts.missed(target))}
        if not excites:
            continue
        edge, effect = draw.choice(excites)
        others = [int(source) for source in _outwards(order, rank[edge]) if int(source) not in tied][:NEAR]
        if others:
            pairs.append(Pair(target, edge, draw.choice(others), effect))
        if len(pairs) == count:
            break
    return pairs


def _outwards(order: np.ndarray[Any, Any], place: int) -> list[int]:
    """What stands before and behind a place, the nearest first."""
    near = sorted(
        range(max(place - 20 * NEAR, 0), min(place + 20 * NEAR + 1, len(order))), key=lambda i: abs(i - place)
    )
    return [int(order[i]) for i in near if i != place]


def _sheet(asked: list[dict[str, Any]]) -> str:
    parts = [f"# Which source?\n\n{QUESTION}\nWrite A or B for each pair into a copy of {ANSWERS_FILE}.\n"]
    for each in asked:
        parts.append(f"\n## Pair {each['pair']}\n")
        for title in ("target", *LETTERS):
            lines = "".join(f"- {sentence}\n" for sentence in each[title])
            parts.append(f"\n{title.capitalize()}\n\n{lines}")
    return "".join(parts)


def score(artifact: Artifact[BlindFacts], path: str) -> Score:
    """How many of a file's answers are right: CSV with the columns pair and answer, or JSON {pair: answer}.

    Raises SaelinkError for a file that can't be read, a pair that was not asked, an answer that is no
    letter, and where there is no answer.
    """
    truth, given = artifact.json(TRUTH_FILE), _answers(path)
    unknown = [pair for pair in given if pair not in truth]
    if unknown:
        raise SaelinkError(f"{path}: there is no pair {unknown[0]}; pairs are 1 to {len(truth)} ({artifact.path})")
    wrong = [(pair, answer) for pair, answer in given.items() if answer and answer not in LETTERS]
    if wrong:
        raise SaelinkError(f"{path}: pair {wrong[0][0]} has the answer {wrong[0][1]!r}; write A or B, or nothing")
    answered = {pair: answer for pair, answer in given.items() if answer}
    if not answered:
        raise SaelinkError(f"{path}: no pair has an answer; write A or B behind its number")
    right = sum(truth[pair]["answer"] == answer for pair, answer in answered.items())
    n = len(answered)
    p = sum(math.comb(n, k) for k in range(right, n + 1)) / 2**n
    return Score(right, n, len(truth), *wilson(right, n), p)


def _answers(path: str) -> Mapping[str, str]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("{"):
            found: Any = json.loads(text)
        else:
            rows = list(csv.DictReader(io.StringIO(text)))
            found = {row["pair"]: row["answer"] for row in rows}
        return {str(pair).strip(): str(answer or "").strip().upper() for pair, answer in found.items()}
    except (OSError, ValueError, KeyError, csv.Error) as error:
        way_out = 'give CSV with the columns pair and answer, or JSON such as {"1": "A"}'
        raise SaelinkError(f"{path}: {reason_of(error, 80)}; {way_out}") from None
