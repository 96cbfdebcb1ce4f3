"""What the output owes to a connector's edges, in its W&B run."""

from __future__ import annotations

from typing import Any

from saelink.evidence.edge_removals import EdgeRemovalsStage
from saelink.evidence.effectiveness import EffectivenessStage
from saelink.evidence.pruned import PRUNED_FILE, PrunedStage
from saelink.store.artifact import Artifact
from saelink.store.store import Store

STAGES = (EffectivenessStage.name, EdgeRemovalsStage.name, PrunedStage.name)


def outputs_in(store: Store, connector: str) -> dict[str, Artifact[Any]]:
    """The newest artifact of each of STAGES about a connector, by its key; those on its own text alone."""
    found: dict[str, Artifact[Any]] = {}
    for artifact in store.artifacts():
        inputs = artifact.manifest["inputs"]
        own = not any(role.startswith("scale of ") for role in inputs)
        if artifact.stage in STAGES and inputs.get("connector") == connector and own:
            found[artifact.stage] = artifact
    return found


def add_outputs(run: Any, found: dict[str, Artifact[Any]]) -> None:
    """Their figures in the run's summary, the prune curves as a table."""
    import wandb

    for stage, artifact in found.items():
        run.summary.update({f"{stage}/{name}": value for name, value in artifact.facts.items()})
    if PrunedStage.name in found:
        rows = found[PrunedStage.name].json(PRUNED_FILE)
        table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        run.log({"verify/pruned": table})
