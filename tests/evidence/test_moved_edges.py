"""Edges through attention, looked at and printed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from saelink.attention.ov import OVStage, load_ov
from saelink.config.schema import Config
from saelink.evidence.moved_edges import Example, MovedEdge, moved_edges
from saelink.job import Job
from saelink.store.store import Store
from saelink.terminal.moved import arrow_lines, moved_line

from helpers.world import Run

QUICK = ("link=ov", "layer=1", "link.kept=40", "solver=exact", "l1_alpha=1e-3", "verify.tokens_per_source=6")


def test_an_edge_has_heads_distances_and_tokens(config: Callable[..., Config], store: Store) -> None:
    job = Job(config(*QUICK), store)
    target = int(load_ov(OVStage(job.cfg, store).pull()).claim.abs().sum(0).argmax())
    edges = moved_edges(job, target)
    assert 0 < len(edges) <= 5
    for edge in edges:
        assert sum(edge.heads.values()) == pytest.approx(1, abs=1e-4)
        assert sum(edge.distances) == pytest.approx(1, abs=1e-4)
        assert sum(edge.distances[edge.near : edge.far + 1]) >= 0.8 - 1e-4
        assert all(0 <= example.key <= example.query < len(example.tokens) for example in edge.examples)
    sizes = [abs(edge.claim) for edge in edges]
    assert sizes == sorted(sizes, reverse=True)


def test_the_sentence_and_the_arrow() -> None:
    edge = MovedEdge("IF7", " king", 0.4, 0.31, {3: 0.72, 5: 0.25, 0: 0.03}, None, 1, 4, [], [], [])
    expected = 'OF12 = head 3 (72%), head 5 (25%): IF7 "king" from 1 to 4 tokens before, computed +40%, measured +31%'
    assert moved_line("OF12", edge) == expected
    alone = edge._replace(alone={3: 0.24, 5: 0.1, 0: 0.0})
    assert moved_line("OF12", alone).startswith("OF12 = head 3 (72%, alone +24%), head 5 (25%, alone +10%): IF7")
    assert "from 1 token before" in moved_line("OF12", edge._replace(far=1))
    assert "from the token itself" in moved_line("OF12", edge._replace(near=0, far=0))
    lines = arrow_lines(Example(["The", " old", " king", " sat"], 1, 3, 3, 0.5), 60)
    assert lines[0] == "The old king sat"
    start, end = lines[1].index("└"), lines[1].index("▲")
    assert lines[0][start] in " old" and lines[0][end] in " sat" and lines[1].endswith("head 3, +50%")
    long = arrow_lines(Example([" word"] * 60, 3, 55, 0, -0.1), 60)
    assert len(long[0]) <= 61 and "…" in long[0]


def test_show_prints_them(saelink: Run) -> None:
    code, out, err = saelink("show", "target", "13", *QUICK)
    assert code == 0, err
    assert "heads move to it" in out and "head" in out
