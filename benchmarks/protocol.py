"""Equivalence, independence and minimality of a layer's best predicted circuits: the table in docs/results/logic.md.

    python -m benchmarks.protocol [layer]     # two minutes on 2 cores; writes benchmarks/protocol.json

The circuits are those of the best predicted targets that are active on 200 test tokens or more, all asked at once.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.figures import configured
from saelink.compose import register
from saelink.evidence.evaluate import EvaluateStage
from saelink.evidence.logic import wilson
from saelink.evidence.protocol import LEVEL, TESTS_FILE, CircuitTestsStage, circuit_of
from saelink.evidence.verdicts import Verdicts
from saelink.evidence.verify import VerdictsStage
from saelink.fit.train import TrainStage, fitted_connector
from saelink.job import Job
from saelink.store.store import Store

CIRCUITS, ACTIVE = 40, 200


def main() -> None:
    register()
    layer = sys.argv[1] if len(sys.argv) > 1 else "1"
    job = Job(configured([f"layer={layer}", "eval.verify=true"]), Store("outputs"))
    targets = chosen(job)
    tests = CircuitTestsStage(job, targets).pull().json(TESTS_FILE)
    known = [test for test in tests if test["equivalence_p"] is not None]
    edges = [edge for test in known for edge in test["edges"] if edge["p"] is not None]
    row = {
        "circuits": len(known),
        "equivalence not refuted": share(sum(test["equivalence_p_corrected"] >= LEVEL for test in known), len(known)),
        "independence not refuted": share(sum(test["independence_p_corrected"] >= LEVEL for test in known), len(known)),
        "edges needed": share(sum(edge["p_corrected"] < LEVEL for edge in edges), len(edges)),
        "fires alone, median": middle([test["fires_alone"] / test["fires"] for test in known if test["fires"]]),
        "fires without, median": middle([test["fires_without"] / test["fires"] for test in known if test["fires"]]),
        "fires alone where it should not, median": middle(
            [test["fires_else"] / (test["tokens"] - test["fires"]) for test in known if test["tokens"] > test["fires"]]
        ),
        "correlation, median": middle([test["correlation"] for test in known if test["correlation"] is not None]),
    }
    print(json.dumps(row, indent=1))
    path = Path(__file__).with_name("protocol.json")
    result = json.loads(path.read_text()) if path.exists() else {}
    result[f"layer {layer}"] = row
    path.write_text(json.dumps(result, indent=1) + "\n")


def chosen(job: Job) -> list[int]:
    """The best predicted targets, without those whose every edge ablation refutes."""
    tensors = EvaluateStage(job).pull().tensors("latents.safetensors")
    connector, verdicts = fitted_connector(TrainStage(job).pull()), Verdicts(VerdictsStage(job).pull())
    order = tensors["fvu"].nan_to_num(9.0).argsort(stable=True).tolist()
    found: list[int] = []
    for target in order:
        if len(found) < CIRCUITS and int(tensors["active"][target]) >= ACTIVE:
            try:
                circuit_of(job, connector, verdicts, target)
            except ValueError:
                continue
            found.append(target)
    return found


def share(hits: int, n: int) -> dict[str, Any]:
    low, high = wilson(hits, n)
    return {"hits": hits, "of": n, "low": low, "high": high}


def middle(values: list[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    main()
