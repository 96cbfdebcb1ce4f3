"""Latents taken out of the model in front of one layer's attention, against what the formula says of it."""

from __future__ import annotations

from typing import NamedTuple, TypedDict

import numpy as np
import torch

from saelink.attention.heads import Heads
from saelink.interventions.block import encoded_with_floor, read_held
from saelink.looks.layer import ScoredLayer
from saelink.looks.pairs import ScoredPairs, gathered, without
from saelink.looks.scores import Scales
from saelink.looks.text import Text
from saelink.saes.sae import SAE

DELETIONS = ("key", "query", "both")
"""j goes at the key, i at the query, or both go."""

BATCH = 16
"""Sequences that a layer's attention is run on at once."""

PER_PAIR = 4
"""Places of a pair that are tried."""

LEAST = 1e-4
"""A place's key has at least so much attention: of less a pattern in float32 says little."""


class Place(NamedTuple):
    """Latent i at a query and j at a key before it."""

    number: int
    query: int
    key: int
    query_entry: int
    key_entry: int


class Deleted(TypedDict):
    """How what the formula says of deletions agrees with the model, over all places."""

    places: int
    frozen_r: float | None
    """Correlation of the change of the centred score, s - <q_i, k> - <q, k_j> + <q_i, k_j>, norms' scales frozen,"""
    frozen_error: float | None
    """and the norm of the difference over that of the change."""
    free_r: float | None
    """The same with the norms free to divide by what is left."""
    free_slope: float | None
    """By how much the free change grows with the formula's."""
    pair_frozen_r: float | None
    """Of the pair alone: the change when both go less those when either goes, frozen"""
    pair_free_r: float | None
    """and free,"""
    pair_free_slope: float | None


def places_of(text: Text, pairs: ScoredPairs, head: int, most: int) -> list[Place]:
    """Places of the first `most` pairs at random, in sequences at random, the key the pair's most looked at there."""
    both = zip(pairs.query[:most].tolist(), pairs.key[:most].tolist(), strict=True)
    return [place for places in places_by_pair(text, list(both), head, PER_PAIR) for place in places]


def places_by_pair(text: Text, pairs: list[tuple[int, int]], head: int, most: int) -> list[list[Place]]:
    """For each of the pairs (query latent, key latent) at most so many places, each in another sequence."""
    found: list[list[Place]] = []
    generator = torch.Generator().manual_seed(0)
    patterns: dict[int, torch.Tensor] = {}
    for i, j in pairs:
        mine: list[Place] = []
        found.append(mine)
        for number in torch.randperm(len(text), generator=generator).tolist():
            sequence = text.sequences[number]
            queries = sequence.entries[sequence.starts[i] : sequence.starts[i + 1]].tolist()
            keys = sequence.entries[sequence.starts[j] : sequence.starts[j + 1]].tolist()
            if not queries or not keys:
                continue
            if number not in patterns:
                patterns[number] = text.patterns(number, text.whole(number, head))[0].cpu()
            position = sequence.position.tolist()
            e = queries[int(torch.randint(len(queries), (1,), generator=generator))]
            weights = [
                float(patterns[number][position[e], position[p]]) if position[p] < position[e] else 0.0 for p in keys
            ]
            best = int(np.argmax(weights))
            if weights[best] >= LEAST:
                mine.append(Place(number, position[e], position[keys[best]], e, keys[best]))
            if len(mine) == most:
                break
    return found


def deletions(attention: ScoredLayer, text: Text, head: int, places: list[Place]) -> Deleted:
    """What the model's own modules make of the stream without the latents, and what the formula says."""
    read = text.directions(head)
    said = np.array([_said(text, head, read, place) for place in places]).reshape(len(places), 3)
    frozen = _measured(attention, text, head, places, True)
    free = _measured(attention, text, head, places, False)
    return {
        "places": len(places),
        "frozen_r": correlation(said, frozen),
        "frozen_error": None if not len(places) else float(np.linalg.norm(frozen - said) / np.linalg.norm(said)),
        "free_r": correlation(said, free),
        "free_slope": _slope(said, free),
        "pair_frozen_r": correlation(_pair(said), _pair(frozen)),
        "pair_free_r": correlation(_pair(said), _pair(free)),
        "pair_free_slope": _slope(_pair(said), _pair(free)),
    }


def _pair(changes: np.ndarray) -> np.ndarray:
    return changes[:, 2] - changes[:, 0] - changes[:, 1]


def correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson's r; None for fewer than three places."""
    return None if len(x) < 3 or not x.std() or not y.std() else float(np.corrcoef(x.ravel(), y.ravel())[0, 1])


def _slope(x: np.ndarray, y: np.ndarray) -> float | None:
    x, y = x.ravel(), y.ravel()
    return None if len(x) < 3 else float((x @ y) / max(x @ x, 1e-30))


