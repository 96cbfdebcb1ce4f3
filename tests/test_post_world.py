"""What benchmarks/post.py serves: the original's shapes and formats, and a hub that the real clients can read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import post, post_world
from saelink.experiments.post import ORIGINAL
from saelink.saes.formats import read_sae


def test_each_latent_fires_at_its_rate() -> None:
    acts = torch.randn(4096, post_world.D_MODEL, generator=torch.Generator().manual_seed(0)) * 3 + 1
    encoder, bias = post_world.dictionary(acts, 0)
    assert torch.allclose(encoder.norm(dim=1), torch.ones(post_world.D_SAE), atol=1e-5)
    fires = ((acts @ encoder.T + bias) > 0).float().mean(0)
    assert torch.allclose(fires, post_world.rates(), atol=2 / len(acts))
    assert 8 <= fires.sum() <= 20 and int((fires > 0).sum()) == post_world.ALIVE


def test_files_are_the_originals_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acts = {f"Pythia-70M-deduped-{kind}1.pt": torch.randn(4096, post_world.D_MODEL) for kind in ("", "mlp-")}
    monkeypatch.setattr(post_world, "activations", lambda model: acts)
    folder = post_world.write_saes(tmp_path / "saes", tmp_path)
    for file, x in acts.items():
        sae = read_sae(folder / file, "sae.path")
        assert (sae.d_in, sae.d_sae) == (512, 3072)
        assert 8 <= (sae.encode(x[:512]) > 0).sum(1).float().mean() <= 20


def test_the_clients_read_the_hub(tmp_path: Path) -> None:
    texts = tmp_path / "text"
    texts.mkdir()
    (texts / "train.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    script = (
        "import datasets, huggingface_hub as h, json; "
        f"c = h.HfApi().dataset_info({post_world.TEXT!r}, revision='refs/convert/parquet').sha; "
        f"t = datasets.load_dataset({post_world.TEXT!r}, split='train', revision=c)['text'][:]; "
        f"print(json.dumps([c, t, open(h.hf_hub_download({post_world.MODEL!r}, 'config.json')).read()]))"
    )
    with post_world.served({post_world.TEXT: texts, post_world.MODEL: tmp_path / "model"}, tmp_path / "hf") as hub:
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | hub, timeout=120
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [post_world.COMMIT, ["one", "two"], "{}"]


def test_a_line_without_a_figure_is_found() -> None:
    whole = {layer: {figure: {"ours": 1.0} for figure in ORIGINAL} for layer in post.LAYERS}
    assert post.empty_lines(whole) == []
    del whole[3]["sparse mlp, L1"]
    whole[5]["CE, SAE"]["ours"] = float("nan")
    assert post.empty_lines(whole) == ["layer 3: sparse mlp, L1", "layer 5: CE, SAE"]


def test_the_size_is_the_originals() -> None:
    assert "solver.tokens=3074048" in post.overrides(1.0) and "data.max_tokens=4200000" in post.overrides(1.0)
    settings = (Path(post.__file__).parent.parent / "conf/experiment/post.yaml").read_text()
    assert "tokens: 3074048" in settings and "batch_tokens: 1024" in settings
    config = post_world.config()
    assert (config.vocab_size, config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (
        50304,
        6,
        512,
        8,
    )
    assert config.use_parallel_residual and config.rope_parameters["partial_rotary_factor"] == 0.25
