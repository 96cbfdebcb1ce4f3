"""The real model, text and shipped SAEs: `make test-all`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from saelink.activations.cache import act_shards, cache_hooks
from saelink.activations.tokens import TokensStage
from saelink.interventions.effects import EffectsStage, load_effects
from saelink.job import Job
from saelink.latents.encode import EncodeStage
from saelink.latents.link import load_split, pull_sides
from saelink.model.describe import model_info
from saelink.model.load import load_bridge, load_tokenizer
from saelink.saes.formats import read_sae
from saelink.store.store import Store

from helpers.world import Run, composed

pytestmark = pytest.mark.real

SAES = Path(__file__).parent.parent / "saelink" / "saes" / "shipped" / "smollm2"

HOOKS = ["blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out", "blocks.3.hook_resid_mid", "blocks.3.hook_mlp_out"]

SLICE = ["data.max_tokens=60000", "wandb.mode=disabled"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the module: the model is unpacked once."""
    return tmp_path_factory.mktemp("real") / "outputs"


def test_the_bridge_is_the_plain_model(outputs: Path) -> None:
    from transformers import AutoModelForCausalLM

    cfg = composed([*SLICE, f"runtime.outputs={outputs}"])
    store = Store(outputs)
    acts = cache_hooks(cfg, store, HOOKS)
    ids = TokensStage(cfg, store).pull().tensors("test.safetensors")["ids"][:8].long()
    folder = model_info(cfg, store).artifact.path
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    seen: dict[str, torch.Tensor] = {}
    for layer in (1, 3):
        block = plain.model.layers[layer]
        block.post_attention_layernorm.register_forward_hook(
            lambda module, inputs, output, layer=layer: seen.update({f"blocks.{layer}.hook_resid_mid": inputs[0]})
        )
        block.mlp.register_forward_hook(
            lambda module, inputs, output, layer=layer: seen.update({f"blocks.{layer}.hook_mlp_out": output})
        )
    with torch.no_grad():
        plain(ids)
    for hook in HOOKS:
        ours = next(shard for _, shard in act_shards(acts[hook], ["test"]))[:8].float()
        assert ((ours - seen[hook]).norm() / seen[hook].norm()) < 4e-3, hook


def test_separator_and_documents(outputs: Path) -> None:
    cfg = composed([*SLICE, f"runtime.outputs={outputs}"])
    store = Store(outputs)
    packed = TokensStage(cfg, store).pull()
    assert packed.facts["separator_id"] == 0
    tensors = packed.tensors("train.safetensors")
    ids, documents = tensors["ids"].flatten(), tensors["document"].flatten()
    ends = (ids == 0).nonzero().squeeze(1)[:-1]
    assert (documents[ends] != documents[ends + 1]).all() and len(ends) > 100
    tokenizer = load_tokenizer(cfg.model, model_info(cfg, store).artifact)
    assert len(tokenizer.decode(ids[:128])) > 300


@pytest.mark.parametrize("hook", HOOKS)
def test_the_shipped_saes_are_as_good_as_their_card_says(outputs: Path, hook: str) -> None:
    layer = hook.split(".")[1]
    cfg = composed([*SLICE, f"layer={layer}", f"runtime.outputs={outputs}"])
    facts = EncodeStage(cfg, Store(outputs), hook).pull().facts
    line = next(line for line in (SAES / "README.md").read_text().splitlines() if line.startswith(f"| {hook} "))
    published = float(line.split("|")[3])
    assert facts["fvu"] == pytest.approx(published, rel=0.15), "the slice's test documents are only some of the card's"
    assert facts["l0"] == pytest.approx(32, abs=0.1)
    sae = read_sae(SAES / hook, "sae.path")
    assert (sae.d_in, sae.d_sae, sae.k) == (576, 2304, 32)


