"""Which pairs of latents decide where a head looks, over many sequences.

A pair (i at the query, j at the key) has the term t(q, k) in a score. A constant over a row's keys changes nothing, so
terms are centred: less their mean over keys, weighed by the pattern. Taking a pair out of a row moves the pattern by
half the sum of A |t - mean t| to first order, and by a total variation that is computed exactly. The first is summed
for all pairs (the screen); the second for the pairs that lead in it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from saelink.kernels import in_parts
from saelink.looks.text import MODES, Arrays, Sequence, Text, Vectors

CANDIDATES = 400
"""Pairs whose exact effect is computed: those that lead in the screen in sum, for each mode, and by query."""

LEAST = 20
"""Queries that a pair must have to be looked at by what it does at one of them."""

ENTRIES = 512
"""Query entries whose products with all key entries are formed at once."""

OFFSETS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Where bins of offsets begin, in tokens; the last is open."""

PARTS = 256
"""Latents, or pairs, of one piece of work for a core."""

TOP = 5
"""Places that are kept of a pair, one a sequence."""


class ScoredPairs(NamedTuple):
    """What taking pairs out does to a head's pattern, summed over sequences; all but the latents by mode."""

    query: np.ndarray
    """[c] the latent at the query"""
    key: np.ndarray
    """[c] and the one at the key."""
    rows: np.ndarray
    """[c, modes] queries at which the pair has a term,"""
    variation: np.ndarray
    """[c, modes] the sum over these of the total variation of the pattern's row when the pair goes,"""
    lost: np.ndarray
    """[c, modes] of the attention that goes from the pair's keys with it (below 0: comes to them),"""
    control: np.ndarray
    """[c, modes] and of the variation for another latent active at the query with others active at the keys."""
    spread: np.ndarray
    """[c, modes] the standard error of variation less control, sequences drawn anew."""
    offsets: np.ndarray
    """[c, modes, OFFSETS] changes of the pattern at the pair's keys by q - k."""
    best: np.ndarray
    """[c, modes, TOP] the largest variations, one a sequence, falling; 0 where there are no more."""
    places: np.ndarray
    """[c, modes, TOP, 3] their sequence, query and most changed key."""

    def select(self, which: np.ndarray) -> ScoredPairs:
        return ScoredPairs(*(part[which] for part in self))

    def more_than_control(self) -> np.ndarray:
        """[c, modes] whether the pair moves the pattern more than its control does, beyond two standard errors."""
        return self.variation - self.control > 2 * self.spread


