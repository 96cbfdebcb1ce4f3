"""The settings of what is asked of a fitted connector: ablations, where heads look, a blind judge."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class AblationValue(Enum):
    """What stands in the place of a latent that is ablated: nothing, or its activation on another token."""

    zero = "zero"
    resample = "resample"


@dataclass
class VerifyConfig:
    """How the causal effect of every edge is measured."""

    tokens_per_source: int = 256
    """Tokens on which a source latent is ablated, evenly spread over those where it is active; of the test documents,
    and for solver=causal of the training documents."""
    tokens: int = 65_536
    """Test tokens that are looked at, always the first ones."""
    fit_tokens: int = 400_000
    """Training tokens that are looked at for solver=causal."""
    ablation: AblationValue = AblationValue.zero
    """What comes for an ablated source: zero; resample: its activation on a token drawn from all that are looked at,
    0 where it is not active there."""
    strong: float = 0.1
    """An effect is strong from this share of the target's mean active value on, if its sign is the same in both halves
    of the documents."""
    null_sources: int | None = None
    """Sources, drawn at random, that the two measured nulls ablate; null: all of up to 4,096, of
    more a tenth, but at least 2,048."""
    consequences: int = 0
    """Also what the model's next token loses without so many confirmed edges, their targets, as many outlier latents
    (6: three minutes on 2 cores for the default model)."""
    chosen: list[str] = field(default_factory=list[str])
    """Further edges for this, source-target, such as [353-1262]."""
    output_tokens: int = 4096
    """Test tokens, the first ones, on which every edge's effectiveness and helpfulness for the model's output are
    estimated; 0 leaves them out."""
    draws: int = 1
    """output_tokens: draws of next tokens in each sequence."""
    edges_checked: int = 0
    """Also run the model without so many edges, such as 200, and compare with the estimates (200: some 10 minutes on 2
    cores for the default model)."""
    check_tokens: int = 2048
    """edges_checked: test tokens it is done on."""
    pruned_tokens: int = 0
    """Also the cross-entropy of the model without the least of the edges, by weight, effect, effectiveness and
    helpfulness, on so many test tokens behind those of output_tokens."""
    joint: int = 64
    """Targets, evenly spread over those with two strong effects, of which pairs and the strongest sources are also
    taken out together; 0: none."""
    qk: bool = False
    """link=ov: also test which pairs of latents decide where heads look, as `saelink qk` does, and delete the leading
    ones in the model (some minutes on 2 cores)."""
    stability: bool | None = None
    """Also fit again on halves of the documents: how often is each edge chosen? null: where that is cheap (exact,
    causal); true: also for proximal, which is trained four times more."""
    stability_targets: int | None = None
    """Targets, drawn at random, whose edges this is found of; null: all of up to 8,192, 4,096 of more."""


@dataclass
class QKConfig:
    """How `saelink qk` finds which pairs of latents decide where a head looks."""

    tokens: int = 16_384
    """Test tokens that are looked at, always the first ones: pairs are chosen on one half of them, judged on the
    other."""
    pairs: int = 20
    """Pairs that are kept of each head, for all keys and for those that are no sinks."""
    latents: int = 4096
    """Latents on each side whose pairs are looked at: those with the longest queries, and keys, in sum."""
    together: list[int] = field(default_factory=lambda: [1, 10, 100])
    """So many of the leading pairs are also taken out at once."""
    nulls: bool = True
    """Also choose pairs by permuted decoders, by shuffled positions and for another head, and judge those."""
    targets: bool = False
    """Also measure what the latents that read attention's output lose; trains an SAE for hook_attn_out where it has
    none."""


@dataclass
class BlindConfig:
    """Pairs of latents for a blind judge (`saelink blind`)."""

    pairs: int = 50
    """At most so many, each of another target."""
    sentences: int = 4
    """Of each latent, those where it fires most; at most report.top."""
