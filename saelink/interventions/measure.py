"""What taking out every source latent, one at a time, does to every target latent."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from saelink.interventions.block import FOLDS, STEP, Block, encoded_with_floor, read_held
from saelink.kernels import in_parts
from saelink.latents.rows import Rows
from saelink.progress import Observer


class Effects(NamedTuple):
    """Effects in units of the latents' scales."""

    mean: torch.Tensor
    """[d_source, d_target] M."""
    folds: torch.Tensor
    """[FOLDS, d_source, d_target] float16: the sum over each fold's tokens, M being their sum over all tokens."""
    tokens: torch.Tensor
    """[FOLDS, d_source] on how many tokens each source was ablated."""
    source_mean: torch.Tensor
    """[d_source] mean activation of the source on those tokens."""
    source_rate: torch.Tensor
    """[d_source] share of the tokens looked at on which the source is active."""
    target_mean: torch.Tensor
    """[d_target] mean active value of the target on all tokens looked at."""

    def explain(self, target_ids: torch.Tensor) -> Effects:
        """Only these target latents, in this order."""
        kept = {"mean": self.mean[:, target_ids], "target_mean": self.target_mean[target_ids]}
        return self._replace(**kept, folds=self.folds[:, :, target_ids])

    def consistent(self) -> torch.Tensor:
        """[d_source, d_target] whether the effect has one sign in both halves of the documents."""
        halves = self.folds[::2].float().sum(0), self.folds[1::2].float().sum(0)
        return (halves[0] * halves[1]) > 0


class Changes(NamedTuple):
    """What every single ablation changed, in units of the latents' scales."""

    rows: Rows
    """[n, d_target] f(x) - f(x - a d)."""
    token: torch.Tensor
    """[n] the token, by its place among the split's tokens that count."""
    source: torch.Tensor
    """[n] the source that was ablated."""
    value: torch.Tensor
    """[n] its activation there."""


class Ablations(NamedTuple):
    """Which source is ablated on which token, in the order of sources and folds."""

    token: torch.Tensor
    source: torch.Tensor
    fold: torch.Tensor
    value: torch.Tensor
    """The source's activation there."""


def choose_ablations(rows: Rows, fold: torch.Tensor, most: int) -> Ablations:
    """At most `most` tokens of each source, evenly spread over those where it is active."""
    order = torch.sort(rows.indices, stable=True).indices
    source = rows.indices[order]
    counts = torch.bincount(source, minlength=rows.d)
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(source)) - starts[source]
    n = counts[source]
    # The first of each of `most` equal parts: floor(p * most / n) changes there.
    step = torch.div(place * most, n, rounding_mode="floor")
    before = torch.div((place - 1) * most, n, rounding_mode="floor")
    kept = (n <= most) | (place == 0) | (step != before)
    token = rows.row_of[order][kept]
    source, value = source[kept], rows.values[order][kept]
    by = torch.argsort(source * FOLDS + fold[token], stable=True)
    return Ablations(token[by], source[by], fold[token][by], value[by])


def measure_effects(
    block: Block, most: int, observer: Observer, scales: list[float] | None = None,
    directions: torch.Tensor | None = None, keep: bool = False,
) -> tuple[Effects, Changes | None]:  # fmt: skip
    """The effects of every source latent on every target latent of a block.

    At most `most` tokens a source; `directions` [d_source, d_in] are taken out instead of the source SAEs' decoder
    directions; `scales` are the units of the sources and, last, of the target; with `keep` every single change comes
    back too.
    """
    target_sae = block.target_sae
    scales = [1.0] * (len(block.source_saes) + 1) if scales is None else scales
    unit = torch.tensor(scales[:-1])[block.side]
    before, floor = encoded_with_floor(target_sae, block.computation.outputs())
    active = block.active()
    d_source = active.d
    chosen = choose_ablations(active, block.fold, most)
    if block.computation.groups is not None:
        by = torch.argsort(block.computation.groups[chosen.token], stable=True)
        chosen = Ablations(*(column[by] for column in chosen))
    kept: list[Rows] | None = [] if keep else None
    sums = _ablate(block, directions, before, floor, chosen, kept, observer)
    counts = torch.bincount(chosen.fold * d_source + chosen.source, minlength=FOLDS * d_source).view(FOLDS, -1)
    total = counts.sum(0).clamp(min=1)
    folds = sums.view(FOLDS, d_source, target_sae.d_sae) / scales[-1]
    source_sum = torch.zeros(d_source, dtype=torch.float64).index_add_(0, chosen.source, chosen.value.double())
    active_on = torch.bincount(active.indices, minlength=active.d)
    fired = torch.bincount(before.indices, minlength=before.d)
    target_sum = torch.bincount(before.indices, before.values.double(), minlength=before.d)
    found = Effects(
        folds.sum(0) / total[:, None],
        folds.half(),
        counts,
        (source_sum / total / unit).float(),
        (active_on / len(before)).float(),
        (target_sum / fired.clamp(min=1) / scales[-1]).float(),
    )
    if kept is None:
        return found, None
    rows = Rows.stack(kept).scaled(1 / scales[-1])
    return found, Changes(rows, chosen.token, chosen.source, chosen.value / unit[chosen.source])


