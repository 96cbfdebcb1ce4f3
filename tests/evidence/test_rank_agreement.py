"""Rank agreement of claims and effects against scipy on dense pairs, and against planted strengths."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, spearmanr

from saelink.evidence.claims import Claims
from saelink.evidence.rank_agreement import FIGURES, LEVELS, ZERO, Judged, Side, classes, levels, rank_agreement
from saelink.evidence.verdicts import judged
from saelink.interventions.block import FOLDS

from helpers.effects import sparse_effects


def figures_of(
    claim: torch.Tensor, effect: torch.Tensor, strong: torch.Tensor, sources: torch.Tensor | None = None
) -> dict[str, float | None]:
    """From dense pairs [sources, targets], the effects in three parts."""
    sources = torch.ones(len(claim), dtype=torch.bool) if sources is None else sources

    def side(of: torch.Tensor, where: torch.Tensor) -> Side:
        return Side(where.nonzero()[:, 0], of[where])

    def parts() -> Iterator[Side]:
        for rows in torch.arange(len(effect)).chunk(3):
            some = torch.zeros_like(effect, dtype=torch.bool)
            some[rows] = effect[rows] != 0
            yield side(effect, some)

    strong = strong & sources[:, None]
    return rank_agreement(
        Judged(
            sources,
            claim.shape[1],
            side(claim, claim != 0),
            effect[claim != 0],
            side(effect, strong),
            claim[strong],
            parts,
        )
    )


def made_up(seed: int, sources: int = 60, targets: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(share: float) -> torch.Tensor:
        mask = torch.rand(sources, targets, generator=generator) < share
        return (torch.randn(sources, targets, generator=generator) * mask).bfloat16().float()

    effect = draw(0.5)
    claim = ((0.5 * effect + 0.5 * draw(0.3)) * (torch.rand(effect.shape, generator=generator) < 0.2)).bfloat16()
    return claim.float(), effect, effect.abs() > 1


@pytest.mark.parametrize("seed", range(3))
def test_spearman_is_scipys(seed: int) -> None:
    """Values are bfloat16, so that nothing is rounded."""
    claim, effect, strong = made_up(seed)
    found = figures_of(claim, effect, strong)
    assert found["spearman"] == pytest.approx(spearmanr(claim.flatten(), effect.flatten())[0], abs=1e-9)
    some = claim != 0
    assert found["spearman_edges"] == pytest.approx(spearmanr(claim[some], effect[some])[0], abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_auroc_is_scipys(seed: int) -> None:
    claim, effect, strong = made_up(seed)
    found = figures_of(claim, effect, strong)
    for name, score, right in (
        ("auroc", claim.abs(), strong),
        ("auroc_positive", claim, strong & (effect > 0)),
        ("auroc_suppressive", -claim, strong & (effect < 0)),
    ):
        pair = score[right], score[~right]
        expected = mannwhitneyu(*pair).statistic / (len(pair[0]) * len(pair[1]))
        assert found[name] == pytest.approx(expected, abs=1e-9), name


def test_full_precision_changes_little() -> None:
    generator = torch.Generator().manual_seed(3)
    effect = torch.randn(50, 50, generator=generator)
    claim = effect + torch.randn(50, 50, generator=generator)
    found = figures_of(claim, effect, effect.abs() > 1)
    assert found["spearman"] == pytest.approx(spearmanr(claim.flatten(), effect.flatten())[0], abs=2e-4)


def test_only_judged_sources_count() -> None:
    claim, effect, strong = made_up(5)
    sources = torch.arange(len(claim)) % 3 > 0
    found = figures_of(claim, effect, strong, sources)
    assert found == pytest.approx(figures_of(claim[sources], effect[sources], strong[sources]))


def test_an_order_that_is_the_same_and_one_that_is_none() -> None:
    _, effect, strong = made_up(7, 300, 60)
    same = figures_of(effect, effect, strong)
    assert same["spearman"] == pytest.approx(1) and same["auroc"] == 1 and same["auroc_suppressive"] == 1
    other = figures_of(made_up(8, 300, 60)[1], effect, strong)
    assert abs(other["spearman"] or 0) < 0.05 and other["auroc"] == pytest.approx(0.5, abs=0.05)
    for found in (same, other):
        for name in FIGURES:
            low, middle, high = (found[name + end] for end in ("_low", "", "_high"))
            assert low is not None and middle is not None and high is not None
            assert low <= middle <= high <= 1, name


def test_the_interval_holds_what_new_sources_give() -> None:
    """Sources differ in how well they are claimed, which is what makes the figure uncertain: 95% hold, about."""
    generator = torch.Generator().manual_seed(0)

    def world(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        effect = torch.randn(n, 30, generator=generator)
        good = torch.rand(n, 1, generator=generator)
        claim = good * effect + (1 - good) * torch.randn(n, 30, generator=generator)
        return claim, effect, effect.abs() > 1.5

    truth = figures_of(*world(20_000))
    held = dict.fromkeys(FIGURES, 0)
    for _ in range(60):
        found = figures_of(*world(100))
        for name in FIGURES:
            low, high = found[f"{name}_low"], found[f"{name}_high"]
            assert low is not None and high is not None
            held[name] += low <= (truth[name] or 0) <= high
    assert all(50 <= times <= 60 for times in held.values()), held


def test_nothing_claimed_and_nothing_strong() -> None:
    _, effect, strong = made_up(1)
    assert set(figures_of(torch.zeros_like(effect), effect, strong).values()) == {None}
    found = figures_of(effect, effect, torch.zeros_like(strong))
    assert found["auroc"] is None and found["auroc_low"] is None and found["spearman"] == pytest.approx(1)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=40))
def test_levels_rise_with_values(values: list[float]) -> None:
    ascending = torch.tensor(values, dtype=torch.float32).sort().values
    found = levels(ascending)
    assert (found.diff() >= 0).all() and found.min() >= 0 and found.max() < LEVELS
    assert levels(torch.tensor([0.0, -0.0])).tolist() == [ZERO, ZERO]
    assert (classes(torch.bincount(found, minlength=LEVELS)).diff() >= 0).all()


def test_a_graphs_figures_have_them() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(40, 30, generator=generator) * (torch.rand(40, 30, generator=generator) < 0.1)
    tokens = torch.full((FOLDS, 40), 20)
    tokens[:, 35:] = 1
    effects = sparse_effects(
        true, true * tokens[..., None], tokens, torch.ones(40), torch.full((40,), 0.2), torch.ones(30)
    )
    figures, _ = judged(Claims.of_dense(true), effects, torch.arange(30), 0.1)
    assert figures["spearman"] == pytest.approx(1) and figures["auroc"] == pytest.approx(1, abs=1e-3)
    assert figures["spearman_edges_low"] <= figures["spearman_edges"]
    none, _ = judged(Claims.of_dense(torch.zeros_like(true)), effects, torch.arange(30), 0.1)
    assert none["spearman"] is None
