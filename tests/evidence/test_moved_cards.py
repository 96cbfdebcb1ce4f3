"""What heads move, of many targets and all heads at once: the same as of each alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from saelink.attention.ov import OVStage, load_ov
from saelink.config.schema import Config
from saelink.evidence import moved_cards
from saelink.evidence.moved_cards import MovedCardsStage, load_moved_cards, moved_cards_of, strongest_targets
from saelink.evidence.moved_edges import SEQUENCES, Scene, moved_edges
from saelink.evidence.moved_heads import head_card
from saelink.interventions.moved_effects import MovedEffectsStage
from saelink.job import Job
from saelink.latents.link import load_split
from saelink.store.store import Store

QUICK = ("link=ov", "layer=1", "link.kept=40", "verify.tokens_per_source=6", "report.ablated=3")


def plain(value: Any) -> Any:
    """Named tuples as mappings without zeros at the end of distances."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        trimmed = {name: list(each) for name, each in value.items() if name == "distances"}
        for distances in trimmed.values():
            while distances and not distances[-1]:
                distances.pop()
        return {name: plain(trimmed.get(name, each)) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def same(mine: Any, other: Any) -> None:
    """Equal but for the digits that the file keeps."""
    if isinstance(mine, dict):
        assert list(mine) == list(other)
        for name in mine:
            same(mine[name], other[name])
    elif isinstance(mine, list):
        assert len(mine) == len(other)
        for one, two in zip(mine, other, strict=True):
            same(one, two)
    elif isinstance(mine, float):
        assert mine == pytest.approx(other, rel=1e-3, abs=1e-5)
    else:
        assert mine == other


def without_tokens(edge: Any) -> Any:
    """Tokens with equal shares may stand in either order; their shares are compared."""
    return edge._replace(tokens=[share for _, share in edge.tokens])


def test_many_targets_are_looked_at_as_each_alone(config: Callable[..., Config], store: Store) -> None:
    job = Job(config(*QUICK), store)
    before = MovedCardsStage(job)
    found = load_moved_cards(before.pull())
    assert all(edge.effect is None and edge.alone is None for edges in found.edges.values() for edge in edges)
    MovedEffectsStage(job).pull()
    after = MovedCardsStage(job)
    assert after.key != before.key, "what was measured belongs to it"
    artifact = after.pull()
    found = load_moved_cards(artifact)
    alone = artifact.facts["alone"]
    assert len(alone) == 3 and set(found.edges) == set(strongest_targets(load_ov(OVStage(job.cfg, store).pull()), 48))
    for target in [*alone, *(t for t in found.edges if t not in alone)][:6]:
        expected = [
            edge if target in alone else edge._replace(alone=None) for edge in moved_edges(job, target)
        ]  # fmt: skip
        same(*([plain(without_tokens(edge)) for edge in edges] for edges in (found.edges[target], expected)))
        assert all((edge.alone is not None) == (target in alone) for edge in found.edges[target])
    assert [card.head for card in found.heads] == [0, 1, 2, 3]
    for card in found.heads:
        same(plain(card), plain(head_card(job, card.head)))


def test_distances_and_sentences_are_those_of_every_pair_of_tokens(config: Callable[..., Config], store: Store) -> None:
    """One edge by loops over queries and keys, for a target that is active in few sequences."""
    job = Job(config(*QUICK), store)
    scene = Scene(job)
    tokens = load_split(job.cfg, job.encoded, "test")
    active = torch.zeros(48, len(scene.ids), scene.context, dtype=torch.bool)
    row = tokens.row[tokens.target.row_of]
    active[tokens.target.indices, row // scene.context, row % scene.context] = True
    counts = active.any(2).sum(1)
    target = int(torch.where(counts <= SEQUENCES, counts, -1).argmax())
    assert counts[target] > 4
    source = int(scene.edges.source[target, 0])
    expected, best = [0.0] * scene.context, (0.0, (0, 0, 0, 0))
    weights = [scene.moves.weight(head)[source, target].item() for head in range(4)]
    for sequence in active[target].any(1).nonzero()[:, 0].tolist():
        with torch.inference_mode():
            seen = scene.attention.look(scene.ids[sequence][None])
            latents = scene.moves.source.encode(seen.x[0])[:, source] / scene.moves.heads.scale(seen.x[0])[:, 0]
        for query in active[target, sequence].nonzero()[:, 0].tolist():
            for key in range(job.cfg.data.drop_positions, query + 1):
                for head, weight in enumerate(weights):
                    part = (seen.pattern[0, head, query, key] * latents[key]).item() * weight
                    expected[query - key] += abs(part)
                    best = max(best, (abs(part), (sequence, head, query, key)))
    (look,) = scene.look([(target, torch.tensor([source]))])
    assert look.distances(0) == pytest.approx([each / sum(expected) for each in expected], rel=1e-3, abs=1e-6)
    first = look.examples(0, scene)[0]
    size, (sequence, head, query, key) = best
    assert abs(first.part) * job.encoded.scales[-1] == pytest.approx(size, rel=1e-3)
    assert (first.head, first.query - first.key) == (head, query - key)
    assert first.tokens[first.key] == job.vocabulary[int(scene.ids[sequence, key])]
    assert first.tokens[first.query] == job.vocabulary[int(scene.ids[sequence, query])]


def test_they_are_looked_at_without_being_asked_where_they_are_few(
    config: Callable[..., Config], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert moved_cards_of(Job(config("link=attn", "layer=1"), store)) is None
    monkeypatch.setattr(moved_cards, "MOST", 0)
    job = Job(config(*QUICK, "report.cards=5"), store)
    assert moved_cards_of(job) is None
    ov = OVStage(job.cfg, store).pull()
    artifact = moved_cards_of(job)
    assert artifact is not None and artifact.facts["targets"] == len(load_moved_cards(artifact).edges) == 5
    assert artifact.manifest["inputs"]["ov"] == ov.key
