"""Verdicts on edges: claims against effects, with figures over all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, TypedDict

import torch

from saelink.connectors.base import Connector
from saelink.evidence.stability import Places
from saelink.interventions.block import FOLDS
from saelink.interventions.measure import Effects, choose_ablations
from saelink.latents.rows import Rows
from saelink.latents.split import Tokens
from saelink.progress import Observer
from saelink.store.artifact import Artifact

FIGURES_FILE = "figures.json"

NULLS_FILE = "nulls.json"

REFUTED = ("no effect", "opposite")
"""Verdicts on edges that the model does not have."""

VERDICTS_FILE = "edges.safetensors"

VERDICTS = ("confirmed", "weaker", "no effect", "opposite", "unclear", "faint")

FAINT_CLAIM = 0.01
"""A claim below this share of the target's mean active value is not judged, and as good as none."""

CONFIRMED = 0.5
"""An effect confirms a claim that is at most twice as large."""

NO_EFFECT = 0.1
"""Below this share of the claim an effect counts as none. One above it whose sign differs between the two halves of the
documents leaves the claim unclear."""

TOPS = (1, 3, 10)
"""Edges in multiples of the number of sources at which precision and recall are given."""

MIN_ABLATED = 64
"""Tokens that a source must have been ablated on; claims about rarer ones are unclear, their effects not counted."""

RESAMPLES = 200

QUANTILES = (10, 50, 90)
"""Quantiles, in percent, of what is counted target by target and source by source."""


class VerifyFacts(TypedDict):
    """What `figures.json` holds too; every figure of verdicts.judged, with _low and _high where it has an interval."""

    edges: int
    strong: int
    strong_suppressive: int
    missed: int
    missed_suppressive: int
    edges_confirmed: int
    precision_1x: float | None
    recall_10x: float | None
    slope_1x: float | None


class Verdicts:
    """The verdicts of a `verdicts` or `verify` artifact, by edge."""

    def __init__(self, artifact: Artifact[Any]):
        self.figures = artifact.json(FIGURES_FILE)
        self.nulls: dict[str, Any] | None = artifact.json(NULLS_FILE) if NULLS_FILE in artifact.files else None
        """The same figures against what edges should not agree with; None of verdicts alone."""
        tensors = artifact.tensors(VERDICTS_FILE)
        self._source, self._target = tensors["source"], tensors["target"]
        self._places = Places(self._source, self._target)
        self._claim, self._effect, self._verdict = (tensors[name] for name in ("claim", "effect", "verdict"))
        self._missed: dict[int, list[tuple[int, float]]] = {}
        missed = (tensors[f"missed_{name}"].tolist() for name in ("target", "source", "effect"))
        for target, source, effect in zip(*missed, strict=True):
            self._missed.setdefault(target, []).append((source, effect))

    def of(self, source: int, target: int) -> tuple[float, float, str] | None:
        """Claim and effect, as shares of the target's mean active value, and the verdict; None for what is no edge."""
        place = self._places.of(source, target)
        if place is None:
            return None
        return self._claim[place].item(), self._effect[place].item(), VERDICTS[int(self._verdict[place])]

    def word(self, source: int, target: int) -> str | None:
        """The verdict on an edge; None for what is no edge between source and target latents that were judged."""
        found = self.of(source, target)
        return None if found is None else found[2]

    @cached_property
    def _into(self) -> dict[int, dict[int, str]]:
        found: dict[int, dict[int, str]] = {}
        edges = zip(self._source.tolist(), self._target.tolist(), self._verdict.tolist(), strict=True)
        for source, target, verdict in edges:
            found.setdefault(target, {})[source] = VERDICTS[verdict]
        return found

    def into(self, target: int) -> Mapping[int, str]:
        """By source latent the verdict on its edge into a target."""
        return self._into.get(target, {})

    def missed(self, target: int) -> list[tuple[int, float]]:
        """Sources that have a strong effect on a target and no edge to it, with the effect; the strongest first."""
        return self._missed.get(target, [])


def shuffled(measured: Effects) -> Effects:
    """Every source with the effects of another one."""
    order = torch.randperm(len(measured.source_mean), generator=torch.Generator().manual_seed(0))
    kept = {"mean": measured.mean[order], "folds": measured.folds[:, order], "tokens": measured.tokens[:, order]}
    return measured._replace(**kept)


