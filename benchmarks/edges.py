"""Which ways to draw edges find the effects that ablating sources in the model has: the table in docs/results/edges.md.

    python -m benchmarks.edges [layer]     # about 25 minutes on 2 cores; writes benchmarks/edges.json

All on the same test tokens. Every graph claims how much a target loses, on average, where a source is active; see
saelink/verify.py for what is counted. Graphs that are no connectors (correlation, ridge, gradients, random weights)
keep as many edges as the exact lasso at 8e-4 has; correlations and random weights are scaled to the lasso's claims.
Gradients are taken on training documents, of the target's pre-activation; gated: only where the target is active.
Seconds are those of the fit alone: what it is fitted to (products, effects) is made once for all and listed by itself.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import configured
from saelink.compose import register
from saelink.evidence.claims import Claims, claims
from saelink.evidence.evaluate import EvaluateStage
from saelink.evidence.verdicts import judged
from saelink.fit.products.dense import GramStage, load_gram
from saelink.fit.train import TrainStage, fitted_connector
from saelink.interventions.block import encoded_with_floor, open_block
from saelink.interventions.effects import EffectsStage, load_effects
from saelink.interventions.measure import choose_ablations
from saelink.job import Job
from saelink.latents.link import load_split, pull_sides
from saelink.model.block import Chain
from saelink.progress import Observer
from saelink.store.store import Store

SHORT = "solver.tokens=614400"
"""600 steps."""

MATCHING = ["connector=nonlinear", "connector.bias=true", "solver=proximal", "solver.loss=matching", "solver.lr=2e-3"]
CAUSAL = ["connector=nonlinear", "connector.bias=true", "solver=causal"]

SOURCES = {
    "exact linear, l1_alpha 1e-2": ["l1_alpha=1e-2"],
    "exact linear, 3e-3": ["l1_alpha=3e-3"],
    "exact linear, 8e-4": ["l1_alpha=8e-4"],
    "exact linear, 8e-4, refitted": ["l1_alpha=8e-4", "solver.debias=true"],
    "exact linear, 3e-4": ["l1_alpha=3e-4"],
    "exact linear, 0 (least squares)": ["l1_alpha=0"],
    "linear by Adam, 8e-4": ["solver=adam", "l1_alpha=8e-4", SHORT],
    "linear, proximal, 8e-4": ["solver=proximal", "l1_alpha=8e-4", SHORT],
    "nonlinear, proximal, 8e-4": ["connector=nonlinear", "solver=proximal", "solver.loss=matching", SHORT],
    "nonlinear, started at exact 8e-4, proximal, 1.2e-3": [*MATCHING, "l1_alpha=1.2e-3", "start=8e-4", SHORT],
    "mlp (512), proximal, 8e-4": ["connector=mlp", "solver=proximal", "l1_alpha=8e-4", SHORT],
    "sae (512), proximal, 1e-4": ["connector=sae", "solver=proximal", "l1_alpha=1e-4", SHORT],
    "causal linear, effects .3, 1e-3": ["solver=causal", "solver.effects=.3", "l1_alpha=1e-3"],
    "causal linear, effects 2, 2e-3": ["solver=causal", "l1_alpha=2e-3"],
    "causal linear, effects 10, 6.5e-3": ["solver=causal", "solver.effects=10", "l1_alpha=6.5e-3"],
    "causal nonlinear, effects 2, 2e-3": [*CAUSAL, "l1_alpha=2e-3"],
    "causal nonlinear, effects 5, 3.5e-3": [*CAUSAL, "solver.effects=5", "l1_alpha=3.5e-3"],
    "causal nonlinear, effects 10, 6.5e-3": [*CAUSAL, "solver.effects=10", "l1_alpha=6.5e-3"],
}

SHOWN = ("precision_1x", "recall_positive_10x", "recall_suppressive_10x", "sign_1x", "slope_1x", "r2_1x")


def main() -> None:
    register()
    layer = sys.argv[1] if len(sys.argv) > 1 else "1"
    store = Store("outputs")
    base = configured([f"layer={layer}"])
    measured = load_effects(EffectsStage(Job(base, store)).pull())
    sides = pull_sides(base, store)
    made = {"products": GramStage(Job(base, store)).pull(), "effects, test": EffectsStage(Job(base, store)).pull()}
    made["effects, train"] = EffectsStage(Job(base, store), "train").pull()
    rows: dict[str, Any] = {}
    lasso: torch.Tensor | None = None
    ids = torch.zeros(0)
    for name, overrides in SOURCES.items():
        cfg = _with_start(layer, overrides, store)
        artifact = TrainStage(Job(cfg, store)).pull()
        fitted = fitted_connector(artifact)
        test = load_split(cfg, sides, "test", fitted.target_ids)
        claim = claims(fitted, measured, test, cfg.verify.tokens_per_source, "cpu", Observer())
        metrics = EvaluateStage(Job(cfg, store)).pull().json("metrics.json")
        rows[name] = {key: metrics[key] for key in ("fvu", "n_edges", "ce_loss_recovered")}
        rows[name]["seconds"] = artifact.manifest["provenance"]["seconds"]
        rows[name] |= judged(claim, measured, fitted.target_ids, cfg.verify.strong)[0]
        if name == "exact linear, 8e-4":
            lasso, ids = torch.zeros(sides.d_source, len(fitted.target_ids)), fitted.target_ids
            lasso[claim.source, claim.column] = claim.value
        print(name, _cells(rows[name]), flush=True)
    assert lasso is not None
    tokens = load_split(base, sides, "train", ids)
    size = lasso[lasso != 0].abs().sort(descending=True).values
    started = time.monotonic()
    products = load_gram(GramStage(Job(base, store)).pull()).explain(ids)
    more = {"ridge": _ridge(products) * measured.source_mean[:, None]}
    seconds = {"ridge": time.monotonic() - started}
    for name, (claim, took) in _gradients(base, store, sides, measured, ids).items():
        more[name], seconds[name] = claim, took
    for name, claim in more.items():
        kept = claim.abs().flatten().sort(descending=True).indices[: len(size)]
        sparse = torch.zeros(claim.numel())
        sparse[kept] = claim.flatten()[kept]
        rows[name] = {"seconds": seconds[name]} | _judged(sparse.view_as(claim), measured, ids, base)
    for name, weight in (("correlation", _correlation(tokens)), ("random", _random(lasso))):
        kept = weight.abs().flatten().sort(descending=True).indices[: len(size)]
        claim = torch.zeros(lasso.numel())
        claim[kept] = weight.flatten()[kept].sign() * size
        rows[name] = _judged(claim.view_as(lasso), measured, ids, base)
    path = Path(__file__).with_name("edges.json")
    result = json.loads(path.read_text()) if path.exists() else {}
    result[f"layer {layer}"] = {
        "ablations": int(measured.tokens.sum()),
        "seconds": {name: artifact.manifest["provenance"]["seconds"] for name, artifact in made.items()},
        "rows": rows,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
    print("| edges of | FVU | CE recovered | edges | seconds | " + " | ".join(SHOWN) + " |")
    for name, row in rows.items():
        print(f"| {name} | {_cells(row)} |")


def _judged(claim: torch.Tensor, measured: Any, ids: torch.Tensor, cfg: Any) -> dict[str, Any]:
    return judged(Claims.of_dense(claim), measured, ids, cfg.verify.strong)[0]


def _with_start(layer: str, overrides: list[str], store: Store) -> Any:
    """The job; `start=ALPHA` makes it begin at the exact linear connector of that penalty."""
    words = [f"layer={layer}", "eval.ce=true", "eval.ce_tokens=4096", *overrides]
    start = next((word.removeprefix("start=") for word in words if word.startswith("start=")), None)
    if start is None:
        return configured(words)
    bias = [word for word in words if word.startswith("connector.bias")]
    key = TrainStage(Job(configured([f"layer={layer}", *bias, f"l1_alpha={start}"]), store)).pull().key
    return configured([*(word for word in words if not word.startswith("start=")), f"connector.init={key}"])


def _cells(row: dict[str, Any]) -> str:
    shown = [f"{row[key]:.3f}" if key in row else "" for key in ("fvu", "ce_loss_recovered")]
    shown.append(f"{row.get('n_edges', row['edges']):,}")
    shown.append(f"{row['seconds']:.0f}" if "seconds" in row else "")
    shown += [f"{row[key]:.2f} ({row[f'{key}_low']:.2f}-{row[f'{key}_high']:.2f})" for key in SHOWN]
    return " | ".join(shown)


def _ridge(products: Any) -> torch.Tensor:
    """[d_source, d_target] least squares with a hundredth of the mean square of a source beside it."""
    xx = products.xx + torch.eye(len(products.xx)) * products.xx.diagonal().mean() * 0.01
    return torch.linalg.solve(xx, products.xy).float()


def _gradients(
    cfg: Any, store: Store, sides: Any, measured: Any, ids: torch.Tensor
) -> dict[str, tuple[torch.Tensor, float]]:
    """Claims [d_source, d_target] and seconds of the mean Jacobian, and of gradient times activation."""
    block = open_block(Job(cfg, store), "train")
    assert isinstance(block.computation, Chain)
    compute, x, (source_sae,) = block.computation.module, block.x[0], block.source_saes
    found: dict[str, tuple[torch.Tensor, float]] = {}
    scale = sides.scales[-1]
    with torch.no_grad():
        started = time.monotonic()
        spread = torch.linspace(0, len(x) - 1, 1000).long()
        jacobian = torch.func.vmap(torch.func.jacrev(compute), chunk_size=50)(x[spread]).mean(0)
        through = source_sae.W_dec @ jacobian.T @ block.target_sae.W_enc  # of a raw source on a raw target
        claim = through[:, ids] * measured.source_mean[:, None] * sides.scales[0] / scale
        found["mean Jacobian, 1,000 tokens"] = claim, time.monotonic() - started
        started = time.monotonic()
        active = block.active()
        chosen = choose_ablations(active.transposed(), block.fold, 64)
        gated, ungated = (torch.zeros(active.d, block.target_sae.d_sae) for _ in range(2))
        target_rows, _ = encoded_with_floor(block.target_sae, block.computation.outputs())
        for first in range(0, len(chosen.token), 2048):
            part = slice(first, first + 2048)
            token, source = chosen.token[part], chosen.source[part]
            tangent = source_sae.W_dec[source] * chosen.value[part, None]
            change = torch.func.jvp(compute, (x[token],), (tangent,))[1] @ block.target_sae.W_enc
            ungated.index_add_(0, source, change)
            gated.index_add_(0, source, change * (target_rows.select(token).dense() > 0))
        n = torch.bincount(chosen.source, minlength=active.d).clamp(min=1)[:, None] * scale
        took = time.monotonic() - started
    found["gradient x activation, 64 tokens a source"] = (ungated / n)[:, ids], took
    found["gradient x activation, gated"] = (gated / n)[:, ids], took
    return found


def _correlation(tokens: Any) -> torch.Tensor:
    """[d_source, d_target] correlations over the training tokens."""
    from saelink.latents.rows import sparse_transposed

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
