"""Several source latents taken out of a token at once, and one target latent read.

An ablation of a token is a set of source latents that go there together: from the model's own activation at a source
hook each one's activation times its decoder direction is taken away, and what lies between the hooks runs anew, norms
recomputed. The target is read by its SAE with the threshold held at the token's own, as in effects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from saelink.config.evidence import AblationValue
from saelink.interventions.block import STEP, Block, encoded_with_floor
from saelink.interventions.replaced import replaced_by
from saelink.latents.rows import Rows, sparse_linear
from saelink.saes.sae import LAYER_NORM_EPS

ACTIVE = 0.25
"""A latent is on where it is above this share of its activation-weighted mean, sum x^2 / sum x over the tokens:
TopK SAEs fire faintly on many tokens."""


class Gone(NamedTuple):
    """Which sources go from which of some tokens."""

    row: torch.Tensor
    """[p] int64, ascending: the place of the token among those that are asked about."""
    source: torch.Tensor
    """[p] int64"""


class Joint:
    """A link's computation, from which sets of source latents can be taken."""

    def __init__(self, block: Block, scales: list[float], ablation: AblationValue = AblationValue.zero):
        """`scales` are the units of the sources and, last, of the target."""
        self.block, self.scale = block, scales[-1]
        self._ablation = ablation
        sae = block.target_sae
        with torch.inference_mode():
            self._outputs = block.computation.outputs()
            self.before, self.floor = encoded_with_floor(sae, self._outputs)
            self.active = block.active()
        self.by_source, self.by_target = self.active.transposed(), self.before.transposed()
        """[d, n] the tokens by latent."""
        self.least = torch.zeros(sae.d_sae) if sae.threshold is None else sae.threshold.cpu().clamp(min=0)
        self.source_noise, self.target_noise = noise(self.active), noise(self.before)
        """[d] what a latent is on above, in raw units."""
        self._W_enc = sae.W_enc.T.contiguous()

    def __len__(self) -> int:
        return len(self.block.fold)

    def source_on(self, source: int) -> torch.Tensor:
        """[n] bool: where a source is on."""
        return _on(self.by_source, source, self.source_noise)

    def target_on(self, target: int) -> torch.Tensor:
        """[n] bool: where a target is on."""
        return _on(self.by_target, target, self.target_noise)

    def amount(self, token: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """[p] a source's activation at a token, less what comes for it, in raw units."""
        return self.active.at(token, source) - replaced_by(self._ablation, self.by_source, token, source)

    def taken(self, token: torch.Tensor, gone: Gone) -> list[torch.Tensor]:
        """By source hook [m, d_in] what the sources that go write at each of the tokens [m], less what comes for it."""
        of = token[gone.row]
        value = self.amount(of, gone.source)
        rows = Rows.from_pairs(gone.row, gone.source, value, n=len(token), d=self.active.d)
        side, first, found = self.block.side, 0, list[torch.Tensor]()
        for number, sae in enumerate(self.block.source_saes):
            mine = side[gone.source] == number
            part = Rows.from_pairs(
                rows.row_of[mine], gone.source[mine] - first, value[mine], n=len(token), d=sae.d_sae
            ).to(str(sae.W_dec.device))
            out = sparse_linear(part, sae.W_dec)
            units = sae.units(self.block.x[number][token.to(out.device)])
            found.append(out if units is None else out * units.scale)
            first += sae.d_sae
        return found

    def pre_act(self, acts: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """[m] the pre-activation of target[m] at activations [m, d_out] of the target hook, in raw units."""
        sae = self.block.target_sae
        target = target.to(acts.device)
        units = sae.units(acts)
        if units is not None:
            eps = LAYER_NORM_EPS if sae.input_norm == "layer_norm" else 0.0
            acts = (acts - units.mean) / (units.scale + eps)
        return ((acts * self._W_enc[target]).sum(1) + sae.b_enc[target]).cpu()

    def own(self, token: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """[m] the targets' pre-activations where nothing is taken out."""
        return self.pre_act(self._outputs[token.to(self._outputs.device)], target)

    def without(self, token: torch.Tensor, gone: Gone, target: torch.Tensor) -> torch.Tensor:
        """[m] the pre-activation of target[m] at each token [m], without the sources that go there."""
        order = torch.arange(len(token))
        groups = self.block.computation.groups
        if groups is not None:
            order = torch.argsort(groups[token], stable=True)
        return self.run(
            token[order], _reordered(gone, order), target[order],
            lambda at, taken: self.block.computation.without_all(at, taken),
        )[torch.argsort(order)]  # fmt: skip

    def run(
        self, token: torch.Tensor, gone: Gone, target: torch.Tensor,
        compute: Callable[[torch.Tensor, Sequence[torch.Tensor]], torch.Tensor],
    ) -> torch.Tensor:  # fmt: skip
        """[m] the targets' pre-activations; `compute` gives the target hook of tokens, and of what is taken there."""
        parts = [torch.zeros(0)]
        with torch.inference_mode():
            for first in range(0, len(token), STEP):
                last = min(first + STEP, len(token))
                here = slice(*torch.searchsorted(gone.row, torch.tensor([first, last])).tolist())
                part = Gone(gone.row[here] - first, gone.source[here])
                at = token[first:last]
                parts.append(self.pre_act(compute(at, self.taken(at, part)), target[first:last]))
        return torch.cat(parts)

    def value(self, pre: torch.Tensor, token: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """[m] what the SAE makes of pre-activations, its thresholds held, in units of the target's scale."""
        counts = (pre >= self.floor[token]) & (pre > self.least[target])
        return torch.where(counts, pre, 0.0) / self.scale

    def is_on(self, pre: torch.Tensor, token: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """[m] bool: whether a target of this pre-activation is on at its token."""
        return (pre >= self.floor[token]) & (pre > self.needed(token, target))

    def needed(self, token: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """[m] what a pre-activation must exceed for the target to be on, in raw units."""
        return torch.maximum(self.floor[token], torch.maximum(self.least[target], self.target_noise[target]))


def noise(rows: Rows) -> torch.Tensor:
    """[d] what a latent is on above: ACTIVE of its activation-weighted mean."""
    values = rows.values.double()
    size = torch.bincount(rows.indices, values.square(), minlength=rows.d)
    size /= torch.bincount(rows.indices, values, minlength=rows.d).clamp(min=1e-30)
    return (ACTIVE * size).float()


def each(token: torch.Tensor, *sources: int) -> Gone:
    """The same sources gone from every token [m]."""
    n = len(token)
    return Gone(torch.arange(n).repeat_interleave(len(sources)), torch.tensor(sources, dtype=torch.int64).repeat(n))


def evenly(token: torch.Tensor, most: int) -> torch.Tensor:
    """At most `most` of the tokens, evenly spread."""
    return token[torch.linspace(0, len(token) - 1, min(len(token), most)).round().long()]


def _on(by_latent: Rows, latent: int, noise: torch.Tensor) -> torch.Tensor:
    mine = slice(int(by_latent.offsets[latent]), int(by_latent.offsets[latent + 1]))
    found = torch.zeros(by_latent.d, dtype=torch.bool)
    found[by_latent.indices[mine][by_latent.values[mine] > noise[latent]]] = True
    return found


def _reordered(gone: Gone, order: torch.Tensor) -> Gone:
    """Of the tokens in another order, of which order[i] is the i-th."""
    place = torch.argsort(order)[gone.row]
    by = torch.argsort(place, stable=True)
    return Gone(place[by], gone.source[by])
