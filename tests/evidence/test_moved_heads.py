"""Heads by what they move: their parts of edges, groups, distances, and the card that is printed."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from saelink.attention.ov import OVStage, load_ov
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.evidence.moved_edges import Scene
from saelink.evidence.moved_heads import cosines_of, counted_parts, groups_of, head_card, head_distances
from saelink.job import Job
from saelink.store.store import Store
from saelink.terminal.moved import distance_lines

from helpers.world import Run

QUICK = ("link=ov", "layer=1", "link.kept=40", "verify.tokens_per_source=6")


def test_heads_that_move_the_same_are_a_group() -> None:
    """Planted: head 2 moves what head 0 moves, half as much; head 3 the opposite; head 1 something else."""
    first = torch.randn(200, generator=torch.Generator().manual_seed(0))
    other = torch.randn(200, generator=torch.Generator().manual_seed(1))
    parts = torch.stack([first, other, 0.5 * first + 0.1 * other, -first], -1).view(20, 10, 4)
    cosines = cosines_of(parts)
    assert cosines[0, 2] > 0.9 and cosines[0, 3] == pytest.approx(-1, abs=1e-5)
    assert groups_of(cosines) == [[0, 2], [1], [3]]
    chain = torch.tensor([[1.0, 0.6, 0.1], [0.6, 1.0, 0.7], [0.1, 0.7, 1.0]])
    assert groups_of(chain) == [[0, 1, 2]]


def test_a_card_is_of_the_parts_that_sum_to_the_edges(config: Callable[..., Config], store: Store) -> None:
    job = Job(config(*QUICK), store)
    edges = load_ov(OVStage(job.cfg, store).pull())
    parts = counted_parts(edges)
    n_heads = parts.shape[2]
    cards = [head_card(job, head) for head in range(n_heads)]
    assert sum(card.share for card in cards) == pytest.approx(1, abs=1e-4)
    for card in cards:
        assert card.head in card.group and card.cosines[card.head] == pytest.approx(1, abs=1e-4)
        assert sum(card.distances) == pytest.approx(1, abs=1e-4)
        assert sum(card.distances[card.near : card.far + 1]) >= 0.8 - 1e-4
        assert 0 < len(card.sources) <= 8
        largest = parts[..., card.head].abs().max().item()
        assert abs(card.edges[0].part) == pytest.approx(largest)
        for edge in card.edges:
            source, target = int(edge.source[2:]), int(edge.target[2:])
            whole = edges.claim[source, target].item()
            assert edge.part / edge.share == pytest.approx(whole, rel=1e-3, abs=1e-5)
            assert all(example.head == card.head for example in edge.examples)
    with pytest.raises(SaelinkError, match=f"show head {n_heads}: layer 1 has heads 0 to {n_heads - 1}"):
        head_card(job, n_heads)


def test_distances_are_those_of_the_pattern(config: Callable[..., Config], store: Store) -> None:
    shares = head_distances(Scene(Job(config(*QUICK), store)))
    assert (shares >= 0).all() and torch.allclose(shares.sum(1), torch.ones(len(shares)), atol=1e-4)
    lines = distance_lines([0.5, 0.25, 0.125, 0.0, 0.125])
    assert [line.split()[:2] for line in lines] == [["0", "50%"], ["1", "25%"], ["2-3", "12%"], ["4", "12%"]]


def test_show_prints_a_head(saelink: Run) -> None:
    code, out, err = saelink("show", "head", "1", *QUICK)
    assert code == 0, err
    assert "head 1" in out and "of the edge" in out
    code, out, err = saelink("show", "head", "1", "--json", *QUICK)
    assert code == 0 and json.loads(out)["head"] == 1
    code, _, err = saelink("show", "head", "x", *QUICK)
    assert code == 1 and "give the head's number" in err
    code, _, err = saelink("show", "head", "99", *QUICK)
    assert code == 1 and "has heads 0 to" in err
    code, _, err = saelink("show", "head", "1")
    assert code == 1 and "link=ov" in err
