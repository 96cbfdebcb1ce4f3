"""Verdicts on edges: claims against effects, with figures over all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple, TypedDict

import torch

from saelink.evidence.claims import Claims
from saelink.evidence.rank_agreement import Judged, Side, rank_agreement
from saelink.evidence.stability import Places
from saelink.interventions.block import FOLDS
from saelink.interventions.pairs import Effects, same_sign
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
    sources_judged: int
    strong: int
    strong_suppressive: int
    missed: int
    missed_suppressive: int
    edges_confirmed: int
    precision_1x: float | None
    recall_10x: float | None
    slope_1x: float | None
    spearman: float | None
    auroc: float | None


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

    def targets(self) -> list[int]:
        """Targets that have edges, ascending."""
        return sorted(self._into)

    def into(self, target: int) -> Mapping[int, str]:
        """By source latent the verdict on its edge into a target."""
        return self._into.get(target, {})

    def missed(self, target: int) -> list[tuple[int, float]]:
        """Sources that have a strong effect on a target and no edge to it, with the effect; the strongest first."""
        return self._missed.get(target, [])


def shuffled(claimed: Claims, d_source: int) -> Claims:
    """The claims on every source made of another one: what it takes to compare them with another's effects."""
    return claimed.renamed(torch.randperm(d_source, generator=torch.Generator().manual_seed(0)))


class _Graph(NamedTuple):
    """Claims and effects on the pairs of living targets, as shares of the target's mean active value.

    A pair's key is source * width + column: keys ascend with sources, then columns.
    """

    width: int
    """Columns: living targets among those that are explained."""
    key: torch.Tensor
    """[n] of each claim,"""
    claim: torch.Tensor
    """what it says,"""
    effect: torch.Tensor
    """what the effect is,"""
    consistent: torch.Tensor
    """and whether that has the same sign in both halves of the documents, on enough tokens."""
    strong_key: torch.Tensor
    """[m] of each strong effect,"""
    strong: torch.Tensor
    """and what it is."""
    strong_claim: torch.Tensor
    """[m] What is claimed of it."""
    candidate: torch.Tensor
    """[c] keys of the strongest claims and of all effects that are nearly strong, ascending,"""
    folds: torch.Tensor
    """[FOLDS, c] float64 and the sum of their effects over each group of documents."""