def claims(
    connector: Connector, measured: Effects, test: Tokens, most: int, device: str, observer: Observer
) -> torch.Tensor:
    """[d_source, d_target of the connector] what its predictions lose on average without each source."""
    if len(connector.penalised()) == 1 and not connector.relu_output:
        return connector.output_weight() * measured.source_mean[:, None]
    chosen = choose_ablations(test.source, torch.zeros(len(test), dtype=torch.int64), most)
    sums = torch.zeros(test.source.d, connector.d_target)
    connector = connector.to(device)
    with observer.progress("claims", len(chosen.token), "ablations") as bar, torch.inference_mode():
        for first in range(0, len(chosen.token), 2048):
            part = slice(first, first + 2048)
            rows, source = test.source.select(chosen.token[part]), chosen.source[part]
            kept = rows.indices != source[rows.row_of]
            without = Rows(rows.offsets, rows.indices, rows.values * kept, rows.d)
            lost = (connector(rows.to(device)) - connector(without.to(device))).cpu()
            unique, place = source.unique_consecutive(return_inverse=True)
            sums[unique] += torch.zeros(len(unique), lost.shape[1]).index_add_(0, place, lost)
            bar.advance(len(source))
    return sums / torch.bincount(chosen.source, minlength=test.source.d).clamp(min=1)[:, None]


