"""What latents fire on, as cards show it: examples, tokens, sizes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from saelink.activations.tokens import SPLITS
from saelink.evidence.hidden_units import HiddenUnitsStage, load_hidden
from saelink.evidence.names import Names
from saelink.job import Job
from saelink.latents.encode import EncodeFacts
from saelink.latents.examples import OCTAVES, Examples, ExamplesFacts, ExamplesStage, load_examples, tokens_around
from saelink.latents.stream import WINDOW, text_of
from saelink.latents.top_tokens import TopTokens
from saelink.report.structure import Example, LatentCard, Quote, Stretch, TokenShare
from saelink.store.artifact import Artifact

EXAMPLES_SHOWN = {"top": 8, "random": 4}
"""Examples of a card, besides one of every size."""


class Looked(NamedTuple):
    """A set of latents as the stages `examples` and `top_tokens` saw them, and where its shown places are."""

    found: Examples
    tops: TopTokens
    facts: ExamplesFacts
    places: np.ndarray[Any, Any]
    """[d, n] every place kept."""
    around: np.ndarray[Any, Any]
    """[d, n, WIDTH] in units."""
    kinds: list[str]
    """[n] why it was kept: top, size, random."""

    @staticmethod
    def of(found: Examples, tops: TopTokens, facts: ExamplesFacts) -> Looked:
        top, size, some = found.top_place.shape[1], found.size_place[0].numel(), found.any_place.shape[1]
        kinds = ["top"] * top + ["size"] * size + ["random"] * some
        return Looked(found, tops, facts, found.places().numpy(), found.around.float().numpy() / facts["unit"], kinds)

    def shown(self, latent: int) -> list[int]:
        """Columns of the latent's shown places: the strongest, one of every size, some at random; none twice."""
        per_size = self.found.size_place.shape[2]
        first_size = self.kinds.count("top")
        first_random = first_size + self.kinds.count("size")
        columns = [
            *range(min(EXAMPLES_SHOWN["top"], first_size)),
            *range(first_random - per_size, first_size - 1, -per_size),  # the largest size first
            *range(first_random, min(first_random + EXAMPLES_SHOWN["random"], len(self.kinds))),
        ]
        seen: set[int] = {-1}
        chosen = []
        for column in columns:
            place = int(self.places[latent, column])
            if place not in seen:
                seen.add(place)
                chosen.append(column)
        return chosen


