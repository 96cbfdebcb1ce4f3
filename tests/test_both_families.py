"""benchmarks/families.py from an empty folder to its tables, on a tiny model in wheels."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from benchmarks import families
from saelink.compose import register

from helpers.gemma import vocabulary, write_gguf, write_packages
from helpers.world import write_text


@pytest.mark.slow
def test_every_table_is_filled_and_nothing_done_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sae_lens")
    whole = write_gguf(tmp_path / "tiny.gguf")
    parts = write_packages(tmp_path / "site", whole)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(families, "RESULT", tmp_path / "families.json")
    register()
    sizes = f"{{of: tiny_gguf, n_layers: 6, vocabulary: {len(vocabulary())}}}"
    chosen = [
        "model.name=tiny", "model.path=tiny_gguf", "model.file=tiny.gguf", f"model.parts=[{','.join(parts)}]",
        f"model.sha256={hashlib.sha256(whole.read_bytes()).hexdigest()}", f"model.dimensions={sizes}",
        "data=files", f"data.path={write_text(tmp_path / 'text.jsonl')}", "data.context_size=16",
        f"runtime.outputs={tmp_path}/outputs", "runtime.forward_tokens=512", "sae.d_sae=48", "sae.k=4", "sae.epochs=2",
        "sae.batch_tokens=256", "eval.ce_tokens=256", "eval.bootstrap=20", "experiment.d_hidden=12",
        "experiment.tokens=4096", "experiment.percent_linear.bootstrap=20", "normalise_layers=[0,1]",
        "verify.tokens_per_source=16", "wandb.mode=disabled",
    ]  # fmt: skip
    families.run("gemma3-270m", chosen)
    result = json.loads(families.RESULT.read_text())
    entry = result["gemma3-270m"]
    assert list(entry["layers"]) == ["0", "1", "3", "5"] and len(entry["suite"]) == 8
    for found in entry["layers"].values():
        assert set(found["percent linear"]) == {"post", "energy", "variance"}
        assert list(found["edges"]) == list(families.EDGES) and list(found["frontier"]) == list(families.ALPHAS)
    tables = families.tables(result)
    assert tables.count("| gemma3-270m |") == 8 + 4 + 4 + 4 * len(families.EDGES)
    columns = 0
    for line in tables.splitlines():
        if line.startswith("|---"):
            columns = line.count("|---")
        if line.startswith("| gemma"):
            assert line.count(" | ") == columns - 1, line
    before = families.RESULT.read_bytes()
    families.run("gemma3-270m", chosen)
    assert families.RESULT.read_bytes() == before
