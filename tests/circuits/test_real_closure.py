"""Links over layers of the real models: the residual and attention parts close."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saelink.circuits.explained import first_of_run
from saelink.circuits.inside import ByGradient
from saelink.circuits.opened import OpenModel
from saelink.circuits.prompt import LayerParts, Prompt
from saelink.errors import SaelinkError
from saelink.job import Job
from saelink.saes.sae import SAE
from saelink.store.store import Store

from helpers.world import composed

pytestmark = pytest.mark.real

CLOSE = 1e-4


def some_sae(seed: int, d: int) -> SAE:
    """A TopK SAE with directions of length 1 in a stream of `d`."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.nn.functional.normalize(torch.randn(512, d, generator=generator), dim=1)
    return SAE(W.T.contiguous(), torch.zeros(512), W, torch.zeros(d), k=16)


@pytest.mark.parametrize("model", ["smollm2", "gemma3-270m"])
def test_links_of_a_real_model_close(model: str, tmp_path: Path) -> None:
    """Gemma's wheels are installed by hand (docs/guides/your-model.md); without them it is left out."""
    cfg = composed([f"model={model}", "wandb.mode=disabled", f"runtime.outputs={tmp_path}/outputs"])
    job = Job(cfg, Store(cfg.runtime.outputs))
    try:
        opened = OpenModel(job)
    except SaelinkError as error:
        if model == "smollm2":
            raise
        pytest.skip(str(error))
    text = "The tower was built in 1889 by the engineer whose name it bears, and stands in Paris."
    ids = torch.tensor(opened.tokenizer(text)["input_ids"])
    d, layers = job.model.d_model, (0, 1, 2, 3)
    parts: dict[int, LayerParts] = {}
    for layer in layers:
        source, target, attn = (some_sae(10 * layer + i, d) for i in range(3))
        parts[layer] = LayerParts(source, target, attn, ByGradient(opened.mlp(layer), source, target))
    run = opened.run(ids[None], len(layers), to_logits=False)
    opened.check_sum(run)
    prompt = Prompt(opened, parts, ids, first_of_run(run), 1)
    for layer in layers:
        wanted = parts[layer].source.pre_acts(prompt.here(layer).x)
        missed, whole, seen = 0.0, 0.0, 0
        for links in prompt.into_sources(layer):
            at = links.targets - prompt.source_begin[layer]
            pre = wanted[prompt.position[links.targets], prompt.sources[layer].indices[at]]
            missed += float((links.weights.sum(1) + links.constant - pre).square().sum())
            whole += float(pre.square().sum())
            seen += len(pre)
        assert seen == 16 * (len(ids) - 1) and missed**0.5 <= CLOSE * whole**0.5
        attn = parts[layer].attn
        assert attn is not None
        wanted, missed, whole = attn.pre_acts(prompt.acts[layer].attn_out), 0.0, 0.0
        for links in prompt.into_attention(layer):
            pre = wanted[prompt.position[links.targets], prompt.writers.number[links.targets]]
            missed += float((links.weights.sum(1) + links.constant - pre).square().sum())
            whole += float(pre.square().sum())
        assert whole > 0 and missed**0.5 <= CLOSE * whole**0.5
