"""What interventions say of a connector's logic and of joint effects, as figures of a W&B run."""

from __future__ import annotations

from typing import Any

from saelink.evidence.joint_effects import JOINT_FILE, JointStage
from saelink.evidence.logic_trials import LogicTrialsStage
from saelink.store.artifact import Artifact
from saelink.store.store import Store


def tests_of(store: Store, connector: str) -> list[Artifact[Any]]:
    """The newest trials of logic and joint effects of the connector with this key, those there are."""
    found: dict[str, Artifact[Any]] = {}
    edges: set[str] = set()
    artifacts = list(store.artifacts())
    for artifact in artifacts:
        of = artifact.manifest["inputs"].get("connector")
        if of == connector and artifact.stage == "edges":
            edges.add(artifact.key)
        if of == connector and artifact.stage == JointStage.name:
            found[artifact.stage] = artifact
    for artifact in artifacts:
        if artifact.stage == LogicTrialsStage.name and artifact.manifest["inputs"].get("edges") in edges:
            found[artifact.stage] = artifact
    return [found[stage] for stage in sorted(found)]


def tested_figures(tests: list[Artifact[Any]]) -> dict[str, float]:
    """By name: verify/logic/<word>/<outcome>, circuits; verify/joint/<kind>/..., shares and rank correlations."""
    figures: dict[str, float] = {}
    for artifact in tests:
        if artifact.stage == LogicTrialsStage.name:
            for word, counts in artifact.facts["outcomes"].items():
                figures |= {f"verify/logic/{word}/{outcome}": n for outcome, n in counts.items()}
        else:
            for kind, row in artifact.json(JOINT_FILE).items():
                figures |= {f"verify/joint/{kind}/{name}": row[name] for name in ("sets", "notable", "less")}
                for name in ("claim", "sum"):
                    figures |= {f"verify/joint/{kind}/{name}_{key}": value for key, value in row[name].items()}
    return figures
