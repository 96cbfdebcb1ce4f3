"""The same questions to both models that run offline, at four depths each, as tables.

    python -m benchmarks.families smollm2 [overrides]          # many hours at the default sizes: see saelink plan
    python -m benchmarks.families gemma3-270m [overrides]      # its weights are an option, conf/model/gemma3-270m.yaml
    python -m benchmarks.families --tables                     # prints what benchmarks/families.json holds

Every SAE is trained by saelink, so that the two differ in the model alone. Artifacts go to outputs/; a layer is written
down as soon as it is done, with the settings it was done with, and the same command goes on at the next one.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.figures import configured
from saelink.compose import register
from saelink.evidence.evaluate import EvaluateStage
from saelink.evidence.frontier import kneedle
from saelink.evidence.verdicts import FIGURES_FILE
from saelink.evidence.verify import VerdictsStage
from saelink.experiments import EXPERIMENTS
from saelink.experiments.suite import depths
from saelink.experiments.tables import rows_of
from saelink.fit.train import TrainStage
from saelink.job import Job
from saelink.store.store import Store
from saelink.terminal.progress import TerminalObserver

RESULT = Path(__file__).with_name("families.json")

ALPHAS = ("1e-4", "3e-4", "8e-4", "3e-3", "1e-2", "3e-2")
"""Penalties of the exact frontier."""

EDGES = {
    "exact linear, 8e-4": ["l1_alpha=8e-4"],
    "exact linear, 3e-3": ["l1_alpha=3e-3"],
    "causal linear, 2e-3": ["solver=causal", "l1_alpha=2e-3"],
}
"""Where edges come from whose claims are compared with ablations."""

KEPT = (
    "strong", "edges", "edges_confirmed", "edges_weaker", "edges_no_effect", "edges_opposite", "edges_unclear",
    "edges_faint", "precision_1x", "recall_1x", "sign_1x", "slope_1x",
)  # fmt: skip


def job_of(overrides: list[str], store: Store | None = None) -> Job:
    cfg = configured(overrides)
    return Job(cfg, store or Store(cfg.runtime.outputs, observer=TerminalObserver()))


def percent_linear(job: Job) -> dict[str, Any]:
    """By yardstick the percentage of targets that are linear, with its interval; the outliers that carry the gap."""
    linear = EXPERIMENTS["percent_linear"].run(job)
    rows = [row for row in rows_of(linear) if (row["simple"], row["rich"]) == ("exact linear", "mlp")]
    percents = {row["divided by"]: [row["percent"], row["low"], row["high"]] for row in rows}
    outliers = rows_of(EXPERIMENTS["outliers"].run(job))
    shares = [row["share_of_gap"] for row in outliers[:5]]  # none where the mlp is worse everywhere
    return {
        "percent linear": percents,
        "targets": linear.facts.get("n_targets"),
        "outliers": {
            "flagged of the first": [sum(bool(row["outlier"]) for row in outliers), len(outliers)],
            "share of the gap of the first five": None if None in shares else sum(shares),
        },
    }


def frontier(overrides: list[str], job: Job) -> dict[str, Any]:
    """By penalty what the exact linear connector comes to, and the elbow of its error against L1."""
    points = {}
    for alpha in ALPHAS:
        found = EvaluateStage(job_of([*overrides, f"l1_alpha={alpha}"], job.store)).pull().json("metrics.json")
        points[alpha] = {name: found[name] for name in ("fvu", "l1", "n_edges")}
    values = list(points.values())
    elbow = kneedle([point["l1"] for point in values], [point["fvu"] for point in values])
    return {"frontier": points, "elbow": None if elbow is None else ALPHAS[elbow]}


def edges(overrides: list[str], job: Job, sources: dict[str, list[str]] = EDGES) -> dict[str, Any]:
    """By where edges come from, what ablations say of them."""
    found = {}
    for name, more in sources.items():
        each = job_of([*overrides, *more], job.store)
        figures = VerdictsStage(each).pull().json(FIGURES_FILE)
        metrics = EvaluateStage(each).pull().json("metrics.json")
        seconds = TrainStage(each).pull().manifest["provenance"]["seconds"]
        found[name] = {"fvu": metrics["fvu"], "seconds": seconds} | {key: figures.get(key) for key in KEPT}
    return {"edges": found}


def layer_of(overrides: list[str]) -> dict[str, Any]:
    """Everything at one layer."""
    started = time.perf_counter()
    job = job_of(overrides)
    found = percent_linear(job) | frontier(overrides, job) | edges(overrides, job)
    saes = {side.facts["hook_name"]: side.facts for side in [*job.sides.sources, job.sides.target]}
    found["saes"] = {
        hook: {name: facts[name] for name in ("fvu", "l0", "dead", "d_sae")} for hook, facts in saes.items()
    }
    found["minutes here"] = round((time.perf_counter() - started) / 60, 1)
    return found


def suite(family: str, chosen: list[str]) -> list[dict[str, Any]]:
    """The SAEs of all four depths, trained first, by one pass of the model."""
    job = job_of([f"model={family}", "experiment=suite", *chosen])
    return rows_of(EXPERIMENTS["suite"].run(job))


def run(family: str, chosen: list[str]) -> None:
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    entry = result.setdefault(family, {"settings": chosen, "layers": {}})
    assert entry["settings"] == chosen, f"{RESULT} has {family} with {entry['settings']}; remove it to begin anew"
    base = [f"model={family}", "sae=train", *chosen]
    if "suite" not in entry:
        entry["suite"] = suite(family, chosen)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    for layer in depths(configured(base).model.dimensions["n_layers"]):
        if str(layer) not in entry["layers"]:
            entry["layers"][str(layer)] = layer_of([*base, f"layer={layer}"])
            RESULT.write_text(json.dumps(result, indent=1) + "\n")


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def tables(result: dict[str, Any]) -> str:
    """Markdown: SAEs, percent linear, frontier, edges."""
    lines = [
        "| model | hook | latents | FVU | L0 | dead | CE recovered | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for family, entry in result.items():
        for row in entry.get("suite", []):
            recovered, low, high = (row[name] for name in ("recovered", "recovered_low", "recovered_high"))
            cells = [family, row["hook"], f"{row['latents']:,}", f"{row['fvu']:.3f}", f"{row['l0']:.1f}"]
            cells += [f"{row['dead']:,}", f"{recovered:.3f} ({low:.3f}-{high:.3f})", f"{row['minutes']:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| model | layer | targets | by c_L | by energy | by variance | elbow | first five outliers' share |"]
    lines.append("|---" * 8 + "|")
    for family, entry in result.items():
        for layer, found in entry["layers"].items():
            percents = [f"{p:.1f} ({low:.1f}-{high:.1f})" for p, low, high in found["percent linear"].values()]
            share = found["outliers"]["share of the gap of the first five"]
            cells = [
                family,
                layer,
                f"{found['targets']:,}",
                *percents,
                found["elbow"] or "",
                "" if share is None else f"{share:.0%}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| model | layer | " + " | ".join(f"FVU, edges at {alpha}" for alpha in ALPHAS) + " |",
        "|---" * 8 + "|",
    ]
    for family, entry in result.items():
        for layer, found in entry["layers"].items():
            points = [f"{point['fvu']:.3f}, {point['n_edges']:,}" for point in found["frontier"].values()]
            lines.append(f"| {family} | {layer} | {' | '.join(points)} |")
    head = [
        "model",
        "layer",
        "edges of",
        "FVU",
        "edges",
        "confirmed",
        "weaker",
        "no effect",
        "opposite",
        "unclear",
        "faint",
    ]
    lines += ["", f"| {' | '.join([*head, 'precision', 'recall', 'sign'])} |", "|---" * 14 + "|"]
    for family, entry in result.items():
        for layer, found in entry["layers"].items():
            for name, row in found["edges"].items():
                counts = [f"{row[key]:,}" for key in KEPT[1:8]]
                shares = [_share(row[key]) for key in ("precision_1x", "recall_1x", "sign_1x")]
                cells = [family, layer, name, f"{row['fvu']:.3f}", *counts, *shares]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:] == ["--tables"]:
        print(tables(json.loads(RESULT.read_text())))
    else:
        register()
        run(sys.argv[1], sys.argv[2:])
