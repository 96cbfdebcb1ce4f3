"""The registry meets Hydra: the schema, every connector, solver and experiment become options and settings."""

from __future__ import annotations

import dataclasses

from saelink.config.schema import Config, ExperimentConfig
from saelink.connectors import CONNECTORS
from saelink.experiments import EXPERIMENTS
from saelink.fit.solvers import SOLVERS

OWNERS = {name: experiment.Settings for name, experiment in EXPERIMENTS.items() if experiment.owner == name}

ExperimentSettings = dataclasses.make_dataclass(
    "ExperimentSettings",
    [(name, kind, dataclasses.field(default_factory=kind)) for name, kind in OWNERS.items()],
    bases=(ExperimentConfig,),
    namespace={"__module__": __name__},
)
"""The settings of all experiments: the shared ones, and by name those that each owns."""


def register() -> None:
    """Tell Hydra the schema, and every connector and solver as an option of its group."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(group="schema", name="config", node=Config(experiment=ExperimentSettings()), package="_global_")
    for name, connector in CONNECTORS.items():
        store.store(group="connector", name=name, node=connector.Settings(name=name))
        default = connector.default_solver  # config.yaml chooses solver=for_<connector>
        store.store(group="solver", name=f"for_{name}", node=SOLVERS[default].Settings(name=default))
    for name, solver in SOLVERS.items():
        store.store(group="solver", name=name, node=solver.Settings(name=name))