def _ablate(
    block: Block, directions: torch.Tensor | None, before: Rows, floor: torch.Tensor, chosen: Ablations,
    kept: list[Rows] | None, observer: Observer,
) -> torch.Tensor:  # fmt: skip
    """[FOLDS * d_source, d_target] sums of f(x) - f(x - a d), raw units; each of them is added to `kept` if given."""
    target_sae, device = block.target_sae, block.x[0].device
    d_source = sum(sae.d_sae for sae in block.source_saes)
    directions = block.directions() if directions is None else directions
    by_latent = torch.zeros(target_sae.d_sae)
    if target_sae.threshold is not None:
        by_latent = target_sae.threshold.cpu().clamp(min=0)
    sums = torch.zeros(FOLDS * d_source, target_sae.d_sae)
    room = torch.empty(STEP, target_sae.d_sae, device=device)
    slot_of = chosen.fold * d_source + chosen.source
    with observer.progress("effects", len(chosen.token), "ablations") as bar:
        for first in range(0, len(chosen.token), STEP):
            part = slice(first, first + STEP)
            token, source, slots = chosen.token[part], chosen.source[part], slot_of[part]
            acts = block.without(token, source, block.taken(token, source, chosen.value[part], directions))
            if kept is not None:
                pre = target_sae.pre_acts(acts, room)
                change = before.select(token).dense() - read_held(pre, floor[token], by_latent).cpu()
                kept.append(Rows.from_dense(change))
            if block.computation.groups is not None:  # equal slots in a row, whatever the order of the tokens
                by = torch.argsort(slots, stable=True)
                acts, token, slots = acts[by.to(device)], token[by], slots[by]
            add_differences(target_sae.pre_acts(acts, room), slots, token, before, floor[token], by_latent, sums)
            bar.advance(len(token))
    return sums


def add_differences(
    pre: torch.Tensor, slots: torch.Tensor, token: torch.Tensor, before: Rows, by_token: torch.Tensor,
    by_latent: torch.Tensor, sums: torch.Tensor,
) -> None:  # fmt: skip
    """sums[slots[r]] += what the target SAE gave at token[r] less what pre[r] leaves; equal slots stand in a row."""
    if pre.device.type == "cpu":
        from saelink.kernels import effects as kernel

        unique, lengths = slots.unique_consecutive(return_counts=True)
        cuts = np.concatenate([[0], lengths.cumsum(0).numpy()])
        arguments = (
            cuts, unique.numpy(), token.numpy(), before.offsets.numpy(), before.indices.numpy(), before.values.numpy(),
            pre.numpy(), by_token.numpy(), by_latent.numpy(), sums.numpy(),
        )  # fmt: skip
        in_parts(len(unique), 2, lambda low, high: kernel.add_differences(low, high, *arguments))
        return
    kept = read_held(pre, by_token, by_latent)
    unique, place = slots.unique_consecutive(return_inverse=True)
    after = torch.zeros(len(unique), pre.shape[1], device=pre.device).index_add_(0, place.to(pre.device), kept)
    sums[unique] -= after.cpu()
    rows = before.select(token)
    sums.view(-1).index_add_(0, slots[rows.row_of] * before.d + rows.indices, rows.values)