def _said(text: Text, head: int, read: tuple[torch.Tensor, torch.Tensor], place: Place) -> list[float]:
    """The change of the centred score between a place's query and key by the formula, for each of DELETIONS."""
    vectors = text.vectors(place.number, head, read)
    pattern = text.patterns(place.number, (vectors.whole_queries, vectors.whole_keys))[0][place.query]
    query, keys = vectors.whole_queries[place.query], vectors.whole_keys
    i, j = vectors.queries[place.query_entry], vectors.keys[place.key_entry]
    own = vectors.keys[place.query_entry]  # i is part of its own token's key too
    changes = []
    for deletion in DELETIONS:
        change = torch.zeros(text.n, device=text.device)
        if deletion != "key":
            change -= keys @ i
            change[place.query] += (i - query) @ own
        if deletion != "query":
            change[place.key] -= (query - (i if deletion == "both" else 0)) @ j
        changes.append(float(change[place.key] - pattern @ change))
    return changes


def _measured(attention: ScoredLayer, text: Text, head: int, places: list[Place], held: bool) -> np.ndarray:
    """[places, DELETIONS] the same as the model's own modules give it; `held`: with the scales of the norms frozen."""
    changes = np.zeros((len(places), len(DELETIONS)))
    for first in range(0, len(places), BATCH):
        part = places[first : first + BATCH]
        numbers = torch.tensor([place.number for place in part], device=text.device)
        stream = text.stream[numbers]
        scales = [text.scales[place.number] for place in part]
        frozen = (text.form, Scales(*(torch.cat(parts) for parts in zip(*scales, strict=True)))) if held else None
        rows = torch.arange(len(part), device=text.device)
        at = torch.tensor([place.query for place in part], device=text.device)
        keys = torch.tensor([place.key for place in part], device=text.device)
        with torch.inference_mode():
            before = attention.run(stream).pattern[rows, head, at]
            for number, deletion in enumerate(DELETIONS):
                changed = deleted(text, part, deletion)
                after = attention.run(changed, frozen).pattern[rows, head, at]
                seen = (before > 0) & (after > 0)
                change = torch.where(seen, (after / before).log(), 0.0)
                centred = change[rows, keys] - (before * change).sum(-1)
                changes[first : first + len(part), number] = centred.cpu().numpy()
    return changes


def deleted(text: Text, places: list[Place], deletion: str) -> torch.Tensor:
    """[places, n, d_model] the places' sequences without the latents that a deletion takes out."""
    changed = text.stream[torch.tensor([place.number for place in places], device=text.device)].clone()
    for row, place in enumerate(places):
        sequence = text.sequences[place.number]
        gone = [place.query_entry] * (deletion != "key") + [place.key_entry] * (deletion != "query")
        for entry in gone:
            taken = sequence.value[entry] * text.sae.W_dec[sequence.latent[entry]]
            changed[row, sequence.position[entry]] -= taken
    return changed


class TargetsChanged(TypedDict):
    """What taking pairs out of a head changes of the latents that read attention's output, where it changes a row."""

    pairs: int
    change: float
    """The sum of the changes' sizes over the sum of the latents,"""
    control: float
    """and with as many other latents' terms taken out at the same positions."""


def targets_changed(
    attention: ScoredLayer, heads: Heads, text: Text, target: SAE, head: int, sets: list[np.ndarray]
) -> list[TargetsChanged]:
    """What a head's pattern without each set of pairs [2, pairs] makes of the target SAE's latents.

    All else in the layer stays as it is: values, and what other heads add.
    """
    read, sums = text.directions(head), torch.zeros(len(sets), 2, dtype=torch.float64)
    totals = torch.zeros(len(sets), dtype=torch.float64)
    by_latent = torch.zeros(target.d_sae) if target.threshold is None else target.threshold.clamp(min=0)
    for number in range(len(text)):
        with torch.inference_mode():
            vectors = text.vectors(number, head, read)
            pattern = text.patterns(number, (vectors.whole_queries, vectors.whole_keys))[0].cpu()
            own = attention.run(text.stream[number][None]).output[0].float()
            values = heads.token_values(text.stream[number])[:, int(heads.kv_of[head])] @ heads.W_O[head]
            before, floor = encoded_with_floor(target, heads.behind(own))
            dense, at_hand = before.dense(), text.arrays(number, vectors)
            for which, (query, key) in enumerate(sets):
                terms = gathered(at_hand, query, key)
                rows = ((terms[0] != 0) & (pattern > 0)).any(-1)
                totals[which] += dense[rows].sum()
                for side in range(2):
                    moved = (without(pattern[rows], terms[side, rows]) - pattern[rows]).to(values.device) @ values
                    after = target.pre_acts(heads.behind(own[rows.to(own.device)] + moved))
                    change = read_held(after, floor[rows], by_latent).cpu() - dense[rows]
                    sums[which, side] += change.abs().double().sum()
    shares = (sums / totals.clamp(min=1e-12)[:, None]).tolist()
    return [
        {"pairs": len(pairs[0]), "change": own, "control": control}
        for pairs, (own, control) in zip(sets, shares, strict=True)
    ]