class Firing:
    """What the latents on both sides of a link fire on; read when it is first asked for."""

    def __init__(self, job: Job):
        self._job, self.tokens, self.names = job, job.tokens, Names(job)
        self.text = text_of(self.tokens)
        self._known: dict[int, str] = {}
        self._looked: dict[str, Looked] = {}
        splits = [self.tokens.tensors(f"{split}.safetensors")["document"].flatten() for split in SPLITS]
        self._document = torch.cat(splits).numpy()

    def token(self, token_id: int) -> str:
        """A token as text, its blank in front kept."""
        if token_id not in self._known:
            self._known[token_id] = self.names.text(token_id)
        return self._known[token_id]

    def looked(self, side: Artifact[EncodeFacts]) -> Looked:
        """What a hook's latents fire on."""
        if side.key not in self._looked:
            hook = side.facts["hook_name"]
            artifact = ExamplesStage(self._job.cfg, self._job.store, hook).pull()
            self._looked[side.key] = Looked.of(load_examples(artifact), self.names.top_tokens(hook), artifact.facts)
        return self._looked[side.key]

    def hidden(self, job: Job) -> Looked:
        """What the hidden units of a job's connector fire on."""
        stage = HiddenUnitsStage(job)
        if stage.key not in self._looked:
            artifact = stage.pull()
            found, tops, _ = load_hidden(artifact)
            self._looked[stage.key] = Looked.of(found, tops, artifact.facts)
        return self._looked[stage.key]

    def hidden_token(self, job: Job, unit: int) -> str | None:
        """The token that carries most of a hidden unit's activation."""
        top = int(self.hidden(job).tops.token[unit, 0])
        return self.token(top) if top >= 0 else None

    def card(self, name: str, looked: Looked, latent: int, with_examples: bool = True) -> LatentCard:
        """What a latent (or hidden unit) fires on, whatever it is wired to."""
        tops, facts = looked.tops, looked.facts
        everything = max(tops.total[latent].item(), 1e-30)
        tokens: list[TokenShare] = [
            {"token": self.token(token), "share": short(weight / everything), "fires": fires, "occurs": occurs}
            for token, weight, fires, occurs in zip(*(table[latent, :8].tolist() for table in tops[:-1]), strict=True)
            if token >= 0 and weight > 0
        ]
        histogram = looked.found.histogram[latent]
        page = self.names.page(facts["hook_name"])
        card: LatentCard = {
            "name": name,
            "hook": facts["hook_name"],
            "latent": latent,
            "token": tokens[0]["token"] if tokens else None,
            "active": int(histogram.sum()),
            "tokens_seen": facts["n_tokens"],
            "unit": short(facts["unit"]),
            "histogram": histogram.tolist(),
            "quantiles": {f"{q:g}": _quantile(histogram, q) for q in (0.5, 0.9, 0.99)},
            "tokens": tokens,
            "examples": self._examples(looked, latent) if with_examples else [],
        }
        if page:
            card["page"] = f"{page}/{latent}"
        return card

    def _examples(self, looked: Looked, latent: int) -> list[Example]:
        columns = looked.shown(latent)
        places = looked.places[latent, columns]
        return [
            self.example(int(place), values, looked.kinds[column], looked.facts)
            for place, values, column in zip(places, looked.around[latent, columns], columns, strict=True)
        ]

    def example(self, place: int, values: np.ndarray[Any, Any], kind: str, facts: ExamplesFacts) -> Example:
        """The text around a place and what a latent is there, in units."""
        context = facts["context_size"]
        ids = tokens_around(self.text, np.array(place), context)
        there = ids >= 0
        sequence, position = divmod(place, context)
        split = SPLITS[0]
        for split in SPLITS:
            if sequence < facts["sequences"][split]:
                break
            sequence -= facts["sequences"][split]
        return {
            "kind": kind,
            "split": split,
            "document": int(self._document[place]),
            "place": place,
            "position": position,
            "value": short(float(values[WINDOW])),
            "at": int(there[:WINDOW].sum()),
            "tokens": [self.token(token) for token in ids[there].tolist()],
            "values": rounded(values[there]),
        }

    def stretch(self, first: int, last: int, context: int) -> Stretch:
        """The rows from `first` up to `last`, all of one sequence, and where in them a document begins."""
        tokens = [self.token(token) for token in self.text[first:last].tolist()]
        documents = self._document[first:last].tolist()
        begins = [i for i, document in enumerate(documents) if i == 0 or document != documents[i - 1]]
        return {"at": first % context, "tokens": tokens, "documents": [[i, documents[i]] for i in begins]}

    def quote(self, row: int) -> Quote:
        """The text around a row of the test split."""
        facts = self._job.sides.target.facts
        place = sum(facts["sequences"][split] for split in SPLITS[:-1]) * facts["context_size"] + row
        ids = tokens_around(self.text, np.array(place), facts["context_size"])
        return {"at": int((ids[:WINDOW] >= 0).sum()), "tokens": [self.token(i) for i in ids[ids >= 0].tolist()]}


def short(value: float) -> float:
    """Four digits: what is shown."""
    return float(f"{value:.4g}")


def rounded(values: Any) -> list[float]:
    """Two decimals, in units."""
    return np.round(values.astype(np.float64), 2).tolist()


def _quantile(histogram: torch.Tensor, share: float) -> float | None:
    """In units: the upper end of the quarter octave in which this share of the activations is reached."""
    total = int(histogram.sum())
    if not total:
        return None
    place = int((histogram.cumsum(0) >= share * total).nonzero()[0])
    return short(2.0 ** ((place + 1 - 2 * OCTAVES) / 4))
