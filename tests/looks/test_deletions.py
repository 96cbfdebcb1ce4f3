"""Leading pairs deleted in the model: as the whole model by hooks gives it; controls stand at the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from saelink.config.schema import Config
from saelink.job import Job
from saelink.looks.causal import DELETIONS, places_by_pair
from saelink.looks.deletions import DELETIONS_FILE, QKDeletionsStage, controls_of
from saelink.looks.stage import HEADS_FILE, before_attention, found_or_made, open_layer
from saelink.looks.text import MODES
from saelink.saes.load import pull_sae
from saelink.store.store import Store

from helpers.world import Run

Configure = Callable[..., Config]

SMALL = ("layer=1", "qk.tokens=512", "qk.pairs=3", "qk.together=[1,5]", "qk.nulls=false", "head=2")


def test_they_are_what_the_whole_model_does(config: Configure, store: Store) -> None:
    from transformers import AutoModelForCausalLM

    cfg = config(*SMALL)
    job = before_attention(Job(cfg, store))
    qk = found_or_made(job)
    found = QKDeletionsStage(job, qk).pull().json(DELETIONS_FILE)[0]
    hook = qk.facts["hook_name"]
    text = open_layer(job, hook, pull_sae(cfg, store, hook)).second
    pairs = [(pair["query"], pair["key"]) for pair in qk.json(HEADS_FILE)[0]["pairs"][MODES[1]]]
    places = [place for each in places_by_pair(text, pairs, 2, 16) for place in each]
    assert found["head"] == 2 and found["places"] == len(places) >= 8
    model: Any = AutoModelForCausalLM.from_pretrained(cfg.model.path, attn_implementation="eager").eval()
    layer, state, kept = model.model.layers[1], {"change": torch.zeros(())}, []
    layer.register_forward_pre_hook(lambda _, args: (args[0] - state["change"], *args[1:]))
    layer.self_attn.register_forward_hook(lambda _m, _a, out: kept.append(out[1][0]))

    def row(place: Any, entries: list[int]) -> torch.Tensor:
        sequence = text.sequences[place.number]
        change = torch.zeros(text.n, text.stream.shape[2])
        for entry in entries:
            change[sequence.position[entry]] += sequence.value[entry] * text.sae.W_dec[sequence.latent[entry]]
        state["change"] = change
        with torch.inference_mode():
            model(sequence.ids[None], use_cache=False)
        return kept.pop()[2, place.query]

    for which, name in ((places, "pair"), (controls_of(text, places), "control")):
        for deletion in DELETIONS:
            total = 0.0
            for place in which:
                gone = [place.query_entry] * (deletion != "key") + [place.key_entry] * (deletion != "query")
                total += 0.5 * (row(place, gone) - row(place, [])).abs().sum().item()
            assert found["deletions"][deletion][name] == pytest.approx(total / len(which), rel=1e-3, abs=1e-5)


def test_controls_are_other_latents_at_the_same_tokens(config: Configure, store: Store) -> None:
    job = before_attention(Job(config(*SMALL), store))
    qk = found_or_made(job)
    hook = qk.facts["hook_name"]
    text = open_layer(job, hook, pull_sae(job.cfg, store, hook)).second
    pairs = [(pair["query"], pair["key"]) for pair in qk.json(HEADS_FILE)[0]["pairs"][MODES[1]]]
    places = [place for each in places_by_pair(text, pairs, 2, 16) for place in each]
    for place, other in zip(places, controls_of(text, places), strict=True):
        sequence = text.sequences[place.number]
        assert other[:3] == place[:3]
        for own, drawn in ((place.query_entry, other.query_entry), (place.key_entry, other.key_entry)):
            assert own != drawn and sequence.position[own] == sequence.position[drawn]


def test_verify_prints_them(saelink: Run) -> None:
    quick = ("link=ov", "layer=1", "link.kept=40", "solver=exact", "l1_alpha=1e-3", "verify.tokens_per_source=6")
    code, out, err = saelink("verify", *quick, "verify.qk=true", *SMALL[1:-1])
    assert code == 0, err
    assert "Where heads look" in out and "both go" in out
    code, _, err = saelink("verify", "verify.qk=true")
    assert code == 1 and "verify.qk=true link=mlp: where heads look is tested with link=ov" in err
