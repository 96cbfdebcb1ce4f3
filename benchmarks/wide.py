"""Wide dictionaries: `saelink train`, `evaluate`, `verify` between random TopK-32 SAEs, with the kernel's peak memory.

    python -m benchmarks.wide [width] [folder]    # 32,768 latents and a temporary folder unless given; about an hour

`verify` ablates each source on 64 tokens and measures the nulls on a tenth of the sources, first without stability,
then with it, on the sample of targets that is the default at this width.

Writes benchmarks/wide.json, an entry for each width. Random SAEs meet more pairs of latents than trained ones and
explain less, so the time of products and fit is what is measured here, not the quality of anything.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RESULT = Path(__file__).with_name("wide.json")

D_MODEL, K = 576, 32

HOOKS = ("blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out")


def write_saes(folder: Path, width: int) -> None:
    """An SAE of random directions for each hook, in sae-lens' format."""
    for seed, hook in enumerate(HOOKS):
        directions = torch.randn(D_MODEL, width, generator=torch.Generator().manual_seed(seed)) / D_MODEL**0.5
        unit = (directions / directions.norm(dim=0)).T.contiguous()
        (folder / hook).mkdir(parents=True)
        biases = {"b_enc": torch.zeros(width), "b_dec": torch.zeros(D_MODEL)}
        save_file({"W_enc": directions, "W_dec": unit, **biases}, folder / hook / "sae_weights.safetensors")
        config = {"architecture": "topk", "d_in": D_MODEL, "d_sae": width, "k": K, "dtype": "float32"}
        config |= {"apply_b_dec_to_input": True, "normalize_activations": "none", "metadata": {"hook_name": hook}}
        (folder / hook / "cfg.json").write_text(json.dumps(config))


def measured(command: str, settings: list[str], folder: Path) -> dict[str, Any]:
    """Seconds and peak memory of a command, and what it says of its stages."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "saelink", command, *settings], cwd=folder, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, out
    stages = {stage: int(seconds) for stage, seconds in re.findall(r"^(\w+) \w+: done in (\d+) s", out, re.MULTILINE)}
    seconds = round(time.perf_counter() - started, 1)
    return {"seconds": seconds, "peak memory, GB": round(usage.ru_maxrss / 1e6, 2), "stages, seconds": stages}


def main() -> None:
    width = int(sys.argv[1]) if len(sys.argv) > 1 else 32_768
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[2] if len(sys.argv) > 2 else temporary).resolve()
        saes = folder / f"saes-{width}"
        if not saes.exists():
            write_saes(saes, width)
        settings = ["data.max_tokens=null", "sae=folder", f"sae.path={saes}", "sae.check=false", "wandb.mode=disabled"]
        encoded = measured("encode", settings, folder)
        fitted = measured("train", settings, folder)
        evaluated = measured("evaluate", settings, folder)
        words = ["verify.tokens_per_source=64", f"verify.null_sources={width // 10}"]
        verified = measured("verify", [*settings, *words, "verify.stability=false"], folder)
        repeated = measured("verify", [*settings, *words], folder)
        train, evaluation = (
            json.loads(next((folder / "outputs" / stage).glob("*/manifest.json")).read_text())["facts"]
            for stage in ("train", "evaluate")
        )
        stable, effects = (
            [json.loads(path.read_text())["facts"] for path in (folder / "outputs" / stage).glob("*/manifest.json")]
            for stage in ("stability", "effects")
        )
        products = json.loads(next((folder / "outputs" / "products").glob("*/manifest.json")).read_text())["facts"]
    figures = ("n_tokens", "validation_fvu", "n_edges", "relative_gap", "worst_gap", "l1")
    entry: dict[str, Any] = {
        "encode": encoded,
        "train": fitted,
        "evaluate": evaluated,
        "verify, no stability": verified,
        "stability": repeated | {"facts": stable[0]},
        "effects": effects,
        "fit": {name: train[name] for name in figures} | {"test_fvu": evaluation["fvu"]},
        "share of all pairs of latents that meet": round(products["pairs"] / (2 * width**2), 4),
        "cores": os.cpu_count(),
    }
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    RESULT.write_text(json.dumps({**found, f"{width:,} latents": entry}, indent=1) + "\n")
    print(json.dumps(entry, indent=1))


if __name__ == "__main__":
    main()