class Screening(NamedTuple):
    """First-order effects of all pairs."""

    table: np.ndarray
    """[modes, queries, keys] summed over rows,"""
    rows: np.ndarray
    """[queries, keys] how many of these have the term,"""
    query: np.ndarray
    """[queries] the latents that were looked at,"""
    key: np.ndarray
    """[keys] and those at keys."""

    def leading(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The latents of the pairs that lead in sum, n in each mode, or by query, among those with LEAST of them."""
        by_query = np.where(self.rows >= LEAST, self.table[-1] / np.maximum(self.rows, 1), 0)
        chosen: set[int] = set()
        for table in (*self.table, by_query):
            flat = table.ravel()
            most = min(n, int((flat > 0).sum()))
            if most:
                chosen |= set(np.argpartition(flat, -most)[-most:].tolist())
        which = np.array(sorted(chosen), dtype=np.int64)
        return self.query[which // len(self.key)], self.key[which % len(self.key)]


def bins(n: int) -> np.ndarray:
    """[n] the bin of each offset."""
    return np.searchsorted(np.array(OFFSETS), np.arange(n), side="right") - 1


def strongest(text: Text, head: int, read: tuple[torch.Tensor, torch.Tensor], most: int) -> list[np.ndarray]:
    """The latents whose queries, and those whose keys, have the largest summed length, at most `most` of each."""
    sums = [torch.zeros(text.sae.d_sae, device=text.device) for _ in range(2)]
    for number, sequence in enumerate(text.sequences):
        vectors = text.vectors(number, head, read)
        for total, parts in zip(sums, (vectors.queries, vectors.keys), strict=True):
            total.index_add_(0, sequence.latent, parts.norm(dim=1))
    kept = [total.topk(min(most, len(total))).indices[: int((total > 0).sum())] for total in sums]
    return [latents.sort().values.cpu().numpy() for latents in kept]


def screen(
    text: Text, head: int, read: tuple[torch.Tensor, torch.Tensor], most: int, shuffled: bool = False
) -> Screening:
    """First-order effects of all pairs of the `most` strongest latents on each side.

    read: `Text.directions`, the head's or a null's; shuffled: each token's keys stand at another position, at random.
    """
    query, key = strongest(text, head, read, most)
    slots = [np.full(text.sae.d_sae, -1) for _ in range(2)]
    for slot, latents in zip(slots, (query, key), strict=True):
        slot[latents] = np.arange(len(latents))
    table = np.zeros((len(MODES) + 1, len(query), len(key)), np.float32)
    generator = torch.Generator().manual_seed(0)
    on = torch.zeros(0)
    if text.device != "cpu":
        on = torch.zeros(table.shape, device=text.device)
    for number, sequence in enumerate(text.sequences):
        at = torch.randperm(text.n, generator=generator).to(text.device) if shuffled else None
        vectors = text.vectors(number, head, read, at)
        patterns = text.patterns(number, (vectors.whole_queries, vectors.whole_keys))
        stands = sequence.position if at is None else at[sequence.position]
        if text.device == "cpu":
            _screen(sequence, vectors, patterns, stands, slots, table)
        else:
            screen_plain(sequence, vectors, patterns, stands, slots, on)
    table = table if text.device == "cpu" else on.cpu().numpy()
    return Screening(table[:-1], table[-1], query, key)


def _screen(
    sequence: Sequence, vectors: Vectors, patterns: torch.Tensor, stands: torch.Tensor, slots: list[np.ndarray],
    table: np.ndarray,
) -> None:  # fmt: skip
    """Add one sequence, on the CPU."""
    from saelink.kernels import pairs as kernel

    # keys by latent, then by where they stand
    order = torch.argsort(sequence.latent * len(sequence.ids) + stands)
    latents, lengths = sequence.latent[order].unique_consecutive(return_counts=True)
    starts = np.concatenate([[0], lengths.cumsum(0).numpy()])
    keys = vectors.keys[order].T.contiguous()
    key_slots, key_position = slots[1][latents.numpy()], stands[order].numpy()
    where, weights = sequence.position.numpy(), patterns.numpy()
    query_slots = slots[0][sequence.latent.numpy()]
    for first in range(0, len(where), ENTRIES):
        part = slice(first, first + ENTRIES)
        products = (vectors.queries[part] @ keys).numpy()
        arguments = (
            starts, key_slots, key_position, products, where[part], query_slots[part], weights, table,
        )  # fmt: skip
        in_parts(len(key_slots), PARTS, lambda low, high, a=arguments: kernel.screen(low, high, *a))


def screen_plain(
    sequence: Sequence, vectors: Vectors, patterns: torch.Tensor, stands: torch.Tensor, slots: list[np.ndarray],
    table: torch.Tensor,
) -> None:  # fmt: skip
    """Add one sequence to table [modes + 1, queries, keys]: what the kernel computes, as tensor operations."""
    latents, group = sequence.latent.unique(return_inverse=True)
    rows, columns = (torch.from_numpy(slot).to(table.device) for slot in slots)
    columns = columns[latents]
    for first in range(0, len(group), ENTRIES):
        part = slice(first, first + ENTRIES)
        row = rows[sequence.latent[part]]
        terms = vectors.queries[part] @ vectors.keys.T
        for m, pattern in enumerate(patterns):
            weights = pattern[sequence.position[part]][:, stands]
            empty = terms.new_zeros(len(terms), len(latents))
            mean = empty.index_add(1, group, weights * terms)
            weight = empty.index_add(1, group, weights)
            change = empty.index_add(1, group, weights * (terms - mean[:, group]).abs())
            change += torch.where(weight > 0, (1 - weight).clamp(min=0) * mean.abs(), 0.0)
            _add(table[m], row, columns, 0.5 * change)
            if m == 0:
                _add(table[-1], row, columns, (weight > 0).float())


def _add(table: torch.Tensor, row: torch.Tensor, column: torch.Tensor, values: torch.Tensor) -> None:
    """table[row[e], column[g]] += values[e, g], where both are known (not -1)."""
    known = column >= 0
    kept = values.new_zeros(len(row), table.shape[1])
    kept[:, column[known]] = values[:, known]
    table.index_add_(0, row[row >= 0], kept[row >= 0])


def measure(
    text: Text, head: int, read: tuple[torch.Tensor, torch.Tensor], query: np.ndarray, key: np.ndarray,
    shuffled: bool = False,
) -> ScoredPairs:  # fmt: skip
    """What taking each of the pairs (query[c], key[c]) out does to a head's pattern; `shuffled` as for `screen`."""
    from saelink.kernels import pairs as kernel

    c, modes = len(query), len(MODES)
    figures, offsets = np.zeros((c, modes, 6)), np.zeros((c, modes, len(OFFSETS)))
    best, places = np.zeros((c, modes, TOP)), np.full((c, modes, TOP, 3), -1)
    generator = torch.Generator().manual_seed(0)
    for number, sequence in enumerate(text.sequences):
        at = torch.randperm(text.n, generator=generator).to(text.device) if shuffled else None
        vectors = text.vectors(number, head, read, at)
        patterns = text.patterns(number, (vectors.whole_queries, vectors.whole_keys)).cpu()
        if at is not None:  # the key at position k stands at at[k]: there the pattern is read
            patterns = patterns[:, :, at.cpu()]
        arguments = (
            query, key, *text.arrays(number, vectors), patterns.contiguous().numpy(), bins(text.n), sequence.number,
            figures, offsets, best, places,
        )  # fmt: skip
        in_parts(c, PARTS, lambda low, high, a=arguments: kernel.exact(low, high, *a))
    spread = np.sqrt(figures[..., 4])
    return ScoredPairs(
        query, key, figures[..., 0], figures[..., 1], figures[..., 2], figures[..., 3], spread, offsets, best, places
    )


def chosen(text: Text, head: int, most: int, order: torch.Tensor | None = None, shuffled: bool = False) -> ScoredPairs:
    """The pairs that lead in the screen with their exact effects; of the head, or of a null.

    order [d_sae]: decoder directions permuted among the latents; shuffled: see `screen`.
    """
    read = text.directions(head, order)
    query, key = screen(text, head, read, most, shuffled).leading(CANDIDATES)
    return measure(text, head, read, query, key, shuffled)


class Together(NamedTuple):
    """Several pairs that go at once."""

    query: np.ndarray
    key: np.ndarray
    mode: int
    """Which pattern is looked at, by its place among MODES."""


class Removed(NamedTuple):
    """What taking several pairs out of a head at once does, over all queries that count."""

    rows: int
    """Queries at which one of them has a term."""
    variation: float
    """Mean total variation of the pattern's rows,"""
    control: float
    """and with as many other latents' terms taken out at the same positions."""


def gathered(at_hand: Arrays, query: np.ndarray, key: np.ndarray) -> torch.Tensor:
    """[2, n, n] what pairs hold of a sequence's scores, and what their controls do."""
    from saelink.kernels import pairs as kernel

    n = len(at_hand.rows) - 1
    both = np.zeros((2, n, n), np.float32)
    kernel.gathered(query, key, *at_hand, both[0], both[1])
    return torch.from_numpy(both)


def without(pattern: torch.Tensor, terms: torch.Tensor) -> torch.Tensor:
    """[..., n, n] the pattern when terms [..., n, n] go from the scores; rows of 0 stay so."""
    logs = pattern.clamp(min=1e-38).log() - terms
    return torch.where(pattern > 0, logs, -torch.inf).softmax(-1).nan_to_num(0.0)


def remove(text: Text, head: int, sets: list[Together]) -> list[Removed]:
    """What taking each of the sets of pairs out of a head does to its pattern."""
    read = text.directions(head)
    rows, sums = [0] * len(sets), torch.zeros(len(sets), 2, dtype=torch.float64)
    for number in range(len(text)):
        vectors = text.vectors(number, head, read)
        patterns = text.patterns(number, (vectors.whole_queries, vectors.whole_keys)).cpu()
        at_hand = text.arrays(number, vectors)
        for which, pairs in enumerate(sets):
            terms, pattern = gathered(at_hand, pairs.query, pairs.key), patterns[pairs.mode]
            touched = ((terms[0] != 0) & (pattern > 0)).any(-1)
            rows[which] += int(touched.sum())
            kept = pattern[touched]
            moved = (without(kept, terms[:, touched]) - kept).abs()
            sums[which] += 0.5 * moved.sum((-2, -1)).double()
    mean = (sums / int(text.counted.sum())).tolist()
    return [Removed(n, *both) for n, both in zip(rows, mean, strict=True)]
