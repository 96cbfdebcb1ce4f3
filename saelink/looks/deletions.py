"""Leading pairs deleted in the model, norms free, against other latents deleted at the same tokens: `qk_deletions`."""

from __future__ import annotations

from typing import Any, TypedDict

import torch

from saelink.job import Job, JobStage
from saelink.latents.shards import side_of
from saelink.looks.causal import BATCH, DELETIONS, Place, deleted, places_by_pair
from saelink.looks.layer import ScoredLayer
from saelink.looks.stage import HEADS_FILE, HeadFacts, QKFacts, open_layer, qk_bytes
from saelink.looks.text import MODES, Text
from saelink.saes.load import pull_sae
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.stage import Need

DELETIONS_FILE = "deletions.json"

PLACES = 16
"""Places of each pair, each in another sequence of the half where pairs are judged."""

LEAST = 4
"""Places that a pair must have to be compared with its control one by one."""


class Moved(TypedDict):
    """What a deletion does to the row of the pattern at the query: mean total variation over places."""

    pair: float
    """Of the pair's latents,"""
    control: float
    """and of as many others at random, active at the same tokens."""
    error: float
    """Standard error of the difference over places."""


class HeadDeletions(TypedDict):
    head: int
    pairs: int
    """Leading pairs that have a place,"""
    places: int
    deletions: dict[str, Moved]
    """by what goes: j at the key, i at the query, or both."""
    compared: int
    """Pairs with LEAST places,"""
    more_than_control: int
    """and those of them whose both latents move the pattern more than their controls, by two standard errors."""


class QKDeletionsFacts(TypedDict):
    heads: list[int]
    places: int


class QKDeletionsStage(JobStage[QKDeletionsFacts]):
    """The leading pairs of `qk`, without sinks, deleted in the model. File `deletions.json`: a list of HeadDeletions.

    Pairs were chosen on the first half of the text; everything here is of the second.
    """

    name = "qk_deletions"
    version = 1

    def __init__(self, job: Job, qk: Artifact[QKFacts]):
        super().__init__(job)
        self._qk = qk

    def recipe(self) -> dict[str, Any]:
        return {}

    def inputs(self) -> dict[str, str]:
        return {"qk": self._qk.key}

    def about(self) -> str:
        return self._qk.manifest["about"]

    def need(self) -> Need:
        side = side_of(pull_sae(self.job.cfg, self.store, self._qk.facts["hook_name"]))
        return Need(qk_bytes(self.job, side), "use fewer tokens (qk.tokens) or fewer latents (qk.latents)")

    def make(self, draft: Draft) -> QKDeletionsFacts:
        job, hook = self.job, self._qk.facts["hook_name"]
        opened = open_layer(job, hook, pull_sae(job.cfg, self.store, hook).to(self.device, torch.float32))
        heads: list[HeadFacts] = self._qk.json(HEADS_FILE)
        found: list[HeadDeletions] = []
        with job.observer.progress("qk_deletions", len(heads), "heads") as bar, torch.inference_mode():
            for head in heads:
                pairs = [(pair["query"], pair["key"]) for pair in head["pairs"][MODES[1]]]
                found.append(head_deletions(opened.attention, opened.second, head["head"], pairs))
                bar.advance(1)
        draft.save_json(DELETIONS_FILE, found)
        return {"heads": [head["head"] for head in heads], "places": sum(head["places"] for head in found)}


def head_deletions(attention: ScoredLayer, text: Text, head: int, pairs: list[tuple[int, int]]) -> HeadDeletions:
    """The pairs (query latent, key latent) of one head deleted, and their controls."""
    by_pair = [places for places in places_by_pair(text, pairs, head, PLACES) if places]
    places = [place for each in by_pair for place in each]
    others = controls_of(text, places)
    own, control = (_moved(attention, text, head, which) for which in (places, others))
    more = own - control
    both, start, compared, above = more[:, DELETIONS.index("both")], 0, 0, 0
    for each in by_pair:
        mine = both[start : start + len(each)]
        start += len(each)
        if len(mine) >= LEAST:
            compared += 1
            above += int(mine.mean() > 2 * mine.std() / len(mine) ** 0.5)
    n = max(len(places), 1)
    return {
        "head": head,
        "pairs": len(by_pair),
        "places": len(places),
        "deletions": {
            name: Moved(
                pair=own[:, at].sum().item() / n,
                control=control[:, at].sum().item() / n,
                error=more[:, at].std().item() / n**0.5 if n > 1 else 0.0,
            )
            for at, name in enumerate(DELETIONS)
        },
        "compared": compared,
        "more_than_control": above,
    }


def controls_of(text: Text, places: list[Place]) -> list[Place]:
    """For each place another latent active at its query, and another at its key; its own where there is no other."""
    generator = torch.Generator().manual_seed(0)
    found: list[Place] = []
    for place in places:
        rows = text.sequences[place.number].rows.tolist()
        entries = [
            _other(rows[position], rows[position + 1], own, generator)
            for position, own in ((place.query, place.query_entry), (place.key, place.key_entry))
        ]
        found.append(Place(place.number, place.query, place.key, *entries))
    return found


def _other(first: int, last: int, own: int, generator: torch.Generator) -> int:
    """An entry from first to last, at random, that is not `own`."""
    if last - first < 2:
        return own
    drawn = first + int(torch.randint(last - first - 1, (1,), generator=generator))
    return drawn + (drawn >= own)


def _moved(attention: ScoredLayer, text: Text, head: int, places: list[Place]) -> torch.Tensor:
    """[places, DELETIONS] total variation of the pattern's row at the query, norms free."""
    found = torch.zeros(len(places), len(DELETIONS), dtype=torch.float64)
    for first in range(0, len(places), BATCH):
        part = places[first : first + BATCH]
        rows = torch.arange(len(part), device=text.device)
        at = torch.tensor([place.query for place in part], device=text.device)
        numbers = torch.tensor([place.number for place in part], device=text.device)
        before = attention.run(text.stream[numbers]).pattern[rows, head, at]
        for which, deletion in enumerate(DELETIONS):
            after = attention.run(deleted(text, part, deletion)).pattern[rows, head, at]
            found[first : first + len(part), which] = 0.5 * (after - before).abs().sum(-1).double().cpu()
    return found