def judged(
    claimed: Claims, measured: Effects, target_ids: torch.Tensor, strong: float
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Figures of a graph of claims against effects, and the verdict on each of its edges.

    Both are divided by the target's mean active value, so that targets of any size count alike; targets that never
    fire on these tokens are left out. Intervals are 1.96 standard errors over resamples of the groups of documents.
    """
    unit = measured.target_mean[target_ids]
    alive = unit > 0
    ids, unit = target_ids[alive], unit[alive]
    width, enough = len(ids), measured.tokens.sum(0) >= MIN_ABLATED
    kept = alive[claimed.column]
    column = (alive.cumsum(0) - 1)[claimed.column[kept]]
    key, claim = claimed.source[kept] * width + column, claimed.value[kept] / unit[column]
    order = claim.abs().sort(descending=True, stable=True).indices
    d_source = int(enough.sum())
    strongest = key[order[enough[key[order] // width]]][: max(TOPS) * d_source]
    graph = _beside(key, claim, strongest.sort().values, measured, ids, strong)
    claim, effect, key = claim[order], graph.effect[order], key[order]
    source = key // width
    verdict = _verdicts(claim, effect, graph.consistent[order])
    verdict[~enough[source] & (claim.abs() >= FAINT_CLAIM)] = VERDICTS.index("unclear")
    missed = (graph.strong_claim.abs() < FAINT_CLAIM).nonzero().squeeze(1)
    missed = missed[graph.strong[missed].abs().sort(descending=True, stable=True).indices]
    missed_key, missed_effect = graph.strong_key[missed], graph.strong[missed]
    tensors = {
        "target": ids[key % width] if width else key,
        "source": source.int(),
        "claim": claim,
        "effect": effect,
        "verdict": verdict.to(torch.uint8),
        "missed_target": ids[missed_key % width] if width else missed_key,
        "missed_source": (missed_key // width).int() if width else missed_key.int(),
        "missed_effect": missed_effect,
    }
    by_source = torch.bincount(graph.strong_key // max(width, 1), minlength=measured.d_source).sort(descending=True)
    counts = torch.bincount(verdict, minlength=len(VERDICTS))
    return {
        "edges": len(key),
        "sources_judged": d_source,
        "strong": len(graph.strong),
        "strong_suppressive": int((graph.strong < 0).sum()),
        "missed": len(missed),
        "missed_suppressive": int((missed_effect < 0).sum()),
        "strong_in_first_tenth_of_sources": (
            by_source.values[: measured.d_source // 10].sum().item() / max(len(graph.strong), 1)
        ),
        **{f"edges_{word.replace(' ', '_')}": int(count) for word, count in zip(VERDICTS, counts, strict=True)},
        **_with_intervals(graph, measured, strongest, d_source, strong),
        **_one_by_one(graph, strongest, measured.d_source),
        **rank_agreement(_ranked(graph, measured, ids, enough)),
    }, tensors


def _ranked(graph: _Graph, measured: Effects, ids: torch.Tensor, enough: torch.Tensor) -> Judged:
    """The graph's claims and all effects, by source, for the agreement of their orders."""
    width, unit, explained = max(graph.width, 1), measured.target_mean[ids], measured.explain(ids)

    def effects() -> Iterator[Side]:
        for part in explained.pairs():
            yield Side(part.source_of, part.mean / unit[part.target.long()])

    claim, strong = Side(graph.key // width, graph.claim), Side(graph.strong_key // width, graph.strong)
    return Judged(enough, graph.width, claim, graph.effect, strong, graph.strong_claim, effects)


def _beside(
    key: torch.Tensor, claim: torch.Tensor, strongest: torch.Tensor, measured: Effects, ids: torch.Tensor, strong: float
) -> _Graph:
    """Claims [n] by ascending key beside the effects, which are read part by part; `strongest` are keys, ascending."""
    width, unit = len(ids), measured.target_mean[ids]
    enough = measured.tokens.sum(0) >= MIN_ABLATED
    effect, consistent = torch.zeros(len(key)), torch.zeros(len(key), dtype=torch.bool)
    nothing = torch.zeros(0, dtype=torch.int64)
    strong_keys, strong_effects = [nothing], [torch.zeros(0)]
    candidates, sums = [strongest], [torch.zeros(len(strongest), FOLDS, dtype=torch.float64)]
    for part in measured.explain(ids).pairs():
        column = part.target.long()
        theirs, size = part.source_of * width + column, part.mean / unit[column]
        folds = part.folds()
        steady = same_sign(folds) & enough[part.source_of]
        place, there = _places(theirs, key)
        effect[there], consistent[there] = size[place], steady[place]
        is_strong = (size.abs() >= strong) & steady
        strong_keys.append(theirs[is_strong])
        strong_effects.append(size[is_strong])
        place, there = _places(theirs, strongest)
        sums[0][there] = folds[place].double() / unit[column[place], None]
        near = size.abs() >= strong / 2
        candidates.append(theirs[near])
        sums.append(folds[near].double() / unit[column[near], None])
    strong_key = torch.cat(strong_keys)
    strong_claim = torch.zeros(len(strong_key))
    place, there = _places(key, strong_key)
    strong_claim[there] = claim[place]
    everything, together = torch.cat(candidates), torch.cat(sums)
    candidate, place = everything.unique(return_inverse=True)
    by_candidate = torch.zeros(len(candidate), FOLDS, dtype=torch.float64)
    by_candidate[place] = together  # a pair that is there twice has the same sums
    return _Graph(
        width, key, claim, effect, consistent, strong_key, torch.cat(strong_effects), strong_claim, candidate,
        by_candidate.T.contiguous(),
    )  # fmt: skip


def _places(ascending: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where those of `wanted` that are among ascending keys stand there, and where in `wanted`."""
    if not len(ascending):
        return ascending.new_zeros(0), wanted.new_zeros(0)
    place = torch.searchsorted(ascending, wanted).clamp(max=len(ascending) - 1)
    there = (ascending[place] == wanted).nonzero().squeeze(1)
    return place[there], there


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
    graph: _Graph, measured: Effects, strongest: torch.Tensor, d_source: int, strong: float
) -> dict[str, Any]:
    """The figures of the strongest claims, each with its interval over resampled groups of documents."""
    # By fold, only where it matters: the claims at the top and what is nearly strong.
    source = graph.candidate // max(graph.width, 1)
    tokens = measured.tokens[:, source].double()
    where = torch.searchsorted(graph.candidate, strongest)
    claim = torch.zeros(len(graph.candidate), dtype=torch.float64)
    place, there = _places(graph.key, graph.candidate)
    claim[there] = graph.claim[place].double()

    def weighted(weight: torch.Tensor) -> dict[str, float]:
        return _figures(graph.folds, tokens, claim, where, d_source, strong, weight.double())

    figures = weighted(torch.ones(FOLDS))
    drawn = torch.randint(FOLDS, (RESAMPLES, FOLDS), generator=torch.Generator().manual_seed(0))
    again = [weighted(torch.bincount(row, minlength=FOLDS)) for row in drawn]
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


def _one_by_one(graph: _Graph, strongest: torch.Tensor, d_source: int) -> dict[str, Any]:
    """Quantiles of recall and precision target by target and source by source."""
    width = max(graph.width, 1)
    result: dict[str, Any] = {}
    place, there = _places(graph.strong_key, strongest)
    hits = strongest[there[graph.strong[place] * graph.strong_claim[place] > 0]]
    for name, of, n in (("target", lambda at: at % width, graph.width), ("source", lambda at: at // width, d_source)):
        among, right, made = (torch.bincount(of(at), minlength=n) for at in (graph.strong_key, hits, strongest))
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
    effect = (weight @ folds) / (weight @ tokens).clamp(min=1)
    halves = [weight[half] @ folds[half] for half in (slice(0, None, 2), slice(1, None, 2))]
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
