"""Sources taken out together, and which connector predicts what that does: the table in docs/results/logic.md.

    python -m benchmarks.joint [layer]     # a few minutes on 2 cores; writes benchmarks/joint.json

The sets are those with the strongest single effects, whatever any connector says; all are asked about the same.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.edges import SOURCES
from benchmarks.figures import configured
from saelink.compose import register
from saelink.evidence.joint_effects import (
    TOGETHER,
    Measured,
    claims_on_sets,
    figures_of,
    measure_sets,
    sets_of,
    strongest_sources,
)
from saelink.fit.train import TrainStage, fitted_connector
from saelink.interventions.block import open_block
from saelink.interventions.effects import EffectsStage, load_effects
from saelink.interventions.joint import Joint
from saelink.job import Job
from saelink.store.store import Store

TARGETS = 64

CONNECTORS = {name: words for name, words in SOURCES.items() if name.startswith(("exact linear", "causal linear"))}


def main() -> None:
    register()
    layer = sys.argv[1] if len(sys.argv) > 1 else "1"
    store = Store("outputs")
    job = Job(configured([f"layer={layer}"]), store)
    measured = load_effects(EffectsStage(job).pull())
    joint = Joint(open_block(job, "test"), job.sides.scales)
    sets = sets_of(joint, strongest_sources(measured, max(TOGETHER), job.cfg.verify.strong, TARGETS))
    together, summed = measure_sets(joint, sets)
    target, size = torch.tensor(sets.target), torch.tensor(sets.size)
    scale = measured.target_mean[target]
    unit = torch.tensor(job.sides.scales[:-1])[joint.block.side]
    rows: dict[str, Any] = {}
    for name, words in CONNECTORS.items():
        connector = fitted_connector(TrainStage(job.at(configured([f"layer={layer}", *words]))).pull())
        claim = claims_on_sets(joint, sets, connector, unit)
        rows[name] = figures_of(target, size, Measured(*(each / scale for each in (together, summed, claim))))
        print(name, json.dumps({kind: row["claim"] for kind, row in rows[name].items()}), flush=True)
    path = Path(__file__).with_name("joint.json")
    result = json.loads(path.read_text()) if path.exists() else {}
    result[f"layer {layer}"] = {"targets": len(target.unique()), "rows": rows}
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
