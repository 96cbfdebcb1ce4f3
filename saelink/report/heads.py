"""What the page shows of a layer's heads: what each moves from token to token, and where it looks.

What heads move is `moved_cards`, what `saelink show` prints; where they look is read of `qk` and the stages behind it
where the store has them.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from saelink.evidence.moved_cards import MovedCards, MovedCardsFacts, load_moved_cards, moved_cards_of
from saelink.evidence.moved_edges import MovedEdge
from saelink.evidence.moved_heads import ALIKE, HeadCard
from saelink.job import Job
from saelink.looks.deletions import DELETIONS_FILE, QKDeletionsStage
from saelink.looks.kinds import RULES
from saelink.looks.pairs import LEAST
from saelink.looks.stage import HEADS_FILE, STRONGEST, TARGETS_FILE, QKFacts, QKStage, QKTargetsStage, before_attention
from saelink.looks.text import MODES
from saelink.store.artifact import Artifact
from saelink.terminal.moved import binned
from saelink.terminal.qk import AROUND, EXAMPLES, offsets

NEAR = 24
"""A key and a query with more tokens between them are shown with a gap,"""

BESIDE = 8
"""and so many tokens on its either side."""

Sentence = dict[str, Any]
"""`tokens`, None for a gap, and which of them are `key` and `query`."""


class HeadPages:
    """The heads of a link from moved latents by head; `wanted` says whether the link is one."""

    def __init__(self, job: Job):
        self.job = job
        self.wanted = job.cfg.link.sources == ["ov"]
        self.artifact: Artifact[MovedCardsFacts] | None = moved_cards_of(job) if self.wanted else None

    def inputs(self) -> dict[str, str]:
        """By role the keys of all that is shown here."""
        found = {} if self.artifact is None else {"heads": self.artifact.key}
        for i, looks in enumerate(self._looks):
            found |= {f"{role}{i}": artifact.key for role, artifact in looks.items()}
        return found

    @cached_property
    def _looks(self) -> list[dict[str, Artifact[Any]]]:
        """Where heads look: `qk`, and what was found behind it, of all heads or of single ones."""
        if self.artifact is None:
            return []
        job = before_attention(self.job)
        every = QKStage(job).find()
        heads = range(self.artifact.facts["heads"])
        single = [QKStage(job, head).find() for head in heads] if every is None else [every]
        return [_behind(job, qk) for qk in single if qk is not None]

    @cached_property
    def _moved(self) -> MovedCards:
        assert self.artifact is not None
        return load_moved_cards(self.artifact)

    @cached_property
    def _d_source(self) -> int:
        return self.job.encoded.d_source

    def shown(self) -> dict[str, Any] | None:
        """What the page's head says of heads; None for a link without."""
        if not self.wanted:
            return None
        cfg = self.job.cfg
        link = f"link={cfg.link.name} layer={cfg.layer}"
        if self.artifact is None:
            return {"missing": f"saelink show head 0 {link}", "cards": []}
        looked = self._looked
        return {
            "d_source": self._d_source,
            "alike": ALIKE,
            "cards": [
                {
                    "head": card.head, "share": card.share, "group": card.group, "near": card.near, "far": card.far,
                    "source": _number(card.sources[0][0]) if card.sources else None,
                    "kinds": looked[card.head]["kinds"] if card.head in looked else None,
                }
                for card in self._moved.heads
            ],
            "targets": self.artifact.facts["targets"],
            "alone": self.artifact.facts["alone"],
            "rules": RULES,
            "least": LEAST,
            "measure": f"saelink verify {link}",
            "measure_one": f"saelink show target {{}} {link}",
            "look": f"saelink verify {link} verify.qk=true",
        }  # fmt: skip

    def into(self, target: int) -> list[dict[str, Any]] | None:
        """The edges through heads into a target, the strongest first; None for one that was not looked at."""
        edges = self._moved.edges.get(target)
        return None if edges is None else [self._edge(edge) for edge in edges]

    def _edge(self, edge: MovedEdge) -> dict[str, Any]:
        alone = edge.alone or {}
        return {
            "source": _number(edge.name),
            "claim": edge.claim,
            "effect": edge.effect,
            "heads": [[head, share, alone.get(head)] for head, share in edge.heads.items()],
            "near": edge.near,
            "far": edge.far,
            "bins": self._bins(edge.distances),
            "tokens": edge.tokens,
            "examples": [
                {**sentence_of(e.tokens, e.key, e.query), "head": e.head, "part": e.part} for e in edge.examples
            ],
        }

    def _bins(self, distances: list[float]) -> list[list[Any]]:
        context = self.job.cfg.data.context_size
        return [[name, float(f"{share:.3g}")] for name, share in binned(distances, context)]

    def cards(self) -> list[dict[str, Any]]:
        """Each head's page."""
        return [] if self.artifact is None else [self._card(card) for card in self._moved.heads]

    def _card(self, card: HeadCard) -> dict[str, Any]:
        found: dict[str, Any] = {
            "head": card.head,
            "share": card.share,
            "group": card.group,
            "cosines": card.cosines,
            "near": card.near,
            "far": card.far,
            "bins": self._bins(card.distances),
            "sources": [[_number(name), share] for name, _, share in card.sources],
            "edges": [
                {
                    "source": _number(edge.source), "target": _number(edge.target), "part": edge.part,
                    "share": edge.share,
                    "examples": [
                        {**sentence_of(e.tokens, e.key, e.query), "head": e.head, "part": e.part} for e in edge.examples
                    ],
                }
                for edge in card.edges
            ],
        }  # fmt: skip
        if card.head in self._looked:
            found["qk"] = self._looked[card.head]
        return found

    @cached_property
    def _looked(self) -> dict[int, dict[str, Any]]:
        """By head where it looks."""
        found: dict[int, dict[str, Any]] = {}
        for looks in self._looks:
            facts: QKFacts = looks["qk"].facts
            by_head = {
                role: {each["head"]: each for each in looks[role].json(file)}
                for role, file in (("qk_deletions", DELETIONS_FILE), ("qk_targets", TARGETS_FILE))
                if role in looks
            }
            for head in looks["qk"].json(HEADS_FILE):
                number = head["head"]
                found[number] = {
                    "key": looks["qk"].key,
                    "sequences": facts["sequences"],
                    "tokens": facts["n_tokens"],
                    "kinds": head["kinds"],
                    "looks": head["looks"],
                    "strongest": [self._pair(pair, i < EXAMPLES) for i, pair in enumerate(head["pairs"][STRONGEST])],
                    "leading": [self._pair(pair, False) for pair in head["pairs"][MODES[1]]],
                    "together": head["together"][MODES[1]],
                    "deleted": head["deleted"],
                    **{role: by[number] for role, by in by_head.items() if number in by},
                }
        return found

    @cached_property
    def _ids(self) -> Any:
        return self.job.tokens.tensors("test.safetensors")["ids"]

    def _pair(self, pair: dict[str, Any], examples: bool) -> dict[str, Any]:
        names = ("query", "key", "rows", "variation", "control", "more_than_control", "attention")
        found = {**{name: pair[name] for name in names}, "offsets": offsets(pair["offsets"])}
        if examples:
            found["examples"] = [
                {**self._around(e["sequence"], e["query"], e["key"]), "variation": e["variation"]}
                for e in pair["examples"][:EXAMPLES]
            ]
        return found

    def _around(self, sequence: int, query: int, key: int) -> Sentence:
        """A place of the test text with the tokens around it."""
        first, last = max(key - AROUND[0], 0), query + AROUND[1] + 1
        tokens = [self.job.vocabulary[int(token)] for token in self._ids[sequence, first:last]]
        return sentence_of(tokens, key - first, query - first)


def _behind(job: Job, qk: Artifact[QKFacts]) -> dict[str, Artifact[Any]]:
    """An artifact of `qk` with what was measured of its pairs, as far as the store has it."""
    stages = {"qk_deletions": QKDeletionsStage(job, qk), "qk_targets": QKTargetsStage(job, qk)}
    found = {role: stage.find() for role, stage in stages.items()}
    return {"qk": qk} | {role: artifact for role, artifact in found.items() if artifact is not None}


def _number(name: str) -> int:
    """7 of IF7 or OF7."""
    return int(name[2:])


def sentence_of(tokens: list[str], key: int, query: int) -> Sentence:
    """Tokens with a gap where many stand between key and query."""
    if query - key <= NEAR:
        return {"tokens": tokens, "key": key, "query": query}
    left, right = key + BESIDE + 1, query - BESIDE
    return {"tokens": [*tokens[:left], None, *tokens[right:]], "key": key, "query": query - (right - left) + 1}