def test_the_shipped_saes_fit_into_the_wheel() -> None:
    files = [path for path in SAES.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25e6
    for hook in HOOKS:
        assert json.loads((SAES / hook / "cfg.json").read_text())["dtype"] == "bfloat16"


def test_the_chain_on_a_slice(saelink: Run, outputs: Path) -> None:
    arguments = ["run", *SLICE, "solver=adam", "solver.tokens=200000", f"runtime.outputs={outputs}"]
    code, out, err = saelink(*arguments, bare=True)
    assert code == 0, err
    assert "best predicted target latents" in out and " = " in out
    code, out, _ = saelink(*arguments, bare=True)
    assert code == 0 and "done in" not in out


def test_effects_of_200_random_edges_are_those_of_one_ablation_at_a_time(outputs: Path) -> None:
    """The whole model (as far as the target hook), one token of one source taken out at a time."""
    cfg = composed([*SLICE, f"runtime.outputs={outputs}"])
    store = Store(outputs)
    found = load_effects(EffectsStage(Job(cfg, store)).pull())
    mean = found.dense()
    info, sides = model_info(cfg, store), pull_sides(cfg, store)
    source_hook, target_hook = HOOKS[:2]
    source_sae, target_sae = read_sae(SAES / source_hook, "sae.path"), read_sae(SAES / target_hook, "sae.path")
    assert target_sae.k is not None
    counted = load_split(cfg, sides, "test").row
    ids = TokensStage(cfg, store).pull().tensors("test.safetensors")["ids"].long()
    bridge = load_bridge(cfg, info, "cpu")
    seen: dict[str, list[torch.Tensor]] = {source_hook: [], target_hook: []}
    with torch.inference_mode():
        for part in ids.split(32):
            _, acts = bridge.run_with_cache(part, names_filter=list(seen), stop_at_layer=2, return_cache_object=False)
            for hook, kept in seen.items():
                kept.append(acts[hook].flatten(0, 1))
    x, y = (torch.cat(seen[hook])[counted] for hook in (source_hook, target_hook))
    latents, pre = source_sae.encode(x), target_sae.pre_acts(y)
    best = pre.topk(target_sae.k + 1).values.clamp(min=0)
    floor = best[:, -2:].mean(1)  # halfway between the k-th and the next, as the stage says

    def read(pre: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
        return torch.where((pre >= floor[:, None]) & (pre > 0), pre, 0.0)

    generator = torch.Generator().manual_seed(0)
    n = (latents > 0).sum(0)
    usable = ((n >= 10) & (n <= cfg.verify.tokens_per_source)).nonzero().squeeze(1)
    sources = usable[torch.randperm(len(usable), generator=generator)[:20]].tolist()
    alive = (found.target_mean > 0).nonzero().squeeze(1)
    worst = 0.0
    for source in sources:
        targets = alive[torch.randperm(len(alive), generator=generator)[:10]]
        at = (latents[:, source] > 0).nonzero().squeeze(1)
        assert len(at) == int(found.tokens[:, source].sum())
        after: list[torch.Tensor] = []
        for token in at.tolist():
            sequence, position = divmod(int(counted[token]), ids.shape[1])
            taken = latents[token, source] * source_sae.W_dec[source]

            def ablate(
                acts: torch.Tensor, at: int = position, taken: torch.Tensor = taken, **_: object
            ) -> torch.Tensor:
                acts = acts.clone()
                acts[0, at] -= taken
                return acts

            def keep(
                acts: torch.Tensor, at: int = position, kept: list[torch.Tensor] = after, **_: object
            ) -> torch.Tensor:
                kept.append(acts[0, at])
                return acts

            with torch.inference_mode():
                text = ids[sequence : sequence + 1, : position + 1]
                bridge.run_with_hooks(text, fwd_hooks=[(source_hook, ablate), (target_hook, keep)], stop_at_layer=2)
        change = read(pre[at], floor[at]) - read(target_sae.pre_acts(torch.stack(after)), floor[at])
        expected = change.mean(0)[targets] / sides.scales[-1]
        off = (mean[source, targets] - expected).abs() / found.target_mean[targets]
        worst = max(worst, off.max().item())
    assert worst < 1e-4, worst


def test_a_layer_without_shipped_saes_trains_them(saelink: Run, outputs: Path) -> None:
    pytest.importorskip("sae_lens")
    sae = ["sae.d_sae=512", "sae.batch_tokens=512", "sae.epochs=2"]
    code, out, err = saelink(
        "train", "layer=5", *SLICE, *sae, "solver=adam", "solver.tokens=100000", f"runtime.outputs={outputs}", bare=True
    )
    assert code == 0, err
    stages = [artifact.stage for artifact in Store(outputs).artifacts()]
    assert stages.count("sae") == 2 and "blocks.5.hook_mlp_out" in out


@pytest.mark.slow
def test_the_first_hour(tmp_path: Path) -> None:
    """Every command of the quickstart in an empty folder; no wait is longer than its bound."""
    from benchmarks.run import late, measured

    assert not late(measured(tmp_path))
