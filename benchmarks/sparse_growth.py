"""How the time of a certified lasso grows with the number of sources, at the same number of edges a target.

    python -m benchmarks.sparse_growth    # a minute or two, one thread

Each of 256 planted targets is the sum of five sources, read off where it is largest, as an SAE's latent would be. 32 of
the sources are active on a token, whatever their number; the tokens grow with it, so that each source fires as often.
Time is the process's own (CPU) time for a target, the median of three runs. Writes benchmarks/sparse_growth.json.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from saelink.fit.lasso.sparse import SparseLasso
from saelink.fit.products.sparse import sparse_gram_of
from saelink.latents.rows import Rows
from saelink.latents.split import Tokens

RESULT = Path(__file__).with_name("sparse_growth.json")

WIDTHS = (4096, 8192, 16_384, 32_768, 65_536, 131_072)

TARGETS, EDGES, ACTIVE, FIRINGS = 256, 5, 32, 60

TOLERANCE = 1e-4


def planted(d_source: int) -> Tokens:
    """Tokens on which every source fires about FIRINGS times, and the planted targets."""
    generator = torch.Generator().manual_seed(0)
    n = d_source * FIRINGS // ACTIVE
    pairs = torch.arange(n)[:, None] * d_source + torch.randint(d_source, (n, ACTIVE), generator=generator)
    pairs = pairs.unique()
    source = Rows.from_pairs(
        pairs // d_source, pairs % d_source, 0.5 + torch.rand(len(pairs), generator=generator), n=n, d=d_source
    )
    parts = torch.stack([torch.randperm(d_source, generator=generator)[:EDGES] for _ in range(TARGETS)])
    rows, ids, values = [], [], []
    by_source = source.transposed()
    for target, mine in enumerate(parts):
        fired = by_source.select(mine)
        token, place = fired.indices.unique(return_inverse=True)
        total = torch.zeros(len(token)).index_add_(0, place, fired.values)
        total += 0.1 * torch.rand(len(token), generator=generator)
        rows.append(token)
        ids.append(torch.full_like(token, target))
        values.append(total)
    row, target_ids, value = torch.cat(rows), torch.cat(ids), torch.cat(values)
    order = (row * TARGETS + target_ids).argsort()
    target = Rows.from_pairs(row[order], target_ids[order], value[order], n=n, d=TARGETS)
    return Tokens(source, target, torch.arange(n), torch.ones(n, dtype=torch.bool))


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {}
    for width in WIDTHS:
        started = time.process_time()
        products = sparse_gram_of([planted(width)])
        made = time.process_time() - started
        lasso = SparseLasso(products)
        lam = 0.05 * products.yx.values.max().item()
        solution = lasso.solve(lam, TOLERANCE, 20_000)  # compiles
        seconds = []
        for _ in range(3):
            started = time.process_time()
            solution = lasso.solve(lam, TOLERANCE, 20_000)
            seconds.append(time.process_time() - started)
        assert bool((solution.gaps <= TOLERANCE * lasso.yy / 2 * (1 + 1e-6)).all())
        found[f"{width:,} sources"] = {
            "edges a target": round(len(solution.source) / TARGETS, 2),
            "sources a target meets": round(len(products.yx.indices) / TARGETS),
            "ms a target": round(1e3 * statistics.median(seconds) / TARGETS, 3),
            "products and text, s": round(made, 1),
        }
        print(width, found[f"{width:,} sources"], flush=True)
    times = [entry["ms a target"] for entry in found.values()]
    slope = float(np.polyfit(np.log(WIDTHS), np.log(times), 1)[0])
    RESULT.write_text(json.dumps({**found, "slope of log time against log sources": round(slope, 3)}, indent=1) + "\n")
    print(f"slope {slope:.3f}")


if __name__ == "__main__":
    main()
