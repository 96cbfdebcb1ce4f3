"""Which ways to draw edges find the circuit of a program that tracr compiled: the table in docs/results/evidence.md.

    python -m benchmarks.compiled [PROGRAM ...]     # some minutes on 2 cores; writes benchmarks/compiled.json

Needs the extra `tracr`. Every MLP of every program is one case: the edges of its compiled circuit are known
(compiled_world.circuit), and saelink reads model, text and SAEs from files like any others. What is counted are all
pairs of a source that was ablated on enough test tokens and a target that is ever active there. A pair's score is the
size of the claim as a share of the target's mean active value; an edge is drawn from verdicts.FAINT_CLAIM on. Means and
intervals are over programs, by resampling them.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.compiled_world import Circuit, CompiledWorld, compiled_world, programs
from benchmarks.edges import _correlation as correlation
from benchmarks.edges import _gradients as gradients
from benchmarks.edges import _ridge as ridge
from benchmarks.figures import configured
from saelink.compose import register
from saelink.evidence.claims import Claims, claims
from saelink.evidence.rank_agreement import auroc, levels
from saelink.evidence.verdicts import FAINT_CLAIM, MIN_ABLATED, VERDICTS, judged
from saelink.fit.products.dense import GramStage, load_gram
from saelink.fit.train import TrainStage, fitted_connector
from saelink.interventions.block import Block, open_block
from saelink.interventions.effects import EffectsStage, load_effects
from saelink.interventions.pairs import Effects
from saelink.job import Job
from saelink.latents.link import load_split
from saelink.progress import Observer
from saelink.store.store import Store

FILE = Path(__file__).with_name("compiled.json")

FITS = {
    "exact linear, l1_alpha 8e-4": [],
    "exact linear, 1e-2": ["l1_alpha=1e-2"],
    "exact linear, 0 (least squares)": ["l1_alpha=0"],
    "causal linear, effects 2, 2e-3": ["solver=causal", "l1_alpha=2e-3"],
}

EFFECTS = {
    "effects, zero ablation": [],
    "effects, activation patching": ["verify.ablation=resample"],
    "effects, zero ablation, every token": ["verify.tokens_per_source=1000000"],
    "effects, activation patching, every token": ["verify.tokens_per_source=1000000", "verify.ablation=resample"],
}
"""Measured alone, without a connector; patching puts the source's value on another token in its place."""

DUST = 1e-5
"""Scores below this are rounding, and count as 0."""

VERIFIED = "exact linear, l1_alpha 8e-4"
"""Whose verdicts are compared with the circuit."""

SHARES = ("auroc", "precision", "recall")

RESAMPLES = 1000


def main() -> None:
    register()
    known = programs()
    result = json.loads(FILE.read_text()) if FILE.exists() else {"programs": {}}
    for name in sys.argv[1:] or known:
        with tempfile.TemporaryDirectory() as folder:
            world = compiled_world(known[name], Path(folder))
            result["programs"][name] = cases_of(world, Path(folder) / "outputs")
        result["summary"] = summary(result["programs"])
        FILE.write_text(json.dumps(result, indent=1) + "\n")
        print(name, json.dumps(result["programs"][name]), flush=True)
    for name, row in result["summary"].items():
        print(name, json.dumps(row))


def cases_of(world: CompiledWorld, outputs: Path) -> dict[str, Any]:
    """What is found of each MLP of a program, by layer."""
    store = Store(outputs)
    return {f"layer {layer}": case(world, layer, circuit, store) for layer, circuit in world.circuits.items()}


def case(world: CompiledWorld, layer: int, circuit: Circuit, store: Store) -> dict[str, Any]:
    """By way to draw edges how they agree with one MLP's circuit."""
    words = [*world.overrides, f"layer={layer}"]
    job = Job(configured(words), store)
    measured = load_effects(EffectsStage(job).pull())
    fits = {name: Job(configured([*words, *more]), store) for name, more in FITS.items()}
    fitted = {name: fitted_connector(TrainStage(fit).pull()) for name, fit in fits.items()}
    ids = fitted[VERIFIED].target_ids
    claimed: dict[str, torch.Tensor] = {}
    test = load_split(job.cfg, job.sides, "test", ids)
    verdicts: dict[str, Any] = {}
    for name, connector in fitted.items():
        assert torch.equal(connector.target_ids, ids)
        found = claims(connector, measured, test, job.cfg.verify.tokens_per_source, "cpu", Observer())
        claimed[name] = dense(found, measured.d_source, len(ids))
        if name == VERIFIED:
            verdicts = agreement(found, measured, ids, circuit)
    claimed |= others(job, measured, ids)
    for name, more in EFFECTS.items():
        claimed[name] = load_effects(EffectsStage(Job(configured([*words, *more]), store)).pull()).dense()[:, ids]
    alive = measured.target_mean[ids] > 0
    counted = measured.tokens.sum(0) >= MIN_ABLATED
    unit = measured.target_mean[ids[alive]]
    true, moved = (each[counted][:, ids[alive]] for each in circuit)
    rows = {name: scored(claim[counted][:, alive] / unit, true) for name, claim in claimed.items()}
    return {
        "sources": int(counted.sum()), "targets": int(alive.sum()), "edges": int(true.sum()),
        "edges that move their target": int((true & moved).sum()), "moved without an edge": int((moved & ~true).sum()),
        "verdicts": verdicts, "rows": rows,
    }  # fmt: skip


