"""How well the order of claims is that of effects: Spearman and AUROC over all pairs that are judged.

A pair is a source that was ablated on enough tokens and a living target, whether an edge claims anything of it or not:
most have a claim of 0, many an effect of exactly 0, and equal values share the mean of their ranks. Values count as
equal where they agree in their first 16 bits as float32 (within 1 in 128), so that all pairs of wide dictionaries are
counted in histograms and never listed. AUROC is the chance that of a pair with a strong effect and one without the
first has the higher claim, drawn at random (Hanley and McNeil 1982).

Intervals are 1.96 standard errors over resamples of the sources, each with all of its pairs; the resamples count pairs
in coarser classes, the figures themselves don't.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

LEVELS = 2**16
"""Values that are told apart,"""

ZERO = LEVELS // 2
"""and which of them is 0."""

SIDE = 64
"""Classes below 0, and as many above, in which resamples count."""

GROUPS = 1024
"""Sources that are drawn together, so that any number takes no more memory."""

RESAMPLES = 200

FIGURES = ("spearman", "spearman_edges", "auroc", "auroc_positive", "auroc_suppressive")
"""Of all pairs; of those with a claim; how well the claim's size tells strong effects from all other pairs; and its
value strong positive, and strong suppressive, ones."""


class Side(NamedTuple):
    """Some pairs by source and value; those of these sources that are not listed have the value 0."""

    source: torch.Tensor
    """[n] int64"""
    value: torch.Tensor
    """[n] float32"""


class Judged(NamedTuple):
    """All that the figures are of."""

    sources: torch.Tensor
    """[d_source] bool: which count."""
    width: int
    """Targets that count."""
    claim: Side
    """Every claim that is not 0,"""
    effect: torch.Tensor
    """and the effect on its pair."""
    strong: Side
    """Every strong effect,"""
    strong_claim: torch.Tensor
    """and the claim on its pair."""
    effects: Callable[[], Iterator[Side]]
    """All effects, part by part; read twice."""


def rank_agreement(judged: Judged) -> dict[str, float | None]:
    """The FIGURES, each with `_low` and `_high`; None where nothing is claimed, or no effect is strong."""
    place = judged.sources.cumsum(0) - 1
    n_sources = int(judged.sources.sum())
    n_groups = max(min(n_sources, GROUPS), 1)
    group = torch.where(judged.sources, place % n_groups, -1)
    kept = group[judged.claim.source] >= 0
    claim, effect = judged.claim.value[kept], judged.effect[kept]
    mine = group[judged.claim.source[kept]]
    claimed, measured = levels(claim), levels(effect)
    pairs = torch.bincount(group[group >= 0], minlength=n_groups) * judged.width
    total = int(pairs.sum())
    if not len(claim) or not total:
        return {f"{name}{end}": None for name in FIGURES for end in ("", "_low", "_high")}

    effects = torch.zeros(LEVELS, dtype=torch.int64)
    for part in judged.effects():
        some = group[part.source] >= 0
        effects += torch.bincount(levels(part.value[some]), minlength=LEVELS)
    effects[ZERO] = total - (effects.sum() - effects[ZERO])
    claims = torch.bincount(claimed, minlength=LEVELS)
    everywhere = claims.clone()
    everywhere[ZERO] = total - len(claim)
    value: dict[str, float] = {
        "spearman": _spearman(everywhere, effects, claimed, measured),
        "spearman_edges": _spearman(claims, torch.bincount(measured, minlength=LEVELS), claimed, measured),
    }

    of_claim, of_effect = classes(claims), classes(effects)
    joint = _counted(mine, [of_claim[claimed], of_effect[measured]], n_groups)
    marginal = torch.zeros(n_groups, 2 * SIDE + 1, dtype=torch.float64)
    for part in judged.effects():
        some = group[part.source] >= 0
        marginal += _counted(group[part.source[some]], [of_effect[levels(part.value[some])]], n_groups)
    marginal[:, SIDE] = pairs - (marginal.sum(1) - marginal[:, SIDE])
    edges = joint.clone()
    joint[:, SIDE] = marginal - joint.sum(1)

    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(n_groups, (RESAMPLES, n_groups), generator=generator)
    weight = torch.stack([torch.bincount(row, minlength=n_groups) for row in drawn]).double()
    again = {"spearman": _spearman_of_counts(_drawn(weight, joint)),
             "spearman_edges": _spearman_of_counts(_drawn(weight, edges))}  # fmt: skip

    strong_group = group[judged.strong.source]
    for name, sign in (("auroc", 0), ("auroc_positive", 1), ("auroc_suppressive", -1)):
        these = torch.ones(len(strong_group), dtype=torch.bool) if not sign else judged.strong.value * sign > 0
        score = levels(claim.abs() if not sign else sign * claim)
        theirs = judged.strong_claim[these]
        right = levels(theirs.abs() if not sign else sign * theirs)
        everyone = torch.bincount(score, minlength=LEVELS)
        table = classes(everyone)
        everyone[ZERO] = total - len(claim)
        value[name] = auroc(torch.bincount(right, minlength=LEVELS).double(), everyone.double()).item()
        by_group = _counted(mine, [table[score]], n_groups)
        by_group[:, SIDE] = pairs - by_group.sum(1)
        hits = _counted(strong_group[these], [table[right]], n_groups)
        again[name] = auroc(weight @ hits, weight @ by_group)
    return _with_intervals(value, again)


def _with_intervals(value: dict[str, float], again: dict[str, torch.Tensor]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name in FIGURES:
        known = value[name] == value[name]
        others = again[name][~again[name].isnan()]
        spread = 1.96 * others.std().item() if len(others) > 1 else 0.0
        least = -1.0 if name.startswith("spearman") else 0.0
        found[name] = value[name] if known else None
        found[f"{name}_low"] = max(value[name] - spread, least) if known else None
        found[f"{name}_high"] = min(value[name] + spread, 1.0) if known else None
    return found


def levels(value: torch.Tensor) -> torch.Tensor:
    """[n] int64 in 0..LEVELS that rise with float32 values [n]: their first 16 bits."""
    bits = (value.float() + 0.0).view(torch.int32)  # + 0: there is one zero
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> 16).long() + ZERO


def classes(count: torch.Tensor) -> torch.Tensor:
    """[LEVELS] the class of each level: 0 by itself, SIDE on either side of it that hold about as many pairs each."""
    out = torch.full((LEVELS,), SIDE)
    for first, last, shift in ((0, ZERO, 0), (ZERO + 1, LEVELS, SIDE + 1)):
        here = count[first:last].double()
        middle = here.cumsum(0) - here / 2
        out[first:last] = (middle * SIDE / here.sum().clamp(min=1)).long().clamp(max=SIDE - 1) + shift
    return out


def _counted(group: torch.Tensor, columns: list[torch.Tensor], n: int) -> torch.Tensor:
    """[n, classes, ...] how many pairs of each group are in each class of each column."""
    size, key = 2 * SIDE + 1, group
    for column in columns:
        key = key * size + column
    shape = [n] + [size] * len(columns)
    return torch.bincount(key, minlength=n * size ** len(columns)).double().view(shape)


def _drawn(weight: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    return (weight @ counts.flatten(1)).view(len(weight), *counts.shape[1:])


def _ranks(count: torch.Tensor) -> torch.Tensor:
    """[..., levels] the mean rank of each level's values, less the mean of all ranks, from how many it has."""
    total = count.sum(-1, keepdim=True)
    return count.cumsum(-1) - count / 2 - total / 2


