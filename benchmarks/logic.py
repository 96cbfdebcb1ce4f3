"""Which words for targets' logic hold in the model, and what silences the targets of AND NOTs: docs/results/logic.md.

    python -m benchmarks.logic [layer [reading]]     # about 5 minutes on 2 cores; writes benchmarks/logic.json

Two readings of the counts: with sources whose single edges ablation refutes left out, as `saelink verify` has it, and
all sources, as counts alone have it. Test documents; zero ablation, and for the first reading resampling too.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import configured
from saelink.compose import register
from saelink.config.evidence import AblationValue
from saelink.config.schema import Config
from saelink.evidence.logic import wilson
from saelink.evidence.logic_trials import TRIALS_FILE, LogicTrialsStage, named_logic
from saelink.evidence.silence import silence_of
from saelink.evidence.verify import VerdictsStage
from saelink.interventions.block import open_block
from saelink.interventions.joint import Joint
from saelink.job import Job
from saelink.store.store import Store

RESAMPLES = 1000

HANDMADE = (138, 1297, 571, 1209)
"""AND NOTs of layer 1 that were looked at by hand first."""


def main() -> None:
    register()
    layer = sys.argv[1] if len(sys.argv) > 1 else "1"
    store = Store("outputs")
    path = Path(__file__).with_name("logic.json")
    readings = {"refuted edges left out": ["eval.verify=true"], "counts alone": ["eval.verify=false"]}
    for name, words in readings.items():
        if name not in (sys.argv[2:] or readings):
            continue
        result: dict[str, Any] = {}
        job = Job(configured([f"layer={layer}", *words]), store)
        if "eval.verify=true" in words:
            VerdictsStage(job).pull()
        result["zero"] = _outcomes(job)
        if "eval.verify=true" in words:
            result["resample"] = _outcomes(job.at(_resampled(job.cfg)))
        found, silences = LogicTrialsStage(job).pull().json(TRIALS_FILE), _silences(job)
        if layer == "1":
            result["by hand"] = {t: found[str(t)] for t in HANDMADE if str(t) in found}
        result["silence"] = silences
        print(name, json.dumps(result, indent=1)[:6000], flush=True)
        written = json.loads(path.read_text()) if path.exists() else {}
        written.setdefault(f"layer {layer}", {})[name] = result
        path.write_text(json.dumps(written, indent=1) + "\n")


def _resampled(cfg: Config) -> Config:
    return replace(cfg, verify=replace(cfg.verify, ablation=AblationValue.resample))


def _outcomes(job: Job) -> dict[str, Any]:
    """By word the circuits, how many have which outcome, and the share that holds with its interval."""
    rows: dict[str, Any] = {}
    for word, counts in LogicTrialsStage(job).pull().facts["outcomes"].items():
        n = sum(counts.values())
        low, high = wilson(counts["holds"], n)
        rows[word] = {"circuits": n, **counts, "share": counts["holds"] / max(n, 1), "low": low, "high": high}
    return rows


def _silences(job: Job) -> dict[str, Any]:
    """What silences the targets of the AND NOTs that don't hold, over all of them; intervals over circuits."""
    trials = LogicTrialsStage(job).pull().json(TRIALS_FILE)
    joint = Joint(open_block(job, "test"), job.sides.scales)
    found = []
    for target, logic in named_logic(job):
        if logic["word"] == "and not" and trials[str(target)]["outcome"] != "holds":
            silence = silence_of(joint, target, *logic["inputs"])
            if silence is not None and silence.fall > 0:
                found.append(silence)
    shares = {
        name: torch.tensor([each.parts[name] / each.fall for each in found if each.parts is not None]).double()
        for name in (found[0].parts or {})
    }
    leading = [max(each.parts, key=each.parts.__getitem__) for each in found if each.parts is not None]
    generator = torch.Generator().manual_seed(0)

    def middle(values: torch.Tensor) -> dict[str, float]:
        drawn = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
        low, high = values[drawn].median(1).values.quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        return {"median": values.median().item(), "low": low, "high": high}

    def mean(values: torch.Tensor) -> dict[str, float]:
        drawn = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
        low, high = values[drawn].mean(1).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        return {"mean": values.mean().item(), "low": low, "high": high}

    return {
        "circuits": len(found),
        "parts": {name: middle(values) | {"leads": leading.count(name)} for name, values in shares.items()},
        "brings it on": {
            name: {
                **mean(torch.tensor([each.on[name] for each in found]).double()),
                "closed": middle(torch.tensor([each.closed[name] for each in found]).double()),
            }
            for name in found[0].on
        },
        "additive": middle(torch.tensor([each.additive for each in found]).double()),
    }


if __name__ == "__main__":
    main()
