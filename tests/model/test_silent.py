"""Models whose MLPs give nothing, or rounding, on most tokens."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

from saelink.model.agreement import LIMIT, difference
from saelink.model.block import module_of
from saelink.model.describe import model_info
from saelink.store.store import Store

from helpers.world import World


def test_rounding_beside_nothing_is_no_difference() -> None:
    b = torch.zeros(7, 4)
    b[2] = 1.0
    a = b + 1e-8
    assert difference(a, b) < LIMIT and difference(b, a) < LIMIT
    a[3] = 0.1
    assert difference(a, b) > LIMIT
    assert difference(b * 0, b * 0) == 0.0


def test_an_mlp_that_gives_nothing_is_opened(world: World, store: Store) -> None:
    info = model_info(world.config(store.root), store)
    model = AutoModelForCausalLM.from_pretrained(world.llama).requires_grad_(False)
    model.model.layers[1].mlp.down_proj.weight.zero_()
    steps = module_of(model, info, "blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out")
    assert not steps(torch.randn(5, model.config.hidden_size)).any()