def _spearman(x: torch.Tensor, y: torch.Tensor, of_x: torch.Tensor, of_y: torch.Tensor) -> float:
    """From how many pairs each level has, and the levels of those pairs [n] whose x is not 0."""
    rx, ry = _ranks(x.double()), _ranks(y.double())
    together = ((rx[of_x] - rx[ZERO]) * ry[of_y]).sum()
    if int(x.sum()) == len(of_x):  # all pairs are among them
        together = (rx[of_x] * ry[of_y]).sum()
    return (together / ((x * rx.square()).sum() * (y * ry.square()).sum()).sqrt()).item()


def _spearman_of_counts(count: torch.Tensor) -> torch.Tensor:
    """[n] from counts [n, classes, classes] of pairs."""
    x, y = count.sum(2), count.sum(1)
    rx, ry = _ranks(x), _ranks(y)
    together = torch.einsum("nxy,nx,ny->n", count, rx, ry)
    return together / ((x * rx.square()).sum(1) * (y * ry.square()).sum(1)).sqrt()


def auroc(right: torch.Tensor, everyone: torch.Tensor) -> torch.Tensor:
    """[...] from how many at each level are sought, and how many there are [..., levels]; nan without either."""
    wrong = everyone - right
    below = wrong.cumsum(-1) - wrong / 2
    return (right * below).sum(-1) / (right.sum(-1) * wrong.sum(-1))
