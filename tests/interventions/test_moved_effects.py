"""Effects through attention: all edges at once are what one ablation at a time in the whole model gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.interventions.block import encoded_with_floor, read_held
from saelink.interventions.moved_effects import (
    LINEAR,
    NULLS,
    MovedEffectsStage,
    load_means,
    load_moved_effects,
    measured_queries,
)
from saelink.job import Job
from saelink.latents.link import load_split
from saelink.latents.shards import encode_rows
from saelink.saes.load import pull_sae
from saelink.store.store import Store

QUICK = ("link=ov", "layer=1", "link.kept=40", "verify.tokens_per_source=6", "verify.tokens=320")


class Whole:
    """The whole model as transformers has it; attention's output where the stream in front was changed."""

    def __init__(self, folder: Any):
        from transformers import AutoModelForCausalLM

        self._model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
        layer = self._model.model.layers[1]
        self._change: Any = 0.0
        self.x = self.out = torch.zeros(())
        layer.register_forward_pre_hook(self._before, with_kwargs=True)
        layer.self_attn.register_forward_hook(lambda _, _args, out: setattr(self, "out", out[0].clone()))

    def _before(self, _: Any, args: Any, kwargs: Any) -> Any:
        self.x = args[0]
        return (args[0] - self._change, *args[1:]), kwargs

    def exact(self) -> None:
        """From here on in float64."""
        self._model.double()

    def run(self, ids: torch.Tensor, change: Any = 0.0) -> torch.Tensor:
        self._change = change
        with torch.inference_mode():
            self._model(ids, use_cache=False)
        return self.out[0]


def test_every_edge_is_what_single_ablations_give(config: Callable[..., Config], store: Store) -> None:
    cfg = config(*QUICK)
    job = Job(cfg, store)
    artifact = MovedEffectsStage(job).pull()
    found, means = load_moved_effects(artifact), load_means(artifact)
    source_sae, target_sae = (
        pull_sae(cfg, store, hook).to("cpu", torch.float32) for hook in (job.link.sources[0], job.link.target)
    )
    unit, context = job.encoded.scales[-1], 16
    ids = job.tokens.tensors("test.safetensors")["ids"].long()[: 320 // context]
    tokens = load_split(cfg, job.sides, "test")
    tokens = tokens.subset(tokens.row < ids.numel())
    moved = measured_queries(job).moved
    assert round(len(moved.values) / len(moved), 1) == 4  # as many as are active on a token
    whole = Whole(cfg.model.path)
    generator = torch.Generator().manual_seed(0)
    asked = 0
    for j in torch.randperm(source_sae.d_sae, generator=generator).tolist()[:12]:
        rows = tokens.row[moved.dense()[:, j] > 0]
        if not len(rows):
            assert means.queries[j] == 0
            continue
        # the first of each of six equal parts, as for the MLP
        n = len(rows)
        parts = [i for i in range(n) if n <= 6 or i == 0 or i * 6 // n != (i - 1) * 6 // n]
        total, same = torch.zeros(target_sae.d_sae), 0.0
        for row in rows[parts].tolist():
            sequence, query = row // context, row % context
            before = whole.run(ids[sequence : sequence + 1])[query]
            active = encode_rows(source_sae, whole.x[0]).dense()[:, j].clone()
            active[0] = 0
            after = whole.run(ids[sequence : sequence + 1], active[:, None] * source_sae.W_dec[j])[query]
            kept, floor = encoded_with_floor(target_sae, before[None])
            total += kept.dense()[0] - read_held(target_sae.pre_acts(after[None]), floor, torch.zeros(48))[0]
            same += active[query].item()
        assert means.queries[j] == len(parts)
        assert means.same[j] == pytest.approx(same / len(parts) / job.encoded.scales[0], rel=1e-3, abs=1e-4)
        off = (found.dense()[j] - total / len(parts) / unit).abs()
        assert (off <= 1e-4 * found.target_mean.clamp(min=0.1)).all()
        asked += int((total != 0).sum())
    assert asked > 100


def test_frozen_effects_are_the_computed_weights(config: Callable[..., Config], store: Store) -> None:
    """Where a target stays active, it loses the kept and the cut pairs' own part: with all kept, V times their mean."""
    job = Job(config(*QUICK, "link.kept=400"), store)
    artifact = MovedEffectsStage(job).pull()
    frozen, free = load_moved_effects(artifact, "frozen"), load_moved_effects(artifact)
    assert not torch.equal(frozen.dense(), free.dense())
    correlation = torch.corrcoef(torch.stack([frozen.dense().flatten(), free.dense().flatten()]))[0, 1]
    assert correlation > 0.3  # random attention: the pattern matters


def test_gradients_are_those_of_float64(config: Callable[..., Config], store: Store) -> None:
    cfg = config("link=ov", "layer=1", "link.kept=40", "verify.tokens_per_source=1", "verify.tokens=16")
    job = Job(cfg, store)
    artifact = MovedEffectsStage(job, null=LINEAR).pull()
    found, means = load_moved_effects(artifact), load_means(artifact)
    source_sae, target_sae = (
        pull_sae(cfg, store, hook).to("cpu", torch.float32) for hook in (job.link.sources[0], job.link.target)
    )
    ids = job.tokens.tensors("test.safetensors")["ids"].long()[:1]
    tokens = load_split(cfg, job.sides, "test")
    moved = measured_queries(job).moved
    whole = Whole(cfg.model.path)
    before = whole.run(ids)
    latents, active = encode_rows(source_sae, whole.x[0]).dense(), encode_rows(target_sae, before).dense() > 0
    whole.exact()
    tried = 0
    for j in means.queries.nonzero().flatten().tolist():
        query = int(tokens.row[:15][moved.dense()[:, j] > 0][0])
        written = (latents[:, j, None] * source_sae.W_dec[j]).double()
        written[0] = 0
        sides = [whole.run(ids, sign * 1e-5 * written)[query] @ target_sae.W_enc.double() for sign in (-1, 1)]
        true = torch.where(active[query], (sides[0] - sides[1]) / 2e-5, 0.0) / job.encoded.scales[-1]
        assert (found.dense()[j] - true).norm() <= 0.05 * true.norm() + 1e-3
        tried += int(true.any())
    assert tried > 5


def test_nulls(config: Callable[..., Config], store: Store) -> None:
    job = Job(config(*QUICK), store)
    true = load_moved_effects(MovedEffectsStage(job).pull())
    for null in NULLS:
        found = load_moved_effects(MovedEffectsStage(job, null=null).pull())
        assert torch.corrcoef(torch.stack([found.dense().flatten(), true.dense().flatten()]))[0, 1] < 0.6


def test_other_links_are_refused(config: Callable[..., Config], store: Store) -> None:
    with pytest.raises(SaelinkError, match="from moved latents alone"):
        MovedEffectsStage(Job(config("link=attn"), store))
