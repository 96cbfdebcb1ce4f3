"""What taking out every source latent, one at a time, does to every target latent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from saelink.config.evidence import AblationValue
from saelink.interventions.block import FOLDS, STEP, Block, encoded_with_floor, read_held, rows_at_once
from saelink.interventions.pairs import Effects, Pairs, pairs_of
from saelink.interventions.replaced import replaced_by
from saelink.kernels import in_parts
from saelink.latents.rows import Rows, offsets_of
from saelink.progress import Observer

MOST_SOURCES = 1024
"""Sources of one part at most,"""

MOST_CHANGES = 2**26
"""and about how many changes of single targets by single ablations: what is in memory at a time, 16 bytes each."""

ROWS, SOURCES = 64, 16
"""Ablations, and sources, of one piece of compiled work."""


class Changes(NamedTuple):
    """What every single ablation changed, in units of the latents' scales."""

    rows: Rows
    """[n, d_target] f(x) - f(x - a d)."""
    token: torch.Tensor
    """[n] the token, by its place among the split's tokens that count."""
    source: torch.Tensor
    """[n] the source that was ablated."""
    value: torch.Tensor
    """[n] its activation there, less what comes for it."""


class Ablations(NamedTuple):
    """Which source is ablated on which token, in the order of sources and folds."""

    token: torch.Tensor
    source: torch.Tensor
    fold: torch.Tensor
    value: torch.Tensor
    """The source's activation there."""


def choose_ablations(
    active: Rows, fold: torch.Tensor, most: int, sources: torch.Tensor | None = None
) -> Ablations:  # fmt: skip
    """At most `most` tokens of each source, evenly spread over those where it is active.

    `active` [d_source, n] are the tokens by source, `fold` [n]; `sources` are those that are asked for, ascending.
    """
    sources = torch.arange(len(active)) if sources is None else sources
    mine = active.select(sources)
    number = mine.row_of
    place = torch.arange(len(number)) - mine.offsets[number]
    n = mine.offsets.diff()[number]
    # The first of each of `most` equal parts: floor(p * most / n) changes there.
    step = torch.div(place * most, n, rounding_mode="floor")
    before = torch.div((place - 1) * most, n, rounding_mode="floor")
    kept = (n <= most) | (place == 0) | (step != before)
    token, number, value = mine.indices[kept], number[kept], mine.values[kept]
    by = torch.argsort(number * FOLDS + fold[token], stable=True)
    return Ablations(token[by], sources[number[by]], fold[token][by], value[by])


class Measurement(NamedTuple):
    """All that the effects of any of the sources are measured from."""

    block: Block
    most: int
    """Tokens of a source."""
    scales: list[float]
    """The units of the sources and, last, of the target."""
    sources: torch.Tensor
    """[m] int64 those that are ablated, ascending."""
    active: Rows
    """[d_source, n] by source latent the tokens where it is active."""
    before: Rows
    """[n, d_target] the target latents,"""
    floor: torch.Tensor
    """[n] and what a value must reach to count at each token."""
    directions: torch.Tensor
    """[d_source, d_in] what is taken out."""
    ablation: AblationValue = AblationValue.zero
    """What comes for it."""

    @property
    def unit(self) -> torch.Tensor:
        """[d_source] the units of the sources."""
        return torch.tensor(self.scales[:-1])[self.block.side]


class Part(NamedTuple):
    """The effects of some of the sources."""

    pairs: Pairs
    tokens: torch.Tensor
    """[FOLDS, n] on how many tokens each was ablated."""
    source_mean: torch.Tensor
    """[n] its mean activation there, less what comes for it."""
    changes: Changes | None
    """What each ablation changed, where that is asked for."""


