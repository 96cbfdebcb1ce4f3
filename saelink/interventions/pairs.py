"""Effects of source latents on target latents, of the pairs alone in which something changes."""

# torch leaves arguments of some of its methods without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch

from saelink.interventions.block import FOLDS
from saelink.latents.rows import offsets_of


class Pairs(NamedTuple):
    """The effects of some sources, in units of the latents' scales.

    Of a source only the targets that some ablation of it changed: a target that is silent before and after has an
    effect of exactly 0.
    """

    source: torch.Tensor
    """[n] int64 the sources, ascending."""
    offsets: torch.Tensor
    """[n + 1] int64: the pairs of source[i] are those from offsets[i] to offsets[i + 1]."""
    target: torch.Tensor
    """[pairs] int32, ascending in each source"""
    mean: torch.Tensor
    """[pairs] float32 M, the mean over the source's ablations."""
    groups: torch.Tensor
    """[pairs] int16: bit f is set where the sum over the ablations in documents of group f is not 0."""
    sums: torch.Tensor
    """float16, of each pair in turn the sums of its groups, the first first."""

    @property
    def source_of(self) -> torch.Tensor:
        """[pairs] int64: the source of each pair."""
        return torch.repeat_interleave(self.source, self.offsets.diff())

    def folds(self) -> torch.Tensor:
        """[pairs, FOLDS] float32: the sum over each group's ablations."""
        from saelink.kernels.effects import sums_by_group

        out = torch.empty(len(self.target), FOLDS)
        sums_by_group(self.groups.numpy(), self.sums.float().numpy(), out.numpy())
        return out

    def consistent(self) -> torch.Tensor:
        """[pairs] whether the effect has one sign in both halves of the documents."""
        return same_sign(self.folds())

    def keep(self, chosen: torch.Tensor, target: torch.Tensor | None = None) -> Pairs:
        """Only the pairs that are chosen [pairs], under other numbers `target` [pairs] if they are given."""
        count = torch.zeros(len(chosen) + 1, dtype=torch.int64)
        torch.cumsum(chosen, 0, out=count[1:])
        lengths = sum((self.groups >> f) & 1 for f in range(FOLDS))
        assert isinstance(lengths, torch.Tensor)
        sums = self.sums[torch.repeat_interleave(chosen, lengths.long())]
        renamed = self.target if target is None else target.int()
        return Pairs(
            self.source, count[self.offsets], renamed[chosen], self.mean[chosen], self.groups[chosen], sums
        )  # fmt: skip

    def explain(self, place: torch.Tensor) -> Pairs:
        """Target i as place[i], which rises with i; those with a place below 0 are left out."""
        new = place[self.target.long()]
        return self.keep(new >= 0, new)

    def add_to(self, out: torch.Tensor, values: torch.Tensor) -> None:
        """out[source, target] += values [pairs], in place; out [d_source, d_target]."""
        at = self.source_of * out.shape[1] + self.target
        flat = out.view(-1)
        flat[at] += values.to(out.dtype)  # no pair is there twice


@dataclass(frozen=True)
class Effects:
    """The effects of all sources on all targets, read in parts."""

    parts: Sequence[Callable[[], Pairs]]
    """Each reads the effects of some sources, ascending from one to the next; sources that are in none were not
    ablated."""
    tokens: torch.Tensor
    """[FOLDS, d_source] on how many tokens each source was ablated."""
    source_mean: torch.Tensor
    """[d_source] mean activation of the source on those tokens."""
    source_rate: torch.Tensor
    """[d_source] share of the tokens looked at on which the source is active."""
    target_mean: torch.Tensor
    """[d_target] mean active value of the target on all tokens looked at."""

    @property
    def d_source(self) -> int:
        return len(self.source_mean)

    @property
    def d_target(self) -> int:
        return len(self.target_mean)

    def pairs(self) -> Iterator[Pairs]:
        """The parts, one at a time in memory."""
        for read in self.parts:
            yield read()

    def explain(self, target_ids: torch.Tensor) -> Effects:
        """Only these target latents, ascending."""
        assert bool((target_ids.diff() > 0).all())
        place = torch.full((self.d_target,), -1, dtype=torch.int64)
        place[target_ids] = torch.arange(len(target_ids))
        return replace(self, parts=[partial(_explained, read, place) for read in self.parts],
                       target_mean=self.target_mean[target_ids])  # fmt: skip

    def on(self, groups: torch.Tensor) -> Effects:
        """On some groups of documents [FOLDS] alone; rates and mean activations stay those of all."""
        tokens = self.tokens * groups[:, None]
        parts = [partial(_on_groups, read, groups, tokens.sum(0)) for read in self.parts]
        return replace(self, parts=parts, tokens=tokens)

    def dense(self) -> torch.Tensor:
        """[d_source, d_target] M; for a few thousand latents."""
        out = torch.zeros(self.d_source, self.d_target)
        for part in self.pairs():
            part.add_to(out, part.mean)
        return out


def pairs_of_folds(folds: torch.Tensor, ablations: torch.Tensor) -> Pairs:
    """The effects of sources 0 to n from dense sums [FOLDS, n, d_target] over each group's ablations [n]."""
    source, target = (folds != 0).any(0).nonzero(as_tuple=True)
    sums = folds[:, source, target].T  # [pairs, FOLDS]
    some = sums != 0
    groups = (some * (1 << torch.arange(FOLDS))).sum(1).to(torch.int16)
    mean = sums.sum(1) / ablations[source].clamp(min=1)
    counts = torch.bincount(source, minlength=folds.shape[1])
    return pairs_of(torch.arange(folds.shape[1]), counts, target.int(), mean.float(), groups, sums[some])


def same_sign(folds: torch.Tensor) -> torch.Tensor:
    """[n] whether sums over groups of documents [n, FOLDS] have one sign in both halves of them."""
    return folds[:, ::2].sum(1) * folds[:, 1::2].sum(1) > 0


def _explained(read: Callable[[], Pairs], place: torch.Tensor) -> Pairs:
    return read().explain(place)


def _on_groups(read: Callable[[], Pairs], groups: torch.Tensor, tokens: torch.Tensor) -> Pairs:
    part = read()
    n = tokens[part.source_of].clamp(min=1)
    return part._replace(mean=part.folds()[:, groups].sum(1) / n)


def pairs_of(
    source: torch.Tensor, counts: torch.Tensor, target: torch.Tensor, mean: torch.Tensor, groups: torch.Tensor,
    sums: torch.Tensor,
) -> Pairs:  # fmt: skip
    """Pairs from how many each source has."""
    return Pairs(source, offsets_of(counts), target, mean, groups, sums.half())
