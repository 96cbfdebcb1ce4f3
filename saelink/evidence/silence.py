"""Why a target is silent where A and B are both on, although it fires where A is on without B.

The margin is how far the target's pre-activation is above what it must exceed to be on. From the tokens where A is on,
B is not and the target fires to those where both are on and it is silent the mean margin falls. The fall is a sum:

    dose       A is fainter there
    norm       the norm in front of the MLP divides by more, which shrinks what A adds
    B          what taking B out gives back, whether B takes from the target or gates what A adds
    MLP        what A adds, per unit behind the norm, is less there for other reasons: the MLP is not linear
    others     all else that the pre-activation is made of without A: other sources, the SAE's error, biases
    threshold  what must be exceeded is higher there: a TopK SAE's other latents are stronger

What A adds is the target's pre-activation less that without A, both in the model; parts are means over tokens, and
add up exactly. Beside them stands what brings the target on: taking out B, B with the norm's scale held, the sources
that suppress it most, everything but A, the error of the source SAE.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from saelink.interventions.joint import Gone, Joint, each, evenly
from saelink.latents.rows import Rows
from saelink.model.block import Chain
from saelink.model.frozen import HeldNorm, hold_norm

PARTS = ("dose", "norm", "B", "MLP", "others", "threshold")

STRONGEST = (1, 3, 10)
"""So many of the sources that suppress the target most at a token go together."""

MOST_TOKENS = 64
"""Tokens of a circuit, evenly spread."""


class Silence(NamedTuple):
    """What is found of one circuit A AND NOT B."""

    silent: int
    """Tokens where both are on and the target is silent, of those looked at,"""
    fires: int
    """and where A is on, B is not and it fires."""
    fall: float
    """How much the mean margin falls from these to those, in raw units."""
    parts: dict[str, float] | None
    """By name of PARTS how much of it, in raw units; None for a chain whose norm can't be held."""
    on: dict[str, float]
    """By what is taken out the share of the silent tokens on which the target then is on,"""
    closed: dict[str, float]
    """and the median share of the margin's lack that it makes up for."""
    additive: float
    """Of all that suppress the target at a token: the sum of single effects over the joint effect, median."""


def silence_of(joint: Joint, target: int, a: int, b: int) -> Silence | None:
    """Why `target` is silent where a and b are on; None without tokens of either kind."""
    fired, on_a, on_b = joint.target_on(target), joint.source_on(a), joint.source_on(b)
    silent = evenly((on_a & on_b & ~fired).nonzero().flatten(), MOST_TOKENS)
    fires = evenly((on_a & ~on_b & fired).nonzero().flatten(), MOST_TOKENS)
    if not len(silent) or not len(fires):
        return None
    held = hold_norm(joint.block.computation, joint.block.x[0])
    with torch.inference_mode():
        both = [_Margins.of(joint, tokens, target, a, held) for tokens in (fires, silent)]
        at = torch.full_like(silent, target)
        own, needed = joint.own(silent, at), joint.needed(silent, at)
        without_a, without_b, without_both = (
            joint.without(silent, each(silent, *gone), at) for gone in ((a,), (b,), (a, b))
        )
        alone = (without_both - without_a).mean().item()  # what B takes where A is not
        gives_back = (without_b - own).mean().item()
        tries = _tries(joint, silent, target, a, b, held)
        parts = None if held is None else _parts(both[0], both[1], gives_back, alone)
        single, together = _suppressors(joint, silent, target, a, own)
    on: dict[str, float] = {}
    closed: dict[str, float] = {}
    for name, pre in {**tries, **together}.items():
        on[name] = joint.is_on(pre, silent, at).double().mean().item()
        closed[name] = ((pre - own) / (needed - own).clamp(min=1e-6)).median().item()
    joint_effect = (together["all that suppress"] - own).clamp(min=1e-6)
    additive = (single / joint_effect).median().item()
    return Silence(len(silent), len(fires), both[0].margin - both[1].margin, parts, on, closed, additive)


class _Margins(NamedTuple):
    """Means over some tokens, in raw units."""

    margin: float
    needed: float
    value: float
    """Activation of A,"""
    added: float
    """what A adds to the pre-activation,"""
    rest: float
    """what the pre-activation is without it,"""
    inverse: float
    """and the mean of A's activation over the norm's scale."""

    @staticmethod
    def of(joint: Joint, token: torch.Tensor, target: int, a: int, held: HeldNorm | None) -> _Margins:
        at = torch.full_like(token, target)
        own, needed = joint.own(token, at), joint.needed(token, at)
        without = joint.without(token, each(token, a), at)
        value = joint.active.at(token, torch.full_like(token, a))
        inverse = 0.0
        if held is not None:
            x = joint.block.x[0]
            inverse = (value / held.norm.scale(x[token.to(x.device)]).squeeze(1).cpu()).mean().item()
        means = (own - needed, needed, value, own - without, without)
        margin, needed_mean, activation, added, rest = (tensor.mean().item() for tensor in means)
        return _Margins(margin, needed_mean, activation, added, rest, inverse)