def open_measurement(
    block: Block, most: int, scales: list[float] | None = None, directions: torch.Tensor | None = None,
    sources: torch.Tensor | None = None, ablation: AblationValue = AblationValue.zero,
) -> Measurement:  # fmt: skip
    """What measuring the effects of a block's sources starts from.

    At most `most` tokens a source; `directions` [d_source, d_in] are taken out instead of the source SAEs' decoder
    directions; only `sources` are ablated if they are given.
    """
    before, floor = encoded_with_floor(block.target_sae, block.computation.outputs())
    active = block.active().transposed()
    return Measurement(
        block,
        most,
        [1.0] * (len(block.source_saes) + 1) if scales is None else scales,
        torch.arange(len(active)) if sources is None else sources,
        active,
        before,
        floor,
        block.directions() if directions is None else directions,
        ablation,
    )


def effects_of_sources(
    given: Measurement, low: int, high: int, keep: bool = False, done: Callable[[int], object] = lambda n: None
) -> Part:
    """The effects of the sources given.sources[low:high]. Nothing else is read or written, and in no other order.

    With `keep` every single change comes back too; `done(n)` is told of every n sources that are ablated.
    """
    block, scale = given.block, given.scales[-1]
    ids = given.sources[low:high]
    chosen = choose_ablations(given.active, block.fold, given.most, ids)
    comes = replaced_by(given.ablation, given.active, chosen.token, chosen.source)
    chosen = chosen._replace(value=chosen.value - comes)
    number = torch.searchsorted(ids, chosen.source)
    n = len(ids)
    reached = 0

    def count(share: float) -> None:
        nonlocal reached
        done(int(share * n) - reached)
        reached = int(share * n)

    changes = _changes(given, chosen, count).scaled(1 / scale)
    count(1.0)
    counts = torch.bincount(chosen.fold * n + number, minlength=FOLDS * n).view(FOLDS, n)
    total = counts.sum(0)
    sums = torch.zeros(n, dtype=torch.float64).index_add_(0, number, chosen.value.double())
    mean = (sums / total.clamp(min=1) / given.unit[ids]).float()
    kept = None
    if keep:
        rows = Rows(changes.offsets, changes.indices.long(), changes.values, changes.d)
        kept = Changes(rows, chosen.token, chosen.source, chosen.value / given.unit[chosen.source])
    return Part(_summed(changes, ids, total, chosen.fold), counts, mean, kept)


def _changes(given: Measurement, chosen: Ablations, done: Callable[[float], object]) -> Rows:
    """[ablations, d_target] f(x) - f(x - a d) in raw units, indices int32; as they were chosen.

    `done` is told which share of them is made.
    """
    block, target_sae = given.block, given.block.target_sae
    device = block.x[0].device
    order = None
    if block.computation.groups is not None:  # a sequence is run for all its tokens at once
        order = torch.argsort(block.computation.groups[chosen.token], stable=True)
        chosen = Ablations(*(column[order] for column in chosen))
    by_latent = torch.zeros(target_sae.d_sae)
    if target_sae.threshold is not None:
        by_latent = target_sae.threshold.cpu().clamp(min=0)
    step = rows_at_once(target_sae)
    room = torch.empty(min(step, len(chosen.token)), target_sae.d_sae, device=device)
    parts = [Rows(torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int32), torch.zeros(0), room.shape[1])]
    for first in range(0, len(chosen.token), STEP):
        token, source, value = (
            column[first : first + STEP] for column in (chosen.token, chosen.source, chosen.value)
        )  # fmt: skip
        acts = block.without(token, source, block.taken(token, source, value, given.directions))
        for low in range(0, len(token), step):
            pre = target_sae.pre_acts(acts[low : low + step], room)
            here = token[low : low + step]
            parts.append(changed(pre, here, given.before, given.floor[here], by_latent))
        done((first + len(token)) / len(chosen.token))
    changes = Rows.stack(parts)
    return changes if order is None else changes.select(torch.argsort(order))


