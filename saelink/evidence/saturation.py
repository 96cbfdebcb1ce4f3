"""Whether the null of permuted decoders says anything: where it saturates, and why.

It takes out as much as the source's latent is active, along another latent's decoder direction, and claims should not
agree with what that does. On small SAEs they can: with few latents the strongest claims are about sources that write
much of the activations, and so much taken out in any direction disturbs the same targets; or the decoders' directions
are close to one another, and what is taken out is nearly the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from saelink.interventions.pairs import Effects
from saelink.job import Job
from saelink.saes.load import pull_sae

SATURATED = 0.5
"""The null is saturated where its precision is at least this share of the graph's own,"""

CLEAR = 0.2
"""and at least this."""

ALIKE, LARGE = 0.5, 0.3
"""A cosine between directions, and a share of the activations' norm, that explain it."""


def saturated(own: Mapping[str, Any], null: Mapping[str, Any]) -> bool:
    """Whether claims agree with the null's effects so well that it says nothing; figures are those of `judged`."""
    mine, theirs = own.get("precision_1x"), null.get("precision_1x")
    return mine is not None and theirs is not None and theirs >= max(SATURATED * mine, CLEAR)


def causes(job: Job, measured: Effects, sources: torch.Tensor) -> dict[str, float]:
    """What could make it saturate, medians over the sources [n] of the strongest claims.

    `cosine` between their decoder directions and those that take their places; `step`, what they write where they are
    active as a share of the activations' median norm.
    """
    generator = torch.Generator().manual_seed(0)  # as effects.EffectsStage permutes them
    cosine, step = [], []
    for side, hook, scale in zip(job.sides.sources, job.link.sources, job.sides.scales, strict=False):
        W_dec = pull_sae(job.cfg, job.store, hook).to("cpu", torch.float32).W_dec
        other = W_dec[torch.randperm(len(W_dec), generator=generator)]
        cosine.append(torch.nn.functional.cosine_similarity(W_dec, other, dim=1))
        step.append(scale * W_dec.norm(dim=1) / side.facts["median_norm"])
    size = torch.cat(step) * measured.source_mean
    return {"cosine": torch.cat(cosine)[sources].median().item(), "step": size[sources].median().item()}


def reason(null: Mapping[str, Any]) -> str:
    """In words why a saturated null is so."""
    said = []
    if null["cosine"] >= ALIKE:
        said.append(
            f"directions and those in their place have cosine {null['cosine']:.2f}, so it takes out nearly the same"
        )
    if null["step"] >= LARGE:
        said.append(
            f"the sources write {null['step']:.0%} of the activations' norm, and so much taken out in any direction "
            "disturbs the same targets"
        )
    known = "; ".join(said) or f"no known cause (cosine {null['cosine']:.2f}, {null['step']:.0%} of the norm)"
    return f"permuted decoders are no null here: {known}"
