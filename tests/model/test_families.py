"""Model families: what saelink reads and changes in each is what transformers' own model has, or it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from saelink.errors import SaelinkError
from saelink.interventions.splice import next_token_losses, put
from saelink.model.block import load_module
from saelink.model.describe import model_info
from saelink.model.forward import load_forward
from saelink.model.info import ModelInfo
from saelink.model.load import load_bridge
from saelink.model.probe import BLOCK_HOOKS
from saelink.progress import Progress
from saelink.store.store import Store

from helpers.families import FAMILIES, VOCABULARY, Family, write_family
from helpers.world import World

ALWAYS = ("gpt2", "llama", "gemma2", "falcon", "falcon alibi", "cohere", "opt", "mixtral", "granite", "codegen", "bert")
"""The others are slow: all of them together take half a minute."""

PRE, ATTN, MID, MLP, POST = BLOCK_HOOKS

LAYER = 1

Hook = Any


def part(hf_model: Any, family: Family, name: str | None) -> Any:
    """A module of a layer in transformers' own model."""
    layer = hf_model.get_submodule(family.layers)[LAYER]
    return layer if name is None else layer.get_submodule(name)


def first(out: Any, ids: torch.Tensor) -> torch.Tensor:
    out = out[0] if isinstance(out, tuple) else out
    return out.reshape(*ids.shape, -1).clone()


def plain(folder: Path, family: Family, ids: torch.Tensor, mlp_out: Hook = None) -> dict[str, torch.Tensor]:
    """What transformers' own model, loaded by itself, has at the hooks, and its logits; `mlp_out` changes the MLP's."""
    from transformers import AutoModelForCausalLM

    hf_model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    seen: dict[str, torch.Tensor] = {}

    def given(_: Any, args: Any, kwargs: Any) -> None:
        seen[PRE] = first(next(iter((*args, *kwargs.values()))), ids)

    def gives(name: str, scale: float, change: Hook = None) -> Any:
        def hook(_: Any, _args: Any, out: Any) -> Any:
            seen[name] = first(out, ids) * scale
            if change is None:
                return None
            tensor = out[0] if isinstance(out, tuple) else out
            new = (change(seen[name]) / scale).view(tensor.shape)
            return (new, *out[1:]) if isinstance(out, tuple) else new

        return hook

    layer = part(hf_model, family, None)
    layer.register_forward_pre_hook(given, with_kwargs=True)
    layer.register_forward_hook(gives(POST, 1.0))
    if family.attn is not None and family.mlp is not None:
        part(hf_model, family, family.attn).register_forward_hook(gives(ATTN, family.scale))
        part(hf_model, family, family.mlp).register_forward_hook(gives(MLP, family.scale, mlp_out))
    with torch.inference_mode():
        seen["logits"] = hf_model(ids, use_cache=False).logits
    if family.attn is not None and not family.parallel:
        seen[MID] = seen[PRE] + seen[ATTN]
    return seen


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, what: str, tolerance: float = 1e-4) -> None:
    off = ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp(min=1e-3)).max().item()
    assert off <= tolerance, f"{what} is {off:.2g} off"


def effect_of_the_mlp(cfg: Any, info: ModelInfo, bridge: Any, ids: torch.Tensor, taken: torch.Tensor) -> None:
    """With something taken out of the MLP's input, the chain of modules gives what the whole model gives there."""
    source, target = info.hook("mlp_in", LAYER), info.hook(MLP, LAYER)
    acts = load_forward(cfg, info, [source], "cpu")(ids)[source].flatten(0, 1)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor, **_: object) -> torch.Tensor:
        kept.append(tensor.clone())
        return tensor

    with torch.inference_mode():
        bridge.run_with_hooks(ids, fwd_hooks=[(source, lambda x, **_: x - taken.view(x.shape)), (target, keep)])
        alone = load_module(cfg, info, source, target, "cpu")(acts - taken.flatten(0, 1))
    assert_close(alone, kept[0].reshape(alone.shape), "the MLP by itself")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in ALWAYS else pytest.mark.slow) for n in FAMILIES])
def test_a_family_is_right_or_refused(name: str, world: World, store: Store, tmp_path: Path) -> None:
    family = FAMILIES[name]
    folder = write_family(family, tmp_path / "model")
    cfg = world.config(store.root, f"model.path={folder}", f"layer={LAYER}")
    if family.refused is not None:
        with pytest.raises(SaelinkError, match=family.refused) as refused:
            model_info(cfg, store)
        assert str(refused.value).startswith(f"model.path={folder}: ") and "\n" not in str(refused.value)
        assert not list(store.root.glob("model/*/manifest.json"))
        return
    info = model_info(cfg, store)
    assert info.artifact.facts["attention"] == family.attention and info.parallel is family.parallel
    ids = torch.randint(VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(3))
    true = plain(folder, family, ids)
    hooks = {name: f"blocks.{LAYER}.{name}" for name in true if name != "logits"}
    hooks[PRE] = info.hook(PRE, LAYER)
    with torch.inference_mode():
        seen = load_forward(cfg, info, list(hooks.values()), "cpu")(ids)
        for each, hook in hooks.items():
            assert_close(seen[hook], true[each], each)
        bridge = load_bridge(cfg, info, "cpu")
        losses = next_token_losses(bridge, ids, lambda _: [], Progress())
    expected = torch.nn.functional.cross_entropy(true["logits"][:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert losses.mean().item() == pytest.approx(expected.item(), rel=1e-5)
    if family.mlp is None:
        return
    where = torch.rand(ids.shape, generator=torch.Generator().manual_seed(4)) < 0.5
    new = torch.randn(true[MLP].shape, generator=torch.Generator().manual_seed(5))
    splice = put(new, where)
    spliced = plain(folder, family, ids, splice)["logits"]
    with torch.inference_mode():
        ours = bridge.run_with_hooks(ids, fwd_hooks=[(hooks[MLP], splice)])
    assert_close(ours, spliced, "logits with the MLP replaced")
    assert not torch.allclose(spliced, true["logits"], atol=1e-2)
    if family.chained:
        effect_of_the_mlp(cfg, info, bridge, ids, 0.3 * new)
    else:
        with pytest.raises(SaelinkError, match="no chain of modules"):
            effect_of_the_mlp(cfg, info, bridge, ids, new)


def test_the_guide_counts_them() -> None:
    page = " ".join((Path(__file__).parents[2] / "docs/guides/your-model.md").read_text().split())
    refused = sum(family.refused is not None for family in FAMILIES.values())
    assert f"random models of {len(FAMILIES)} kinds" in page
    assert f"{len(FAMILIES) - refused} are right" in page and f"and {refused} are refused" in page
