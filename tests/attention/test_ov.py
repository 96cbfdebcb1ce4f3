"""Computed edges: the parts that heads make of them are all there is, and what a target loses while it stays active."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saelink.attention.heads import load_attention
from saelink.attention.ov import OVStage, load_ov
from saelink.attention.stage import MovedStage, open_moves
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.fit.train import TrainStage
from saelink.job import Job
from saelink.latents.link import load_split
from saelink.store.store import Store

from helpers.world import Run

QUICK = ("link=ov", "layer=1", "link.kept=40")


def test_claims_are_means_of_computed_parts(config: Callable[..., Config], store: Store) -> None:
    cfg = config(*QUICK)
    job = Job(cfg, store)
    edges = load_ov(OVStage(cfg, store).pull())
    train = load_split(cfg, job.sides, "train")
    attention = load_attention(cfg, job.model, 1, "cpu")
    moves = open_moves(cfg, store, attention, job.link.sources[0], job.link.target)
    moved = train.source.dense().view(len(train), 4, 48) * job.sides.scales[0]
    active = (train.target.dense() > 0).float()
    weight = (moved * moves.reach()).sum(1)
    most = weight >= weight.topk(4, dim=1).values[:, -1:].clamp(min=1e-9)  # four latents are active on a token
    moved = moved * most[:, None]
    queries = most.sum(0)
    assert torch.equal(edges.queries, queries)
    parts = torch.stack([moved[:, h].T @ active * moves.weight(h) for h in range(4)]) / job.sides.scales[-1]
    parts = parts / queries.clamp(min=1)[:, None]
    assert torch.allclose(edges.claim, parts.sum(0), atol=1e-5)
    alone = torch.stack([moved[:, h].sum(0)[:, None] * moves.weight(h) for h in range(4)]).sum(0)
    assert torch.allclose(edges.ungated, alone / job.sides.scales[-1] / queries.clamp(min=1)[:, None], atol=1e-4)
    for target in (0, 17, 47):
        sources = edges.source[target]
        assert torch.allclose(edges.by_head[target].sum(1), edges.claim[sources, target], atol=1e-5)
        assert torch.allclose(edges.by_head[target], parts[:, sources, target].T, atol=1e-5)
        assert edges.claim[sources[0], target].abs() == edges.claim[:, target].abs().max()


def test_summed_columns_are_sums(config: Callable[..., Config], store: Store) -> None:
    by_head, summed = (Job(config("layer=1", "link.kept=1000", f"link={name}"), store) for name in ("ov", "ov_summed"))
    heads = load_split(by_head.cfg, by_head.sides, "test").source.dense() * by_head.sides.scales[0]
    together = load_split(summed.cfg, summed.sides, "test").source.dense() * summed.sides.scales[0]
    assert torch.allclose(heads.view(-1, 4, 48).sum(1), together, rtol=0.02, atol=1e-3)
    assert by_head.sides.source_name(48 * 2 + 7) == "h2.IF7" and summed.sides.source_name(7) == "IF7"
    assert by_head.sides.source_number("h2.7", "x") == 48 * 2 + 7 and by_head.sides.side_of(48 * 2 + 7) == (0, 7)
    for text, way_out in (("7", "such as h3.17"), ("h9.7", "4 heads"), ("h1.48", "48 source latents"), ("h.7", "give")):
        with pytest.raises(SaelinkError, match=way_out):
            by_head.sides.source_number(text, "show source")


def test_fewer_pairs_hold_less(config: Callable[..., Config], store: Store) -> None:
    held = [MovedStage(config("link=ov", f"link.kept={kept}"), store, 0).pull().facts for kept in (4, 16, 1000)]
    assert held[0]["held"] < held[1]["held"] < held[2]["held"] == pytest.approx(1, abs=1e-6)
    assert held[0]["l0"] == pytest.approx(4, abs=0.3)
    assert all(facts["off"] < 1e-5 and sum(facts["parts"].values()) == pytest.approx(1) for facts in held)


def test_other_links_and_targets_are_refused(config: Callable[..., Config], store: Store) -> None:
    with pytest.raises(SaelinkError, match="weights are computed for link=ov"):
        OVStage(config("link=attn"), store)
    with pytest.raises(SaelinkError, match="adds up in hook_attn_out"):
        _ = Job(config("link=ov", "link.target=hook_mlp_out"), store).sides


def test_the_rest_of_the_house_knows_them(saelink: Run, tmp_path: Path) -> None:
    """What needs sources of the same token says so in a line; exports, reports and whole blocks work."""
    fitted = (*QUICK, "solver=exact", "l1_alpha=1e-3")
    code, _, err = saelink("export", *fitted)
    assert code == 0, err
    rows = next(tmp_path.glob("outputs/export/*/edges.csv")).read_text().splitlines()
    assert any("blocks.0.hook_resid_post@h3" in row for row in rows)
    config = json.loads(next(tmp_path.glob("outputs/export/*/cfg.json")).read_text())
    assert config["sources"] == [
        {"hook_name": "blocks.0.hook_resid_post", "d": 192, "moved": "ov"} | {"scale": config["sources"][0]["scale"]}
    ]
    code, _, err = saelink("report", *fitted, "report.l1_alphas=[1e-3]", "report.ablated=0")
    assert code == 0, err
    code, _, err = saelink("graph", "the old king", *fitted)
    assert code == 1 and err.count("\n") == 1 and "take another link" in err
    code, _, err = saelink("verify", "solver=causal", *QUICK)
    assert code == 1 and err.count("\n") == 1 and "not for ov" in err


def test_a_whole_block_with_moved_latents(config: Callable[..., Config], store: Store) -> None:
    job = Job(config("link=block_ov", "layer=1", "link.kept=40", "solver=exact", "l1_alpha=1e-4"), store)
    sides = job.sides
    assert [side.facts["d_sae"] for side in sides.sources] == [48, 192, 48]
    assert sides.source_name(48 + 2 * 48 + 7) == "h2.IF1.7" and sides.source_name(48 + 192 + 3) == "IF2.3"
    assert sides.source_number("h2.1.7", "x") == 48 + 2 * 48 + 7 and sides.source_number("2.3", "x") == 48 + 192 + 3
    facts = TrainStage(job).pull().facts
    assert facts["validation_fvu"] < 1 and facts.get("relative_gap", 1.0) < 1e-3
