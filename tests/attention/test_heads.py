"""Heads: the formula of what they move is what transformers' own model does, in every family, or it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from saelink.errors import SaelinkError
from saelink.store.store import Store

from helpers.attention import LAYER, MORE, OPENED, opened
from helpers.families import FAMILIES, VOCABULARY
from helpers.world import World


def own(folder: Path, name: str, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What transformers' own model, by its eager attention, gives as pattern and at attn_out."""
    from transformers import AutoModelForCausalLM

    family = FAMILIES[name]
    hf_model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    layer = hf_model.get_submodule(family.layers)[LAYER]
    kept: list[torch.Tensor] = []
    layer.get_submodule(family.attn).register_forward_hook(
        lambda _, _args, out: kept.append((out[0] if isinstance(out, tuple) else out).clone())
    )
    with torch.inference_mode():
        out = hf_model(ids, use_cache=False, output_attentions=True)
    return out.attentions[LAYER], kept[0].view(*ids.shape, -1)


def off(mine: torch.Tensor, true: torch.Tensor) -> float:
    return ((mine - true).norm() / true.norm()).item()


@pytest.mark.parametrize("name", [*OPENED, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_heads_do_what_the_model_does(name: str, world: World, store: Store, tmp_path: Path) -> None:
    attention = opened(name, world, store, tmp_path)
    ids = torch.randint(VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        seen = attention.look(ids)
    pattern, out = own(tmp_path / "model", name, ids)
    heads = attention.heads
    assert off(seen.pattern, pattern) < 1e-5
    assert off(seen.out, out) < 1e-5
    x = seen.x.double()
    exact = heads.to(torch.float64)
    # in the parts that are reported: the token over its scale, and what is the same at every token
    values = exact.values(x.flatten(0, 1)).view(*x.shape[:2], heads.n_kv, -1) / exact.scale(x)[..., None]
    values = values + sum(exact.constant_values().values())
    z = torch.einsum("nhqk,nkhe->nqhe", pattern.double(), values[:, :, heads.kv_of])
    assert off(exact.out(z), out.double()) < 1e-5
    assert (heads.norm is None) or not torch.allclose(heads.norm.gain, torch.ones(len(heads.norm.gain)), atol=0.1)
    assert (heads.post is not None) == (name in ("gemma2", "gemma3", "olmo2", "exaone4", "glm4"))


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "gemma3"])
def test_readers_and_weights_are_one_computation(name: str, world: World, store: Store, tmp_path: Path) -> None:
    heads = opened(name, world, store, tmp_path).heads.to(torch.float64)
    generator = torch.Generator().manual_seed(1)
    d = heads.out_bias.shape[0]
    directions, encoder = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((5, d), (d, 7)))
    values, readers = heads.values(directions)[:, heads.kv_of], heads.readers(encoder)
    for head in range(heads.n_heads):
        assert off(values[:, head] @ readers[head], heads.weights(directions, encoder, head)) < 1e-12


def test_single_tokens_are_projected_at_their_positions(world: World, store: Store, tmp_path: Path) -> None:
    attention = opened("qwen3", world, store, tmp_path)
    ids = torch.randint(VOCABULARY, (1, 20), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        seen = attention.look(ids)
        position = torch.tensor([7, 0, 19, 7])
        part = attention.opened.project(attention.opened.normed(seen.x[0, position]), position)
        z = torch.randn(3, attention.heads.n_heads, attention.heads.W_V.shape[2])
        assert off(attention.opened.out(z), attention.heads.out(z)) < 1e-5
    for mine, own_ in zip(part, seen.given[:3], strict=True):
        assert off(mine, own_[0, :, position].transpose(0, 1)) < 1e-5


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("granite", "its output is no module's own"),
        ("bloom", "does not run it by a function"),
        ("deepseek3", "values that are not linear"),
        ("gptneo", "."),
        ("mamba", "."),
    ],
)
def test_another_form_is_refused_in_one_line(
    name: str, problem: str, world: World, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(SaelinkError, match=problem) as refused:
        opened(name, world, store, tmp_path)
    assert str(refused.value).startswith("model.path=") and "\n" not in str(refused.value)
