"""A transcoder beside a connector: its figures are those of the dense computation on the same tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saelink.activations.cache import act_shards, cache_hooks
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.evidence.transcoder import TranscoderStage
from saelink.job import Job
from saelink.latents.link import link_of, load_split, pull_sides
from saelink.saes.load import pull_sae
from saelink.store.store import Store

from helpers.transcoders import write_transcoder
from helpers.world import Run

D_SAE = 24


def test_figures_are_those_of_the_dense_computation(
    config: Callable[..., Config], store: Store, tmp_path: Path
) -> None:
    t = write_transcoder(tmp_path / "transcoder-1")
    cfg = config("connector=linear", "solver=exact", f"transcoder.path={tmp_path}/transcoder-LAYER", "eval.ce=true")
    table = TranscoderStage(Job(cfg, store)).pull().json("transcoder.json")
    link, sides = link_of(cfg, store), pull_sides(cfg, store)
    acts = cache_hooks(cfg, store, [link.sources[0], link.target])
    x, y = (
        torch.cat([shard.flatten(0, 1) for _, shard in act_shards(acts[hook], ["test"])]).double()
        for hook in (link.sources[0], link.target)
    )
    test = load_split(cfg, sides, "test")
    x, y = x[test.row], y[test.row]
    t = {name: tensor.double() for name, tensor in t.items()}
    latents = (x @ t["W_enc"] + t["b_enc"]).relu()
    made = latents @ t["W_dec"] + t["b_dec"] + x @ t["W_skip"].T
    variance = (y - y.mean(0)).square().sum()
    assert table["transcoder"]["fvu_acts"] == pytest.approx(((y - made).square().sum() / variance).item(), rel=1e-4)
    assert table["transcoder"]["l0"] == pytest.approx((latents > 0).sum(1).double().mean().item(), rel=1e-4)
    sae = pull_sae(cfg, store, link.target)
    rebuilt = sae.decode(sae.encode(y.float())).double()
    assert table["sae"]["fvu_acts"] == pytest.approx(((y - rebuilt).square().sum() / variance).item(), rel=1e-4)
    read = sae.encode(made.float()) / sides.scales[-1]
    true = test.target.dense()
    spread = (true - true.mean(0)).double().square().sum()
    alive = torch.zeros(true.shape[1], dtype=torch.bool)
    alive[load_split(cfg, sides, "train").target.indices.unique()] = True
    error = (read - true)[:, alive].double().square().sum()
    assert table["transcoder"]["fvu_latents"] == pytest.approx((error / spread).item(), rel=1e-3)
    again = sae.encode(rebuilt.float()) / sides.scales[-1]
    error = (again - true)[:, alive].double().square().sum()
    assert table["sae"]["fvu_latents"] == pytest.approx((error / spread).item(), rel=1e-3)
    assert table["connector"]["fvu_latents"] == pytest.approx(
        json.loads((store.root / "evaluate").glob("*/metrics.json").__next__().read_text())["fvu"], rel=1e-4
    )
    assert all(row["recovered_low"] <= row["recovered"] <= row["recovered_high"] for row in table.values())


def test_what_is_no_transcoder_for_this_link_gets_one_line(
    config: Callable[..., Config], store: Store, tmp_path: Path
) -> None:
    write_transcoder(tmp_path / "narrow", d_in=7, skip=False)
    base = ["connector=linear", "solver=exact"]
    with pytest.raises(SaelinkError, match=r"it reads activations of 7, blocks\.1\.hook_resid_mid has 32"):
        TranscoderStage(Job(config(*base, f"transcoder.path={tmp_path}/narrow"), store)).pull()
    with pytest.raises(SaelinkError, match=r"transcoder\.path: there is no .*nowhere"):
        TranscoderStage(Job(config(*base, f"transcoder.path={tmp_path}/nowhere"), store)).pull()
    with pytest.raises(SaelinkError, match=r"the model has no hook blocks\.1\.hook_what"):
        TranscoderStage(
            Job(config(*base, f"transcoder.path={tmp_path}/narrow", "transcoder.hook=hook_what"), store)
        ).pull()
    write_transcoder(tmp_path / "saes" / "blocks.1.hook_mlp_out")
    with pytest.raises(SaelinkError, match="that is a transcoder, which does not give back what it reads"):
        pull_sae(config(f"sae.path={tmp_path}/saes"), store, "blocks.1.hook_mlp_out")


def test_evaluate_shows_both(saelink: Run, tmp_path: Path) -> None:
    write_transcoder(tmp_path / "mine", skip=False)
    code, out, err = saelink("evaluate", "connector=linear", "solver=exact", "transcoder.path=mine")
    assert code == 0, err
    assert "Beside the transcoder" in out and max(map(len, out.split("Beside")[1].splitlines()[:4])) <= 80