def changed(
    pre: torch.Tensor, token: torch.Tensor, before: Rows, by_token: torch.Tensor, by_latent: torch.Tensor
) -> Rows:
    """[rows, d] what the target SAE gave at token[r] less what pre[r] leaves, where that differs; indices int32."""
    from saelink.kernels.effects import changed_rows, subtracted_rows

    known = token.numpy(), *(tensor.numpy() for tensor in (before.offsets, before.indices, before.values))
    if pre.device.type == "cpu":
        arrays = [tensor.numpy() for tensor in (pre, by_token, by_latent)]
        found = _by_parts(len(token), ROWS, lambda low, high: changed_rows(low, high, *known, *arrays))
    else:
        after = Rows.from_dense(read_held(pre, by_token, by_latent)).to("cpu")
        arrays = [tensor.numpy() for tensor in (after.offsets, after.indices, after.values)]
        found = _by_parts(len(token), ROWS, lambda low, high: subtracted_rows(low, high, *known, *arrays))
    counts, indices, values = found
    return Rows(offsets_of(counts), indices, values, pre.shape[1])


def _summed(changes: Rows, sources: torch.Tensor, ablations: torch.Tensor, fold: torch.Tensor) -> Pairs:
    """Effects of sources [n] from the changes of their `ablations` [n], one source after the other."""
    from saelink.kernels.effects import sums_by_source

    arrays = [tensor.numpy() for tensor in (offsets_of(ablations), fold, changes.offsets, changes.indices)]
    values = changes.values.numpy()
    found = _by_parts(
        len(sources), SOURCES, lambda low, high: sums_by_source(low, high, *arrays, values, changes.d, FOLDS)
    )
    return pairs_of(sources, *found)


def _by_parts(n: int, step: int, work: Callable[[int, int], tuple[Any, ...]]) -> tuple[torch.Tensor, ...]:
    """What `work` gives for 0..n, piece after piece; made in parallel."""
    pieces: dict[int, tuple[Any, ...]] = {0: work(0, 0)}

    def keep(low: int, high: int) -> None:
        pieces[low] = work(low, high)

    in_parts(n, step, keep)
    columns = zip(*(pieces[low] for low in sorted(pieces)), strict=True)
    return tuple(torch.from_numpy(np.concatenate(list(column))) for column in columns)


def part_of_sources(n_sources: int, changes: float) -> int:
    """How many sources a part has, where the ablations of one make about so many changes of single targets."""
    return max(min(int(MOST_CHANGES / changes), MOST_SOURCES, n_sources), 16)


def gathered(
    given: Measurement, parts: list[Callable[[], Pairs]], tokens: torch.Tensor, source_mean: torch.Tensor
) -> Effects:
    """The effects of all sources; `tokens` [FOLDS, m] and `source_mean` [m] are of those that were ablated."""
    active, before = given.active, given.before
    fired = torch.bincount(before.indices, minlength=before.d)
    target_sum = torch.bincount(before.indices, before.values.double(), minlength=before.d)
    n = len(before)
    return Effects(
        parts,
        torch.zeros(FOLDS, len(active), dtype=torch.int64).index_copy_(1, given.sources, tokens),
        torch.zeros(len(active)).index_copy_(0, given.sources, source_mean),
        (active.offsets.diff() / n).float(),
        (target_sum / fired.clamp(min=1) / given.scales[-1]).float(),
    )


def measure_effects(given: Measurement, observer: Observer, step: int = MOST_SOURCES) -> Effects:
    """The effects of every source latent on every target latent of a block, in memory; `step` sources at a time."""
    parts: list[Part] = []
    with observer.progress("effects", len(given.sources), "sources") as bar:
        for low in range(0, len(given.sources), step):
            high = min(low + step, len(given.sources))
            parts.append(effects_of_sources(given, low, high, done=bar.advance))
    read = [lambda pairs=part.pairs: pairs for part in parts]
    tokens = torch.cat([part.tokens for part in parts], 1)
    return gathered(given, read, tokens, torch.cat([part.source_mean for part in parts]))
