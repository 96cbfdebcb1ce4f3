"""Several sources taken out at once, against the whole model run with all of them gone; norms held, against algebra."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saelink.activations.tokens import TokensStage
from saelink.interventions.block import open_block, read_held
from saelink.interventions.joint import Gone, Joint, each
from saelink.job import Job
from saelink.latents.link import load_split
from saelink.model.block import Chain, Steps
from saelink.model.frozen import Norm, hold_norm
from saelink.model.load import load_bridge
from saelink.saes.load import pull_sae
from saelink.store.store import Store

from helpers.world import World


@pytest.mark.parametrize("link", ["mlp", "attn", "block"])
@pytest.mark.parametrize("model", ["llama", "neox"])
def test_sets_are_those_of_the_whole_model(world: World, store: Store, link: str, model: str) -> None:
    cfg = world.config(store.root, f"link={link}", model=model)
    job = Job(cfg, store)
    joint = Joint(open_block(job, "test"), job.sides.scales)
    sources, target_hook = job.link
    bridge, saes = load_bridge(cfg, job.model, "cpu"), [pull_sae(cfg, store, hook) for hook in sources]
    sae_out = pull_sae(cfg, store, target_hook)
    ids = TokensStage(cfg, store).pull().tensors("test.safetensors")["ids"].long()
    rows = load_split(cfg, job.sides, "test").row
    token = torch.tensor([7, 3, 21])
    active = joint.active.select(token)
    gone = Gone(active.row_of, active.indices)  # all that is active, at every source hook
    target = torch.tensor([5, 9, 30])
    found = joint.without(token, gone, target)
    with torch.inference_mode():
        for place, at in enumerate(token.tolist()):
            sequence, position = divmod(int(rows[at]), ids.shape[1])
            text = ids[sequence][None]
            _, seen = bridge.run_with_cache(text, names_filter=[*sources, target_hook], return_cache_object=False)

            def hold(name: str, number: int, position: int = position, seen: Any = seen) -> Any:
                def hook(acts: torch.Tensor, **_: object) -> torch.Tensor:
                    acts = acts.clone()
                    x = seen[name][0, position]
                    acts[0, position] = x - saes[number].encode(x[None])[0] @ saes[number].W_dec
                    return acts

                return hook

            after: dict[str, torch.Tensor] = {}

            def keep(acts: torch.Tensor, after: Any = after, **_: object) -> torch.Tensor:
                after["acts"] = acts
                return acts

            hooks = [*((name, hold(name, number)) for number, name in enumerate(sources)), (target_hook, keep)]
            bridge.run_with_hooks(text, fwd_hooks=hooks)
            expected = sae_out.pre_acts(after["acts"][0, position][None])[0, target[place]]
            assert found[place].item() == pytest.approx(expected.item(), abs=2e-4)


@pytest.mark.parametrize("link", ["mlp", "block"])
def test_one_source_alone_is_the_ablation_of_effects(world: World, store: Store, link: str) -> None:
    job = Job(world.config(store.root, f"link={link}"), store)
    block = open_block(job, "test")
    joint = Joint(block, job.sides.scales)
    row, source = joint.active.row_of[:200], joint.active.indices[:200]
    value = joint.active.values[:200]
    with torch.inference_mode():
        acts = block.without(row, source, block.taken(row, source, value))
        least = torch.zeros(block.target_sae.d_sae)
        after = read_held(block.target_sae.pre_acts(acts), joint.floor[row], least)
        for target in (0, 11, 40):
            at = torch.full_like(row, target)
            pre = joint.without(row, Gone(torch.arange(200), source), at)
            assert torch.allclose(joint.value(pre, row, at) * joint.scale, after[:, target], atol=1e-4)
            own = joint.value(joint.own(row, at), row, at) * joint.scale
            assert torch.allclose(own, joint.before.select(row).dense()[:, target], atol=1e-4)
    nothing = each(row)
    assert torch.allclose(joint.without(row, nothing, row * 0), joint.own(row, row * 0), atol=1e-4)


@pytest.mark.parametrize("kind", [torch.nn.LayerNorm, torch.nn.RMSNorm])
def test_a_norm_held_is_linear(kind: Any) -> None:
    torch.manual_seed(0)
    norm = kind(24, eps=1e-5).requires_grad_(False)
    norm.weight.uniform_(0.5, 2)
    if kind is torch.nn.LayerNorm:
        norm.bias.normal_()
    x, taken = torch.randn(40, 24) * 3 + 1, torch.randn(40, 24)
    found = Norm(norm, x)
    scale = found.scale(x)
    assert torch.allclose(found.held(x, scale), norm(x), atol=1e-5)
    half = found.held(x - taken / 2, scale)
    assert torch.allclose(half, (norm(x) + found.held(x - taken, scale)) / 2, atol=1e-5), "linear in what is taken"
    centre = x.mean(1, keepdim=True) if kind is torch.nn.LayerNorm else 0.0
    by_hand = ((x - centre).square().mean(1, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(scale, by_hand, atol=1e-5)


def test_what_is_no_norm_can_not_be_held() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 8)
    linear, relu = torch.nn.Linear(8, 8).requires_grad_(False), torch.nn.ReLU()
    assert hold_norm(Chain(Steps([linear, relu], True), x), x) is None
    assert hold_norm(Chain(Steps([torch.nn.RMSNorm(8)], True), x), x) is None
    chain = Chain(Steps([torch.nn.RMSNorm(8, eps=1e-6).requires_grad_(False), linear], True), x)
    held = hold_norm(chain, x)
    assert held is not None
    assert torch.allclose(held.without(x, torch.zeros_like(x)), chain.outputs(), atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_gives_what_the_cpu_gives(world: World, store: Store) -> None:
    found = []
    for device in ("cpu", "cuda"):
        job = Job(world.config(store.root, f"runtime.device={device}"), store)
        joint = Joint(open_block(job, "test"), job.sides.scales)
        token = torch.arange(50)
        active = joint.active.select(token)
        found.append(joint.without(token, Gone(active.row_of, active.indices), token % 48))
    assert torch.allclose(found[0], found[1], atol=1e-3)
