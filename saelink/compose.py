"""The registry meets Hydra: the schema, every connector, solver and experiment become options and settings.

A file in conf/connector or conf/solver shows the settings and starts from the types that are registered here. A
connector or solver without a file there, such as one that you add, becomes an option all the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from saelink.config.files import conf_dir
from saelink.config.schema import Config, ExperimentConfig
from saelink.connectors import CONNECTORS
from saelink.experiments import EXPERIMENTS
from saelink.fit.solvers import SOLVERS

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.config_store import ConfigStore

OWNERS = {name: experiment.Settings for name, experiment in EXPERIMENTS.items() if experiment.owner == name}

ExperimentSettings = dataclasses.make_dataclass(
    "ExperimentSettings",
    [(name, kind, dataclasses.field(default_factory=kind)) for name, kind in OWNERS.items()],
    bases=(ExperimentConfig,),
    namespace={"__module__": __name__},
)
"""The settings of all experiments: the shared ones, and by name those that each owns."""


def settings_by_choice() -> dict[str, dict[str, type[Any]]]:
    """By group and choice the settings of every connector and solver."""
    return {
        "connector": {name: connector.Settings for name, connector in CONNECTORS.items()},
        "solver": {name: solver.Settings for name, solver in SOLVERS.items()},
    }


def register() -> None:
    """Tell Hydra the schema, and every connector and solver as an option of its group.

    The schemas are in no group, because Hydra's help and completion list every group there is.
    """
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="schema", node=Config(experiment=ExperimentSettings()), package="_global_")
    for name, connector in CONNECTORS.items():
        solver = {"override /solver@_global_.solver": connector.default_solver}
        _register(store, "connector", name, connector.Settings(name=name), solver)
    for name, solver in SOLVERS.items():
        _register(store, "solver", name, solver.Settings(name=name))


@contextmanager
def composing() -> Generator[ConfigLoader, None, None]:
    """Inside it Hydra's `compose` finds everything registered here; a caller's own Hydra is back afterwards."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register()
    running = GlobalHydra.instance()
    outer = running.hydra  # of a caller that is a Hydra application itself
    running.clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            yield GlobalHydra.instance().config_loader()
    finally:
        running.hydra = outer


def _register(store: ConfigStore, group: str, name: str, settings: Any, *defaults: dict[str, str]) -> None:
    """The types of an option, and where conf/ has no file of it, what that file would say."""
    schema = f"schema_{group}_{name}"
    store.store(name=schema, node=settings)
    if not (conf_dir() / group / f"{name}.yaml").is_file():
        store.store(group=group, name=name, node={"defaults": [f"/{schema}@_here_", *defaults]})
