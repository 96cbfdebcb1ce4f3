"""What latents mean beside what they fire on: tokens their directions promote, and latents that are like them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from saelink.job import Job
from saelink.latents.encode import EncodeFacts
from saelink.latents.link import counted_split
from saelink.latents.rows import Rows
from saelink.model.directions import Unembedding, Words, writes_into_stream
from saelink.model.load import load_hf
from saelink.report.cards.firing import Firing
from saelink.report.structure import Meaning
from saelink.saes.load import pull_sae
from saelink.store.artifact import Artifact

WORDS = 8
"""Tokens that a direction promotes, and as many that it suppresses."""

ALIKE = 6
"""Latents of similar direction, and as many that fire on the same tokens."""

LEAST = 0.05
"""Overlap, and cosine, from which on latents are called alike."""

BLOCK = 256
"""Directions that are compared with all others at a time."""


class Meanings:
    """What the chosen latents of both sides mean, computed once for the whole page."""

    def __init__(self, job: Job, firing: Firing):
        self._job, self._firing = job, firing
        self._unembedding: Unembedding | None = None
        self._loaded = False

    def of_side(self, side: Artifact[EncodeFacts], rows: Rows, first: int, chosen: Sequence[int]) -> dict[int, Meaning]:
        """By number in its SAE what each of the chosen latents means; `rows` are the side's test latents.

        Other latents are named by the connector's numbering, in which the side's begin at `first`.
        """
        numbers = torch.tensor(sorted(chosen))
        if not len(numbers):
            return {}
        hook = side.facts["hook_name"]
        directions = pull_sae(self._job.cfg, self._job.store, hook).W_dec.detach().float().cpu()
        words = self._words(hook, directions[numbers])
        alive = torch.bincount(rows.indices, minlength=rows.d) > 0
        cosines = _similar(directions, numbers, alive)
        overlaps = _together(rows, numbers)
        found: dict[int, Meaning] = {}
        for place, latent in enumerate(numbers.tolist()):
            meaning: Meaning = {
                "similar": [[first + other, value] for other, value in cosines[place]],
                "together": [[first + other, value] for other, value in overlaps[place]],
            }
            if words is not None:
                up, up_score, down, down_score = (column[place].tolist() for column in words)
                meaning["words"] = {"up": self._named(up, up_score), "down": self._named(down, down_score)}
            found[latent] = meaning
        return found

    def _named(self, tokens: list[int], scores: list[float]) -> list[list[Any]]:
        return [[self._firing.token(token), round(score, 2)] for token, score in zip(tokens, scores, strict=True)]

    def _words(self, hook: str, directions: torch.Tensor) -> Words | None:
        """The tokens that directions promote; None at a hook that does not write into the residual stream."""
        if not writes_into_stream(hook) or directions.shape[1] != self._job.model.d_model:
            return None
        if not self._loaded:
            self._loaded = True
            self._unembedding = Unembedding.of(load_hf(self._job.cfg.model, self._job.model.artifact).hf_model)
        if self._unembedding is None:
            return None
        return self._unembedding.words(directions, WORDS, len(self._job.vocabulary))


def _similar(directions: torch.Tensor, chosen: torch.Tensor, alive: torch.Tensor) -> list[list[tuple[int, float]]]:
    """Of each chosen direction the others that ever fire with the largest cosine."""
    unit = torch.nn.functional.normalize(directions, dim=1)
    found: list[list[tuple[int, float]]] = []
    for block in chosen.split(BLOCK):
        cosines = unit[block] @ unit.T
        cosines[:, ~alive] = -1
        cosines[torch.arange(len(block)), block] = -1
        values, others = cosines.topk(min(ALIKE, cosines.shape[1]))
        found += [
            [(other, round(value, 3)) for other, value in zip(*pair, strict=True) if value >= LEAST]
            for pair in zip(others.tolist(), values.tolist(), strict=True)
        ]
    return found


def _together(rows: Rows, chosen: torch.Tensor) -> list[list[tuple[int, float]]]:
    """Of each chosen latent the others of the largest overlap: tokens where both fire over those where either does."""
    columns = rows.transposed()
    begins, row_of = columns.offsets.numpy(), columns.indices.numpy()
    offsets, latents = rows.offsets.numpy(), rows.indices.numpy()
    counts = np.diff(begins)
    found: list[list[tuple[int, float]]] = []
    for latent in chosen.tolist():
        mine = row_of[begins[latent] : begins[latent + 1]]
        lengths = offsets[mine + 1] - offsets[mine]
        places = np.repeat(offsets[mine] - np.concatenate([[0], lengths.cumsum()[:-1]]), lengths) if len(mine) else []
        met = latents[places + np.arange(lengths.sum())] if len(mine) else np.zeros(0, np.int64)
        both = np.bincount(met, minlength=rows.d)
        overlap = both / np.maximum(counts + counts[latent] - both, 1)
        overlap[latent] = 0
        best = np.argsort(-overlap, kind="stable")[:ALIKE]
        found.append([(int(other), round(float(overlap[other]), 3)) for other in best if overlap[other] >= LEAST])
    return found


def meanings(
    job: Job, firing: Firing, targets: set[int], sources: set[int]
) -> tuple[dict[int, Meaning], dict[int, Meaning]]:
    """What the kept latents mean, by target and by the connector's number of a source."""
    sides = job.sides
    test = counted_split(job.cfg, sides, "test").whole()
    made = Meanings(job, firing)
    of_targets = made.of_side(sides.target, test.target, 0, sorted(targets))
    of_sources: dict[int, Meaning] = {}
    first = 0
    for side in sides.sources:
        d = side.facts["d_sae"]
        rows = test.source.columns(torch.arange(first, first + d))
        chosen = [number - first for number in sources if first <= number < first + d]
        if side.stage == "moved":  # pairs of head and latent are no latents of an SAE
            chosen = []
        of_sources |= {first + latent: meaning for latent, meaning in made.of_side(side, rows, first, chosen).items()}
        first += d
    return of_targets, of_sources
