"""The list of circuits and what latents mean: agreement with the tables they are read from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saelink.evidence.effectiveness import OUTPUTS_FILE, EffectivenessStage
from saelink.evidence.verdicts import VERDICTS
from saelink.job import Job
from saelink.latents.link import load_split
from saelink.latents.rows import Rows
from saelink.report.cards.cards import Cards
from saelink.report.cards.listed import POOR, RARE, Listed
from saelink.report.cards.meaning import _similar, _together, meanings
from saelink.saes.load import pull_sae
from saelink.store.store import Store

from helpers.world import World


def test_columns_are_what_the_cards_say(world: World, store: Store) -> None:
    cards = Cards(Job(world.config(store.root, "solver=exact", "l1_alpha=1e-3"), store))
    wiring, d = cards.wiring, cards.sides.d_target
    oracle = torch.linspace(0, 1, d)
    listed = Listed(wiring, oracle)
    columns = listed.columns(4)
    reasons = set()
    for latent in wiring.columns_of:
        every = listed.edges(latent)
        edges = wiring.connector.edges(latent, 1000)
        assert sorted(row["number"] for row in every) == sorted(edges.ids) and len(every) == columns["n_edges"][latent]
        sizes = [abs(row["weight"]) for row in every]
        assert sizes == sorted(sizes, reverse=True)
        counts = columns["verdicts"][latent]
        assert counts is not None
        judged = [row["verdict"] for row in every if "verdict" in row]
        assert counts == [judged.count(verdict) for verdict in VERDICTS]
        sure = [abs(row["effect"]) for row in every if row.get("verdict") == "confirmed"]
        assert abs((columns["effect"][latent] or 0) - max(sure, default=0)) < 0.02
        why, circuit = columns["why"][latent], wiring.circuit(latent)
        assert (why is not None) == (circuit["logic"]["word"] == "unclear")
        if why is not None:
            codes = set(why.split())
            reasons |= codes
            assert ("none" in codes) == (circuit["n_edges"] == 0)
            if circuit["n_edges"]:
                assert ("rare" in codes) == (circuit["fired"] < RARE)
                assert ("oracle" in codes) == (oracle[latent].item() > POOR)
    assert {"oracle", "many"} <= reasons


def test_without_verdicts_nothing_is_said_of_them(world: World, store: Store) -> None:
    cfg = world.config(store.root, "solver=exact", "l1_alpha=1e-3", "eval.verify=false")
    listed = Listed(Cards(Job(cfg, store)).wiring, torch.full((48,), torch.nan))
    columns = listed.columns(4)
    assert columns["verdicts"] == columns["effect"] == [None] * 48
    some = next(i for i, n in enumerate(columns["n_edges"]) if n)
    assert not any("verdict" in row for row in listed.edges(some))


def test_what_the_output_owes_to_a_target_is_the_sum_over_its_edges(world: World, store: Store) -> None:
    words = ["solver=exact", "l1_alpha=1e-3", "eval.verify=false", "verify.output_tokens=320"]
    job = Job(world.config(store.root, *words), store)
    assert "effectiveness" not in Listed(Cards(job).wiring, torch.full((48,), torch.nan)).columns(4)
    tensors = EffectivenessStage(job).pull().tensors(OUTPUTS_FILE)
    columns: dict[str, Any] = dict(Listed(Cards(job).wiring, torch.full((48,), torch.nan)).columns(4))
    seen = 0
    for latent, n in enumerate(columns["n_edges"]):
        mine = tensors["target"] == latent
        if n is None:
            assert columns["effectiveness"][latent] is None and not mine.any()
            continue
        assert int(mine.sum()) == n
        for name in ("effectiveness", "helpfulness"):
            assert columns[name][latent] == pytest.approx(float(tensors[name][mine].sum()), rel=0.01, abs=1e-12)
        seen += n
    assert seen == len(tensors["target"]) > 48


def test_similar_directions_and_overlap_by_hand() -> None:
    directions = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0], [1.0, 0.01]])
    alive = torch.tensor([True, True, True, False])
    ((near,),) = [_similar(directions, torch.tensor([0]), alive)[0]]
    assert near[0] == 1 and near[1] > 0.99, "latent 3 is nearer and never fires"
    active = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1]]).bool()
    row, latent = active.nonzero(as_tuple=True)
    rows = Rows.from_pairs(row, latent, torch.ones(len(row)), n=4, d=3)
    assert _together(rows, torch.tensor([0, 2])) == [[(1, round(2 / 3, 3))], []]


def test_meanings_of_a_connectors_latents(world: World, store: Store) -> None:
    job = Job(world.config(store.root, "solver=exact", "l1_alpha=1e-3"), store)
    cards = Cards(job)
    targets, sources = meanings(job, cards.firing, {0, 5}, {3})
    assert set(targets) == {0, 5} and set(sources) == {3}
    words = targets[5].get("words")
    assert words is not None and len(words["up"]) == 8
    scores = [score for _, score in words["up"]]
    assert scores == sorted(scores, reverse=True) and scores[0] > 0 > words["down"][0][1]
    W = torch.nn.functional.normalize(pull_sae(job.cfg, store, job.link.target).W_dec, dim=1)
    for other, cosine in targets[5]["similar"]:
        assert other != 5 and abs(cosine - (W[5] @ W[other]).item()) < 1e-3
    dense = load_split(job.cfg, job.sides, "test").target.dense() > 0
    for other, overlap in targets[0]["together"]:
        both, either = (dense[:, 0] & dense[:, other]).sum(), (dense[:, 0] | dense[:, other]).sum()
        assert abs(overlap - (both / either).item()) < 1e-3
