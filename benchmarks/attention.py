"""Which ways to draw edges through attention find what taking latents out does: the table in docs/results/attention.md.

    python -m benchmarks.attention [layer]           # writes benchmarks/attention.json
    python -m benchmarks.attention [layer] slow      # 200 edges by one ablation at a time in the whole model

Every graph claims how much a target loses, on average over the queries that a source is moved to, without the source
at every key; `saelink verify link=ov` judges the same. The effects are those of the model: the pattern and all norms
recomputed (free), and beside them with both held (frozen). Computed weights are counted on training documents,
gradients taken there. Graphs that are no lasso keep as many edges as the same-token lasso at 8e-4; random weights are
scaled to its claims.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.edges import SHOWN
from benchmarks.figures import configured
from saelink.attention.ov import OVStage, load_ov
from saelink.attention.stage import MovedStage
from saelink.compose import register
from saelink.evidence.claims import Claims
from saelink.evidence.moved_verdicts import moved_claims
from saelink.evidence.verdicts import judged
from saelink.fit.train import TrainStage, fitted_connector
from saelink.interventions.block import encoded_with_floor, read_held
from saelink.interventions.moved_effects import (
    LINEAR,
    NULLS,
    MovedEffectsStage,
    load_means,
    load_moved_effects,
    measured_queries,
)
from saelink.job import Job
from saelink.latents.shards import encode_rows
from saelink.model.load import load_hf
from saelink.model.probe import SeenError, first_of
from saelink.store.store import Store

LASSO = {"lasso on moved latents, 3e-3": "l1_alpha=3e-3", "lasso on moved latents, 8e-4": "l1_alpha=8e-4"}

EDGES = 200

PATH = Path(__file__).with_name("attention.json")


def main() -> None:
    register()
    layer = sys.argv[1] if len(sys.argv) > 1 else "1"
    store = Store("outputs")
    given = [word for word in sys.argv[2:] if "=" in word]
    result = json.loads(PATH.read_text()) if PATH.exists() else {}
    here = result.setdefault(f"layer {layer}", {})
    if "slow" in sys.argv:
        here["slow"] = slow(Job(configured([f"layer={layer}", "link=ov", *given]), store))
    else:
        table(layer, given, store, here, lambda: PATH.write_text(json.dumps(result, indent=1) + "\n"))
    PATH.write_text(json.dumps(result, indent=1) + "\n")


def table(layer: str, given: list[str], store: Store, here: dict[str, Any], save: Callable[[], Any]) -> None:
    """Put the rows, and what was measured, into `here`; saved after each."""
    base = Job(configured([f"layer={layer}", "link=ov", *given]), store)
    effects = MovedEffectsStage(base).pull()
    free, frozen = (load_moved_effects(effects, reading) for reading in ("free", "frozen"))
    means = load_means(effects)
    rows: dict[str, Any] = {}
    here["rows"] = rows
    strong = base.cfg.verify.strong

    def add(name: str, claim: torch.Tensor | Claims, ids: torch.Tensor, **more: Any) -> None:
        claim = claim if isinstance(claim, Claims) else Claims.of_dense(claim)
        rows[name] = more | judged(claim, free, ids, strong)[0]
        rows[name]["frozen"] = judged(claim, frozen, ids, strong)[0]
        shown = {key: round(rows[name][key], 3) for key in SHOWN}
        print(name, shown, "frozen", round(rows[name]["frozen"]["precision_1x"], 3), flush=True)
        save()

    same = Job(configured([f"layer={layer}", "link=attn", *given]), store)
    connector = fitted_connector(TrainStage(same).pull())
    claim, ids = connector.output_weight() * means.same[:, None], connector.target_ids
    add("same-token lasso, 8e-4", claim, ids, **_fit(same))
    size = claim[claim != 0].abs().sort(descending=True).values
    noise = torch.randn(claim.shape, generator=torch.Generator().manual_seed(0))
    kept = noise.abs().flatten().sort(descending=True).indices[: len(size)]
    random = torch.zeros(claim.numel())
    random[kept] = noise.flatten()[kept].sign() * size
    add("random", random.view_as(claim), ids)
    ov = OVStage(base.cfg, store).pull()
    edges = load_ov(ov)
    together = _largest(edges.claim[:, ids], len(size))
    add("computed V", _largest(edges.ungated[:, ids], len(size)), ids)
    add("computed V, where both are active", together, ids)
    for name, alpha in LASSO.items():
        job = Job(configured([f"layer={layer}", "link=ov", alpha, *given]), store)
        connector = fitted_connector(TrainStage(job).pull())
        add(name, moved_claims(connector, means), connector.target_ids, **_fit(job))
    linear = load_moved_effects(MovedEffectsStage(base, "train", LINEAR).pull())
    add("gradient x activation, where the target is active", _largest(linear.dense()[:, ids], len(size)), ids)
    here |= {"moved": _moved(base), "ablations": int(means.queries.sum())}
    here["seconds"] = {stage.stage: stage.manifest["provenance"]["seconds"] for stage in (effects, ov)}
    nulls = {null: load_moved_effects(MovedEffectsStage(base, null=null).pull()) for null in NULLS}
    here["nulls"] = {
        name: judged(Claims.of_dense(together), null, ids, strong)[0]["precision_1x"] for name, null in nulls.items()
    }
    print(here["nulls"], here["seconds"], here["moved"], flush=True)


def _fit(job: Job) -> dict[str, Any]:
    artifact = TrainStage(job).pull()
    facts = artifact.facts
    return {
        "fvu": facts["validation_fvu"], "n_edges": facts["n_edges"],
        "seconds": artifact.manifest["provenance"]["seconds"], "relative_gap": facts.get("relative_gap"),
    }  # fmt: skip


def _moved(job: Job) -> dict[str, Any]:
    facts = MovedStage(job.cfg, job.store, 0).pull().facts
    return {name: facts[name] for name in ("per_token", "kept", "held", "parts", "off")}


def _largest(claim: torch.Tensor, n: int) -> torch.Tensor:
    kept = claim.abs().flatten().sort(descending=True).indices[:n]
    sparse = torch.zeros(claim.numel())
    sparse[kept] = claim.flatten()[kept]
    return sparse.view_as(claim)


def _module(job: Job, hook: str) -> str:
    place = job.model.place(hook)
    assert place is not None
    return place.module


def slow(job: Job) -> dict[str, float]:
    """How far effects are from those of one ablation at a time in transformers' own whole model, changed by a hook."""
    effects = MovedEffectsStage(job).pull()
    measured = load_moved_effects(effects)
    of_pair = measured.dense()
    queries = measured_queries(job)
    source_sae, target_sae = queries.moves.source, queries.moves.target
    hf_model: Any = load_hf(job.cfg.model, job.model.artifact).hf_model.float()
    block = hf_model.get_submodule(_module(job, f"blocks.{job.cfg.layer}.hook_resid_post"))
    attn = hf_model.get_submodule(_module(job, job.link.target))
    change: list[Any] = [0.0]
    seen: dict[str, torch.Tensor] = {}

    def before(_: Any, args: Any) -> Any:
        seen["x"] = args[0][0].clone()
        return (args[0] - change[0], *args[1:])

    block.register_forward_pre_hook(before)

    def after(_: Any, _args: Any, out: Any) -> None:
        seen["out"] = first_of(out).clone()
        raise SeenError  # what comes behind is not looked at

    attn.register_forward_hook(after)

    def run(ids: torch.Tensor, taken: Any) -> torch.Tensor:
        change[0] = taken
        with suppress(SeenError):
            hf_model(ids[None], use_cache=False)
        return seen["out"][0]

    generator = torch.Generator().manual_seed(0)
    alive = (measured.target_mean > 0).nonzero().flatten()
    live = (measured.tokens.sum(0) > 0).nonzero().flatten()
    worst, started, passes = 0.0, time.monotonic(), 0
    with torch.inference_mode():
        for edge in range(EDGES):
            j = int(live[torch.randint(len(live), (1,), generator=generator)])
            # half of the edges at random, half of the strongest of the source
            strongest = of_pair[j, alive].abs().argmax()
            i = int(alive[strongest if edge % 2 else torch.randint(len(alive), (1,), generator=generator)])
            total = 0.0
            rows = queries.rows_of(j)
            for row in rows:
                sequence, query = divmod(row, queries.context)
                ids = queries.ids[sequence]
                whole = run(ids, 0.0)[query][None]
                active = encode_rows(source_sae, seen["x"]).dense()[:, j].clone()
                active[: job.cfg.data.drop_positions] = 0
                without = run(ids, active[:, None] * source_sae.W_dec[j])[query][None]
                kept, floor = encoded_with_floor(target_sae, whole)
                left = read_held(target_sae.pre_acts(without), floor, torch.zeros(target_sae.d_sae))
                total += (kept.dense()[0, i] - left[0, i]).item()
                passes += 2
            true = total / len(rows) / job.encoded.scales[-1]
            worst = max(worst, abs(true - of_pair[j, i].item()) / measured.target_mean[i].item())
    print(f"{EDGES} edges, {passes} passes, {time.monotonic() - started:.0f} s: at most {worst:.2g} off", flush=True)
    return {"edges": EDGES, "passes": passes, "worst": worst}


if __name__ == "__main__":
    main()
