"""Which ways to draw edges through attention find what taking latents out does: the table in docs/results/attention.md.

    python -m benchmarks.attention [layer]           # writes benchmarks/attention.json
    python -m benchmarks.attention [layer] slow      # 200 edges by one ablation at a time in the whole model
    python -m benchmarks.attention [layer] heads     # what each head moves, and which heads move the same

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
from saelink.attention.ov import OVEdges, OVStage, load_ov
from saelink.attention.stage import MovedStage
from saelink.compose import register
from saelink.evidence.claims import Claims
from saelink.evidence.moved_edges import Scene, shortest_range
from saelink.evidence.moved_heads import cosines_of, counted_parts, groups_of, head_distances
from saelink.evidence.moved_verdicts import moved_claims
from saelink.evidence.verdicts import MIN_ABLATED, judged
from saelink.fit.train import TrainStage, fitted_connector
from saelink.interventions.block import encoded_with_floor, read_held
from saelink.interventions.head_effects import head_effects
from saelink.interventions.moved_effects import (
    FIRST,
    LINEAR,
    NULLS,
    Means,
    MovedEffectsStage,
    column_means,
    load_means,
    load_moved_effects,
    measured_queries,
)
from saelink.job import Job
from saelink.latents.link import load_split
from saelink.latents.shards import encode_rows
from saelink.model.load import load_hf
from saelink.model.probe import SeenError, first_of
from saelink.store.store import Store

LASSO = {"lasso on moved latents, 3e-3": "l1_alpha=3e-3", "lasso on moved latents, 8e-4": "l1_alpha=8e-4"}

SUMMED = {"lasso on moved latents summed over heads, 3e-3": "l1_alpha=3e-3"}

GATED = "computed V, where both are active"

EDGES = 200

BY_HEAD = 400
"""Edges, the strongest claims of computed V, whose effects through single heads are measured."""

PATH = Path(__file__).with_name("attention.json")


def main() -> None:
    register()
    layer = sys.argv[1] if len(sys.argv) > 1 else "1"
    store = Store("outputs")
    given = [word for word in sys.argv[2:] if "=" in word]
    result = json.loads(PATH.read_text()) if PATH.exists() else {}
    here = result.setdefault(f"layer {layer}", {})
    if "heads" in sys.argv:
        here["heads"] = heads(Job(configured([f"layer={layer}", "link=ov", *given]), store))
    elif "slow" in sys.argv:
        here["slow"] = slow(Job(configured([f"layer={layer}", "link=ov", *given]), store))
    else:
        table(layer, given, store, here, lambda: PATH.write_text(json.dumps(result, indent=1) + "\n"))
    PATH.write_text(json.dumps(result, indent=1) + "\n")


class Table:
    """The rows of one layer, each put into `here` and saved when it is done."""

    def __init__(self, layer: str, given: list[str], store: Store, here: dict[str, Any], save: Callable[[], Any]):
        self.layer, self.given, self.store, self.here, self._save = layer, given, store, here, save
        self.base = self.job("link=ov")
        self.effects = MovedEffectsStage(self.base).pull()
        self._free, self._frozen = (load_moved_effects(self.effects, reading) for reading in ("free", "frozen"))
        self.means = load_means(self.effects)
        self.claims: dict[str, Claims] = {}
        self.ids = torch.zeros(0, dtype=torch.int64)
        here["rows"] = {}

    def job(self, *overrides: str) -> Job:
        return Job(configured([f"layer={self.layer}", *overrides, *self.given]), self.store)

    @property
    def _strong(self) -> float:
        return self.base.cfg.verify.strong

    def add(self, name: str, claim: torch.Tensor | Claims, **more: Any) -> None:
        """A row: its claims against the effects."""
        claim = self.claims[name] = claim if isinstance(claim, Claims) else Claims.of_dense(claim)
        row = more | judged(claim, self._free, self.ids, self._strong)[0]
        row["frozen"] = judged(claim, self._frozen, self.ids, self._strong)[0]
        self.here["rows"][name] = row
        shown = {key: round(row[key], 3) for key in SHOWN}
        print(name, shown, "frozen", round(row["frozen"]["precision_1x"], 3), flush=True)
        self._save()

    def against(self, null: str) -> None:
        """Every row's strongest claims against other effects than the model's: a null's, or the first token's too."""
        effects = load_moved_effects(MovedEffectsStage(self.base, null=null).pull())
        self.here.setdefault("against", {})[null] = {
            name: {key: figures[key] for key in ("strong", "precision_1x", "precision_1x_low", "precision_1x_high")}
            for name, claim in self.claims.items()
            for figures in [judged(claim, effects, self.ids, self._strong)[0]]
        }
        print(null, {name: round(f["precision_1x"], 3) for name, f in self.here["against"][null].items()}, flush=True)
        self._save()


def table(layer: str, given: list[str], store: Store, here: dict[str, Any], save: Callable[[], Any]) -> None:
    """Put the rows, and what was measured, into `here`; saved after each."""
    rows = Table(layer, given, store, here, save)
    base, means = rows.base, rows.means
    same = rows.job("link=attn")
    connector = fitted_connector(TrainStage(same).pull())
    ids = rows.ids = connector.target_ids
    claim = connector.output_weight() * means.same[:, None]
    rows.add("same-token lasso, 8e-4", claim, **_fit(same))
    size = claim[claim != 0].abs().sort(descending=True).values
    noise = torch.randn(claim.shape, generator=torch.Generator().manual_seed(0))
    kept = noise.abs().flatten().sort(descending=True).indices[: len(size)]
    random = torch.zeros(claim.numel())
    random[kept] = noise.flatten()[kept].sign() * size
    rows.add("random", random.view_as(claim))
    ov = OVStage(base.cfg, store).pull()
    edges = load_ov(ov)
    rows.add("computed V", _largest(edges.ungated[:, ids], len(size)))
    rows.add(GATED, _largest(edges.claim[:, ids], len(size)))
    linear = load_moved_effects(MovedEffectsStage(base, "train", LINEAR).pull())
    rows.add("gradient x activation, where the target is active", _largest(linear.dense()[:, ids], len(size)))
    here |= {"moved": _moved(base), "ablations": int(means.queries.sum())}
    here["seconds"] = {stage.stage: stage.manifest["provenance"]["seconds"] for stage in (rows.effects, ov)}
    for null in (FIRST, *NULLS):
        rows.against(null)
    here["by_head"] = by_head(base, edges)
    print(here["by_head"], flush=True)
    save()
    for name, alpha in LASSO.items():
        job = rows.job("link=ov", alpha)
        connector = fitted_connector(TrainStage(job).pull())
        assert torch.equal(connector.target_ids, ids)
        rows.add(name, moved_claims(connector, means), **_fit(job))
    for name, alpha in SUMMED.items():
        job = rows.job("link=ov_summed", alpha)
        connector = fitted_connector(TrainStage(job).pull())
        assert torch.equal(connector.target_ids, ids)
        rows.add(name, moved_claims(connector, summed_means(base, job, means)), **_fit(job))
    for null in (FIRST, *NULLS):
        rows.against(null)


def summed_means(base: Job, job: Job, means: Means) -> Means:
    """The means of columns summed over heads, over the same queries that the effects are of."""
    measuring = measured_queries(base)
    tokens = load_split(job.cfg, job.sides, "test")
    tokens = tokens.subset(tokens.row < measuring.ids.numel())
    assert torch.equal(tokens.row, measuring.tokens.row)
    return means._replace(kept=column_means(tokens, measuring.chosen, means.queries.clamp(min=1)))


def by_head(job: Job, edges: OVEdges) -> dict[str, float]:
    """How the parts by head of the strongest computed claims agree with the effects through single heads."""
    claim = edges.by_head.sum(2)
    claim[edges.queries[edges.source] < MIN_ABLATED] = 0
    chosen = claim.abs().flatten().sort(descending=True).indices[:BY_HEAD]
    target, place = chosen // claim.shape[1], chosen % claim.shape[1]
    source, part = edges.source[target, place].long(), edges.by_head[target, place]
    effect = head_effects(measured_queries(job), source, target)
    whole = load_moved_effects(MovedEffectsStage(job).pull()).dense()[source, target]
    unit = part.abs().sum(1, keepdim=True)
    largest = part.abs().argmax(1)
    other = part.abs().scatter(1, largest[:, None], -1).argmax(1)  # the head that makes the second largest part
    rows = torch.arange(len(source))
    return {
        "edges": len(source),
        "r": torch.corrcoef(torch.stack([part.flatten(), effect.flatten()]))[0, 1].item(),
        "slope": ((part * effect).sum() / part.square().sum()).item(),
        "r_of_shares": torch.corrcoef(torch.stack([(part / unit).flatten(), (effect / unit).flatten()]))[0, 1].item(),
        "same_largest_head": (effect.abs().argmax(1) == largest).double().mean().item(),
        "largest_share": (part[rows, largest] / part.sum(1)).median().item(),
        "through_largest": (effect[rows, largest] / whole).median().item(),
        "through_second": (effect[rows, other] / whole).median().item(),
        "sum_over_whole": (effect.sum(1) / whole).median().item(),
    }


def heads(job: Job) -> list[dict[str, Any]]:
    """Each head's share of the strongest computed edges, the heads that move alike, and from how far it moves."""
    parts = counted_parts(load_ov(OVStage(job.cfg, job.store).pull()))
    sizes, cosines, distances = parts.abs().sum((0, 1)), cosines_of(parts), head_distances(Scene(job))
    found: list[dict[str, Any]] = []
    for head, shares in enumerate(distances):
        others = cosines[head].clone()
        others[head] = -1
        near, far = shortest_range(shares.tolist())
        found.append({
            "share": (sizes[head] / sizes.sum()).item(),
            "group": next(group for group in groups_of(cosines) if head in group),
            "most_alike": int(others.argmax()), "cosine": others.max().item(),
            "itself": shares[0].item(), "one_before": shares[1].item(), "near": near, "far": far,
        })  # fmt: skip
        print(found[-1], flush=True)
    return found


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