def judged(
    claimed: torch.Tensor, measured: Effects, target_ids: torch.Tensor, strong: float
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Figures of a graph of claims against effects, and the verdict on each of its edges.

    Both are divided by the target's mean active value, so that targets of any size count alike; targets that never
    fire on these tokens are left out. Intervals are 1.96 standard errors over resamples of the groups of documents.
    """
    unit = measured.target_mean[target_ids]
    alive = unit > 0
    ids, unit = target_ids[alive], unit[alive]
    width = len(ids)
    claim = claimed[:, alive] / unit
    effect = measured.mean[:, ids] / unit
    enough = measured.tokens.sum(0) >= MIN_ABLATED
    consistent = measured.consistent()[:, ids] & enough[:, None]
    is_strong = (effect.abs() >= strong) & consistent
    place = claim.flatten().nonzero().squeeze(1)
    place = place[claim.flatten()[place].abs().sort(descending=True, stable=True).indices]
    verdict = _verdicts(claim.flatten()[place], effect.flatten()[place], consistent.flatten()[place])
    verdict[~enough[place // width] & (claim.flatten()[place].abs() >= FAINT_CLAIM)] = VERDICTS.index("unclear")
    missed = (is_strong & (claim.abs() < FAINT_CLAIM)).flatten().nonzero().squeeze(1)
    missed = missed[effect.flatten()[missed].abs().sort(descending=True, stable=True).indices]
    tensors = {
        "target": ids[place % width],
        "source": (place // width).int(),
        "claim": claim.flatten()[place],
        "effect": effect.flatten()[place],
        "verdict": verdict.to(torch.uint8),
        "missed_target": ids[missed % width],
        "missed_source": (missed // width).int(),
        "missed_effect": effect.flatten()[missed],
    }
    d_source = int(enough.sum())
    strongest = place[enough[place // width]][: max(TOPS) * d_source]
    by_source = is_strong.sum(1).sort(descending=True).values
    counts = torch.bincount(verdict, minlength=len(VERDICTS))
    return {
        "edges": len(place),
        "strong": int(is_strong.sum()),
        "strong_suppressive": int((is_strong & (effect < 0)).sum()),
        "missed": len(missed),
        "missed_suppressive": int((effect.flatten()[missed] < 0).sum()),
        "strong_in_first_tenth_of_sources": (
            by_source[: len(claim) // 10].sum().item() / max(by_source.sum().item(), 1)
        ),
        **{f"edges_{word.replace(' ', '_')}": int(count) for word, count in zip(VERDICTS, counts, strict=True)},
        **_with_intervals(measured, claim, effect, strongest, ids, unit, d_source, strong),
        **_one_by_one(claim, effect, is_strong, strongest),
    }, tensors


def _verdicts(claim: torch.Tensor, effect: torch.Tensor, consistent: torch.Tensor) -> torch.Tensor:
    """[n] places in VERDICTS of claims [n] beside effects [n]; `consistent` [n] as in Effects."""
    ratio = effect / claim
    verdict = torch.full((len(claim),), VERDICTS.index("weaker"))
    verdict[ratio >= CONFIRMED] = VERDICTS.index("confirmed")
    verdict[ratio <= -NO_EFFECT] = VERDICTS.index("opposite")
    verdict[ratio.abs() < NO_EFFECT] = VERDICTS.index("no effect")
    verdict[~consistent & (ratio.abs() >= NO_EFFECT)] = VERDICTS.index("unclear")
    verdict[claim.abs() < FAINT_CLAIM] = VERDICTS.index("faint")
    return verdict


def _with_intervals(
    measured: Effects, claim: torch.Tensor, effect: torch.Tensor, strongest: torch.Tensor, ids: torch.Tensor,
    unit: torch.Tensor, d_source: int, strong: float,
) -> dict[str, Any]:  # fmt: skip
    """The figures of the strongest claims, each with its interval over resampled groups of documents."""
    width = len(ids)
    candidates = torch.cat([strongest, (effect.abs() >= strong / 2).flatten().nonzero().squeeze(1)]).unique()
    # By fold, only where it matters: the claims at the top and what is nearly strong.
    source, target = candidates // width, ids[candidates % width]
    folds = measured.folds[:, source, target].double() / unit[candidates % width]
    tokens = measured.tokens[:, source].double()
    where = torch.searchsorted(candidates, strongest)
    claim_at = claim.flatten()[candidates].double()
    figures = _figures(folds, tokens, claim_at, where, d_source, strong, torch.ones(FOLDS, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(FOLDS, (RESAMPLES, FOLDS), generator=generator)
    again = [
        _figures(folds, tokens, claim_at, where, d_source, strong, torch.bincount(row, minlength=FOLDS).double())
        for row in drawn
    ]
    result: dict[str, Any] = {}
    for name, value in figures.items():
        known = not math.isnan(value)
        others = torch.tensor([other[name] for other in again if not math.isnan(other[name])], dtype=torch.float64)
        spread = 1.96 * others.std().item() if len(others) > 1 else 0.0
        result[name] = value if known else None
        low, high = value - spread, value + spread
        if not name.startswith(("slope", "rank")):  # shares end at 0 and 1
            low, high = max(low, 0.0), min(high, 1.0)
        result[f"{name}_low"], result[f"{name}_high"] = (low, high) if known else (None, None)
    return result


def _one_by_one(
    claim: torch.Tensor, effect: torch.Tensor, is_strong: torch.Tensor, strongest: torch.Tensor
) -> dict[str, Any]:
    """Quantiles of recall and precision target by target and source by source."""
    width = claim.shape[1]
    result: dict[str, Any] = {}
    hits = strongest[is_strong.flatten()[strongest] & (effect.flatten()[strongest] * claim.flatten()[strongest] > 0)]
    for name, of, n in (("target", lambda at: at % width, width), ("source", lambda at: at // width, len(claim))):
        among = is_strong.sum(0 if name == "target" else 1)
        right, made = (torch.bincount(of(at), minlength=n) for at in (hits, strongest))
        for word, counted in (("recall", among), ("precision", made)):
            share = (right[counted > 0] / counted[counted > 0]).double()
            result |= {f"{word}_{max(TOPS)}x_by_{name}_{q}": _quantile(share, q / 100) for q in QUANTILES}
            result[f"{word}_{max(TOPS)}x_by_{name}_n"] = len(share)
    return result


def _quantile(share: torch.Tensor, q: float) -> float | None:
    return share.quantile(q).item() if len(share) else None


def _figures(
    folds: torch.Tensor, tokens: torch.Tensor, claim: torch.Tensor, top: torch.Tensor, d_source: int, strong: float,
    weight: torch.Tensor,
) -> dict[str, float]:  # fmt: skip
    """The figures with each fold of documents counted `weight` times; `top` are the claims' places, largest first.

    `d_source` sources were ablated on enough tokens; the claims of the others are not among them.
    """
    n = (weight[:, None] * tokens).sum(0).clamp(min=1)
    effect = (weight[:, None] * folds).sum(0) / n
    halves = [(weight[half, None] * folds[half]).sum(0) for half in (slice(0, None, 2), slice(1, None, 2))]
    is_strong = (effect.abs() >= strong) & ((halves[0] * halves[1]) > 0) & (tokens.sum(0) >= MIN_ABLATED)
    figures: dict[str, float] = {}
    for times in TOPS:
        chosen = top[: times * d_source]
        right = is_strong[chosen] & (effect[chosen] * claim[chosen] > 0)
        figures[f"precision_{times}x"] = right.double().mean().item() if len(chosen) else float("nan")
        for name, sign in (("", 0), ("_positive", 1), ("_suppressive", -1)):
            these = is_strong if not sign else is_strong & (effect * sign > 0)
            hit = right if not sign else right & (effect[chosen] * sign > 0)
            figures[f"recall{name}_{times}x"] = hit.sum().item() / max(int(these.sum()), 1)
    chosen = top[:d_source]
    c, e = claim[chosen], effect[chosen]
    if len(chosen) > 2:
        figures["sign_1x"] = (c * e > 0).double().mean().item()
        figures["slope_1x"] = ((c * e).sum() / c.square().sum()).item()
        figures["r2_1x"] = torch.corrcoef(torch.stack([c, e]))[0, 1].square().item()
        ranks = torch.stack([c, e]).argsort(1).argsort(1).double()
        figures["rank_correlation_1x"] = torch.corrcoef(ranks)[0, 1].item()
    return figures