def dense(found: Claims, d_source: int, width: int) -> torch.Tensor:
    """[d_source, width] claims."""
    out = torch.zeros(d_source, width)
    out[found.source, found.column] = found.value
    return out


def others(job: Job, measured: Effects, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Claims [d_source, targets] of ways that are no connectors."""
    tokens = load_split(job.cfg, job.sides, "train", ids)
    mean = measured.source_mean[:, None]
    found = {"ridge": ridge(load_gram(GramStage(job).pull()).explain(ids)) * mean}
    found["correlation"] = correlation(tokens).float().nan_to_num()
    found["weights, the ReLU left out"] = through_weights(open_block(job, "test"))[:, ids] * mean
    by_gradient = gradients(job.cfg, job.store, job.sides, measured, ids)
    return found | {name: claim for name, (claim, _) in by_gradient.items()}


def through_weights(block: Block) -> torch.Tensor:
    """[d_source, d_target] what an active source adds to a target if every hidden unit passes on what it reads."""
    mlps: list[Any] = [module for module in block.computation.module.modules() if hasattr(module, "c_fc")]
    (mlp,) = mlps
    (source,) = block.source_saes
    return source.W_dec @ mlp.c_fc.weight @ mlp.c_proj.weight @ block.target_sae.W_enc


def scored(score: torch.Tensor, true: torch.Tensor) -> dict[str, float | None]:
    """AUROC of scores [sources, targets], and precision and recall of those that are not faint."""
    size = torch.where(score.abs() < DUST, 0.0, score.abs())
    drawn, size = size >= FAINT_CLAIM, size.flatten()
    n = int(levels(size).max()) + 1 if len(size) else 1
    counts = [torch.bincount(levels(size[some]), minlength=n) for some in (true.flatten(), slice(None))]
    area = auroc(counts[0].double(), counts[1].double()).item()
    hits = int((drawn & true).sum())
    return {
        "auroc": None if math.isnan(area) else area,
        "precision": hits / int(drawn.sum()) if drawn.any() else None,
        "recall": hits / int(true.sum()) if true.any() else None,
        "drawn": int(drawn.sum()), "hits": hits,
    }  # fmt: skip


def agreement(found: Claims, measured: Effects, ids: torch.Tensor, circuit: Circuit) -> dict[str, dict[str, int]]:
    """How many of the connector's edges get each verdict, those of the circuit and the others."""
    tensors = judged(found, measured, ids, 0.1)[1]
    real = circuit.edges[tensors["source"].long(), tensors["target"].long()]
    counts = {}
    for name, some in (("in the circuit", real), ("not in the circuit", ~real)):
        by_verdict = torch.bincount(tensors["verdict"][some].long(), minlength=len(VERDICTS))
        counts[name] = dict(zip(VERDICTS, by_verdict.tolist(), strict=True))
    return counts


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Over all programs: by way the mean AUROC of their MLPs, precision and recall of all edges, with intervals."""
    names = list(dict.fromkeys(name for program in found.values() for one in program.values() for name in one["rows"]))
    draws = torch.randint(len(found), (RESAMPLES, len(found)), generator=torch.Generator().manual_seed(0))
    weights = torch.stack([torch.bincount(row, minlength=len(found)) for row in draws]).double()
    return {name: _summed(name, found, weights) for name in names}


def _summed(name: str, found: dict[str, Any], weights: torch.Tensor) -> dict[str, list[float] | float | None]:
    per_program = []
    for program in found.values():
        rows = [(one["rows"][name], one["edges"]) for one in program.values()]
        areas = [row["auroc"] for row, _ in rows if row["auroc"] is not None]
        totals = [sum(row[key] for row, _ in rows) for key in ("hits", "drawn")]
        per_program.append([sum(areas), len(areas), *totals, sum(edges for _, edges in rows)])
    table = torch.tensor(per_program, dtype=torch.float64)

    def shares(weight: torch.Tensor) -> torch.Tensor:
        area, cases, hits, drawn, edges = (weight @ table).unbind(-1)
        return torch.stack([area / cases, hits / drawn, hits / edges])

    value, again = shares(torch.ones(len(table), dtype=torch.float64)), shares(weights)
    out: dict[str, Any] = {}
    for i, key in enumerate(SHARES):
        low, high = again[i].nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        out |= {key: value[i].item(), f"{key}_low": low, f"{key}_high": high}
    return out


if __name__ == "__main__":
    main()
