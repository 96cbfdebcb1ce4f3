"""Which ways to draw edges find the effects that ablating sources in the model has: the table in the README.

    python -m benchmarks.edges [layer]     # about 10 minutes on 2 cores; writes benchmarks/edges.json

All on the same test tokens. Every graph claims how much a target loses, on average, where a source is active; see
saelink/verify.py for what is counted. Correlation and random sparse weights are scaled to the exact lasso's claims.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import configured
from saelink.config import register
from saelink.effects import effects, load_effects
from saelink.evaluate import evaluate
from saelink.link import load_split, pull_sides
from saelink.store import Store
from saelink.train import load_connector, train
from saelink.verify import claims, judged

SOURCES = {
    "exact linear, l1_alpha 1e-2": ["l1_alpha=1e-2"],
    "exact linear, 3e-3": ["l1_alpha=3e-3"],
    "exact linear, 8e-4": ["l1_alpha=8e-4"],
    "exact linear, 8e-4, refitted": ["l1_alpha=8e-4", "solver.debias=true"],
    "exact linear, 3e-4": ["l1_alpha=3e-4"],
    "exact linear, 0": ["l1_alpha=0"],
    "linear by Adam, 8e-4, 600 steps": ["solver=adam", "l1_alpha=8e-4", "solver.tokens=614400"],
    "linear, proximal, 8e-4, 600 steps": ["solver=proximal", "l1_alpha=8e-4", "solver.tokens=614400"],
    "nonlinear, proximal, 8e-4, 600 steps": [
        "connector=nonlinear", "solver=proximal", "solver.loss=matching", "l1_alpha=8e-4", "solver.tokens=614400",
    ],
    "mlp (512), proximal, 8e-4, 600 steps": [
        "connector=mlp", "solver=proximal", "l1_alpha=8e-4", "solver.tokens=614400",
    ],
}  # fmt: skip

SHOWN = ("precision_1x", "recall_positive_10x", "recall_suppressive_10x", "sign_1x", "slope_1x", "r2_1x")


def main() -> None:
    register()
    layer = sys.argv[1] if len(sys.argv) > 1 else "1"
    store = Store("outputs")
    base = configured([f"layer={layer}"])
    measured = load_effects(effects(base, store))
    sides = pull_sides(base, store)
    rows: dict[str, Any] = {}
    lasso: torch.Tensor | None = None
    ids = torch.zeros(0)
    for name, overrides in SOURCES.items():
        cfg = configured([f"layer={layer}", *overrides])
        artifact = train(cfg, store)
        fitted = load_connector(artifact)
        test = load_split(cfg, sides, "test", fitted.target_ids)
        claim = claims(fitted, measured, test, cfg.verify.tokens_per_source, "cpu")
        metrics = evaluate(cfg, store).json("metrics.json")
        seconds = artifact.manifest["provenance"]["seconds"]
        rows[name] = {"fvu": metrics["fvu"], "n_edges": metrics["n_edges"], "seconds": seconds}
        rows[name] |= judged(claim, measured, fitted.target_ids, cfg.verify.strong)[0]
        if name == "exact linear, 8e-4":
            lasso, ids = claim, fitted.target_ids
    assert lasso is not None
    test = load_split(base, sides, "train", ids)
    size = lasso[lasso != 0].abs()
    for name, weight in (("correlation", _correlation(test)), ("random, as sparse as 8e-4", _random(lasso))):
        ranks = weight.abs().flatten().sort(descending=True).indices[: len(size)]
        claim = torch.zeros(lasso.numel())
        claim[ranks] = weight.flatten()[ranks].sign() * size.sort(descending=True).values
        rows[name] = judged(claim.view_as(lasso), measured, ids, base.verify.strong)[0]
    path = Path(__file__).with_name("edges.json")
    result = json.loads(path.read_text()) if path.exists() else {}
    result[f"layer {layer}"] = {"tokens": int(measured.tokens.sum()), "rows": rows}
    path.write_text(json.dumps(result, indent=1) + "\n")
    print("| edges of | FVU | edges | " + " | ".join(SHOWN) + " |")
    for name, row in rows.items():
        fvu = f"{row['fvu']:.3f}" if "fvu" in row else ""
        cells = [f"{row[key]:.2f} ({row[f'{key}_low']:.2f}-{row[f'{key}_high']:.2f})" for key in SHOWN]
        print(f"| {name} | {fvu} | {row.get('n_edges', row['edges']):,} | {' | '.join(cells)} |")


def _correlation(tokens: Any) -> torch.Tensor:
    """[d_source, d_target] correlations over the training tokens."""
    from saelink.latents import sparse_transposed

    n, total = len(tokens), torch.zeros(tokens.source.d, tokens.target.d)
    for first in range(0, n, 2048):
        part = tokens.select(torch.arange(first, min(first + 2048, n)))
        total += sparse_transposed(part.source, part.target.dense())
    x, y = tokens.source, tokens.target
    mean = [torch.bincount(side.indices, side.values.double(), minlength=side.d) / n for side in (x, y)]
    square = [torch.bincount(side.indices, side.values.double().square(), minlength=side.d) / n for side in (x, y)]
    spread = [(s - m.square()).clamp(min=1e-12).sqrt() for s, m in zip(square, mean, strict=True)]
    return ((total.double() / n - torch.outer(*mean)) / torch.outer(*spread)).float()


def _random(like: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, generator=generator)


if __name__ == "__main__":
    main()
