"""What `saelink verify` takes between wide random TopK-32 SAEs, from some of its sources.

    python -m benchmarks.wide_effects [width] [sources] [tokens]    # 32,768 latents, 1,024 sources, 65,536 tokens

The activations are the store's (outputs/ here, filled by `saelink cache`), the first training tokens. Sources are
spread evenly; up to 64 tokens of each are ablated in the model, through permuted decoders and through random weights.
Adds an entry to benchmarks/wide_effects.json: processor seconds, and by them those of all sources on 65,536 tokens,
nulls on a tenth of them.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import configured
from benchmarks.wide import HOOKS, write_saes
from saelink.activations.cache import CacheStage, act_shards
from saelink.compose import register
from saelink.interventions.block import FOLDS, Block
from saelink.interventions.effects import null_sources
from saelink.interventions.measure import Measurement, effects_of_sources, open_measurement
from saelink.job import Job
from saelink.model.block import Chain, load_module
from saelink.saes.formats import read_sae
from saelink.store.store import Store

RESULT = Path(__file__).with_name("wide_effects.json")

TOKENS, PER_SOURCE = 65_536, 64


def opened(width: int, folder: Path, tokens: int) -> Block:
    """The MLP of the default layer between two random SAEs."""
    write_saes(folder, width)
    job = Job(configured([]), Store("outputs"))
    parts: list[torch.Tensor] = []
    for _, acts in act_shards(CacheStage(job.cfg, job.store, HOOKS[0]).pull(), ["train"]):
        parts.append(acts[:, 1:].flatten(0, 1).float())
        if sum(map(len, parts)) >= tokens:
            break
    x = torch.cat(parts)[:tokens]
    saes = [read_sae(folder / hook, "sae.path") for hook in HOOKS]
    module = load_module(job.cfg, job.model, HOOKS[0], HOOKS[1], "cpu").float()
    return Block(Chain(module, x), saes[:1], saes[1], [x], torch.arange(len(x)) // 128 % FOLDS)


def timed(given: Measurement, sources: int) -> dict[str, Any]:
    """Processor seconds of some sources, evenly spread."""
    d_source = len(given.active)
    some = torch.arange(0, d_source, max(d_source // sources, 1))[:sources]
    started = time.process_time()
    part = effects_of_sources(given._replace(sources=some), 0, len(some))
    seconds = time.process_time() - started
    ablations = int(part.tokens.sum())
    return {
        "sources": len(some),
        "ablations": ablations,
        "seconds": round(seconds, 1),
        "pairs": len(part.pairs.target),
        "bytes": sum(tensor.nbytes for tensor in part.pairs),
        "milliseconds an ablation": round(1000 * seconds / max(ablations, 1), 3),
    }


def main() -> None:
    register()
    width = int(sys.argv[1]) if len(sys.argv) > 1 else 32_768
    sources = int(sys.argv[2]) if len(sys.argv) > 2 else 1024
    tokens = int(sys.argv[3]) if len(sys.argv) > 3 else TOKENS
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        block = opened(width, Path(temporary), tokens)
        started = time.process_time()
        given = open_measurement(block, PER_SOURCE)
        opening = time.process_time() - started
        times = TOKENS / tokens
        active = given.active.offsets.diff().double() * times
        all_ablations = int(active.clamp(max=PER_SOURCE).sum())
        timed(given, 16)  # compiles
        model = timed(given, sources)
        order = torch.randperm(width, generator=torch.Generator().manual_seed(0))
        permuted = timed(given._replace(directions=block.directions()[order]), sources)
        block.computation.permute()
        started = time.process_time()
        again = open_measurement(block, PER_SOURCE)
        opening_null = time.process_time() - started
        random = timed(again, sources)
    share = all_ablations / max(model["ablations"], 1)
    tenth = len(null_sources(configured([]), width)) / width
    seconds = [
        opening * times + model["seconds"] * share,
        opening * times + permuted["seconds"] * share * tenth,
        opening_null * times + random["seconds"] * share * tenth,
    ]
    entry = {
        "tokens": tokens,
        "tokens of a source": PER_SOURCE,
        "ablations of all sources on 65,536 tokens, about": all_ablations,
        "opening, processor seconds": round(opening, 1),
        "in the model": model,
        "permuted decoders": permuted,
        "random weights": random,
        "all sources on 65,536 tokens, nulls on a tenth, processor minutes": [round(each / 60, 1) for each in seconds],
        "effects of all sources, GB": round(model["bytes"] * share / 1e9, 2),
        "peak memory of this, GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "threads": torch.get_num_threads(),
    }
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    RESULT.write_text(json.dumps({**found, f"{width:,} latents": entry}, indent=1) + "\n")
    print(json.dumps(entry, indent=1))


if __name__ == "__main__":
    main()