def _parts(fires: _Margins, silent: _Margins, gives_back: float, alone: float) -> dict[str, float]:
    """The fall of the margin from tokens where the target fires to tokens where it is silent."""
    per_unit, per_unit_silent = (each.added / max(each.inverse, 1e-9) for each in (fires, silent))  # behind the norm
    at_same_scale = silent.value * fires.inverse / max(fires.value, 1e-9)
    parts = {
        "dose": per_unit * (fires.inverse - at_same_scale),
        "norm": per_unit * (at_same_scale - silent.inverse),
        "B": gives_back,
        "MLP": (per_unit - per_unit_silent) * silent.inverse - (gives_back - alone),
        "others": fires.rest - silent.rest - alone,
        "threshold": silent.needed - fires.needed,
    }
    assert tuple(parts) == PARTS
    return parts


def _tries(
    joint: Joint, token: torch.Tensor, target: int, a: int, b: int, held: HeldNorm | None
) -> dict[str, torch.Tensor]:
    """By what is taken out the target's pre-activations [m]."""
    at = torch.full_like(token, target)
    row, source = _others(joint, token, a)
    everything = Gone(row, source)
    tries = {"B": joint.without(token, each(token, b), at), "everything but A": joint.without(token, everything, at)}
    if held is not None and isinstance(joint.block.computation, Chain):
        x = joint.block.x[0]

        def compute(tokens: torch.Tensor, taken: Sequence[torch.Tensor]) -> torch.Tensor:
            return held.without(x[tokens.to(x.device)], taken[0])

        tries["B, norm held"] = joint.run(token, each(token, b), at, compute)
        tries["everything but A, norm held"] = joint.run(token, everything, at, compute)
    if len(joint.block.source_saes) == 1:
        nothing = Gone(token[:0], token[:0])
        errors, computation = _errors(joint, token), joint.block.computation

        def without_error(tokens: torch.Tensor, taken: Sequence[torch.Tensor]) -> torch.Tensor:
            return computation.without_all(tokens, [taken[0] + errors])

        tries["the SAE's error"] = joint.run(token, nothing, at, without_error)
        tries["everything but A, and the error"] = joint.run(token, everything, at, without_error)
    return tries


def _errors(joint: Joint, token: torch.Tensor) -> torch.Tensor:
    """[m, d_in] what the source SAE leaves out of the activation."""
    sae, x = joint.block.source_saes[0], joint.block.x[0]
    here = x[token.to(x.device)]
    return here - sae.decode(joint.active.select(token).dense().to(here.device), sae.units(here))


def _others(joint: Joint, token: torch.Tensor, a: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which sources but A are active on which of the tokens, row and source [p]."""
    active: Rows = joint.active.select(token)
    kept = active.indices != a
    return active.row_of[kept], active.indices[kept]


def _suppressors(
    joint: Joint, token: torch.Tensor, target: int, a: int, own: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The sum [m] of what each source that suppresses the target gives back alone; pre-activations without several."""
    row, source = _others(joint, token, a)
    one_each = Gone(torch.arange(len(row)), source)
    gain = joint.without(token[row], one_each, torch.full_like(row, target)) - own[row]
    order = torch.argsort(gain, descending=True, stable=True)
    order = order[torch.argsort(row[order], stable=True)]  # in each token the strongest first
    row, source, gain = row[order], source[order], gain[order]
    first = torch.searchsorted(row, torch.arange(len(token)))
    rank = torch.arange(len(row)) - first[row]
    at = torch.full_like(token, target)
    found = {}
    for n in STRONGEST:
        kept = (gain > 0) & (rank < n)
        found[f"the {n} that suppress most"] = joint.without(token, Gone(row[kept], source[kept]), at)
    for n in STRONGEST[1:]:  # whether they would bring it on without A too
        kept = (gain > 0) & (rank < n)
        also = torch.cat([row[kept], torch.arange(len(token))])
        order = torch.argsort(also, stable=True)
        gone = Gone(also[order], torch.cat([source[kept], torch.full_like(token, a)])[order])
        found[f"the {n} that suppress most, and A"] = joint.without(token, gone, at)
    kept = gain > 0
    found["all that suppress"] = joint.without(token, Gone(row[kept], source[kept]), at)
    return torch.zeros(len(token)).index_add_(0, row[kept], gain[kept]), found
