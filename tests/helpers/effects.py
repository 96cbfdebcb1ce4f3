"""Effects measured and kept densely: the second implementation that the sparse one is compared with."""

from __future__ import annotations

from typing import NamedTuple

import torch

from saelink.interventions.block import FOLDS, read_held
from saelink.interventions.measure import Measurement, choose_ablations
from saelink.interventions.pairs import Effects, Pairs
from saelink.latents.rows import offsets_of


class Dense(NamedTuple):
    """[d_source, d_target] means and [FOLDS, d_source, d_target] sums."""

    mean: torch.Tensor
    folds: torch.Tensor


def dense_effects(given: Measurement) -> Dense:
    """Every ablation in turn, its change added to a dense matrix in float64."""
    block, sae = given.block, given.block.target_sae
    chosen = choose_ablations(given.active, block.fold, given.most)
    by_latent = torch.zeros(sae.d_sae) if sae.threshold is None else sae.threshold.clamp(min=0)
    folds = torch.zeros(FOLDS, len(given.active), sae.d_sae, dtype=torch.float64)
    order = torch.arange(len(chosen.token))
    if block.computation.groups is not None:
        order = torch.argsort(block.computation.groups[chosen.token], stable=True)
    for part in order.split(100):
        token, source, value = chosen.token[part], chosen.source[part], chosen.value[part]
        acts = block.without(token, source, block.taken(token, source, value, given.directions))
        after = read_held(sae.pre_acts(acts), given.floor[token], by_latent)
        change = given.before.select(token).dense() - after
        folds.view(-1, sae.d_sae).index_add_(0, chosen.fold[part] * len(given.active) + source, change.double())
    n = torch.bincount(chosen.source, minlength=len(given.active)).clamp(min=1)
    folds /= given.scales[-1]
    return Dense(folds.sum(0) / n[:, None], folds)


def sparse_effects(
    mean: torch.Tensor, folds: torch.Tensor, tokens: torch.Tensor, source_mean: torch.Tensor,
    source_rate: torch.Tensor, target_mean: torch.Tensor, parts: int = 2,
) -> Effects:  # fmt: skip
    """Effects of dense means [d_source, d_target] and sums [FOLDS, d_source, d_target], in some parts."""
    pieces = [
        pairs_of_dense(rows, mean[rows], folds[:, rows]) for rows in torch.arange(len(mean)).chunk(parts)
    ]  # fmt: skip
    read = [lambda pairs=pairs: pairs for pairs in pieces]
    return Effects(read, tokens, source_mean, source_rate, target_mean)


def pairs_of_dense(source: torch.Tensor, mean: torch.Tensor, folds: torch.Tensor) -> Pairs:
    """The pairs of sources [n] where anything is not zero."""
    place, target = ((mean != 0) | (folds != 0).any(0)).nonzero(as_tuple=True)
    sums = folds[:, place, target].T.half()
    bits = (sums != 0).int() * 2 ** torch.arange(FOLDS, dtype=torch.int32)
    return Pairs(
        source, offsets_of(torch.bincount(place, minlength=len(source))), target.int(), mean[place, target].float(),
        bits.sum(1).short(), sums[sums != 0],
    )  # fmt: skip
