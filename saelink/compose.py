"""The registry meets Hydra: the schema, every connector and every solver become options of their groups."""

from __future__ import annotations

from saelink.config.schema import Config


def register() -> None:
    """Tell Hydra the schema, and every connector and solver as an option of its group."""
    from hydra.core.config_store import ConfigStore

    from saelink.connectors import CONNECTORS
    from saelink.fit.solvers import SOLVERS

    store = ConfigStore.instance()
    store.store(group="schema", name="config", node=Config, package="_global_")
    for name, connector in CONNECTORS.items():
        store.store(group="connector", name=name, node=connector.Settings(name=name))
        default = connector.default_solver  # config.yaml chooses solver=for_<connector>
        store.store(group="solver", name=f"for_{name}", node=SOLVERS[default].Settings(name=default))
    for name, solver in SOLVERS.items():
        store.store(group="solver", name=name, node=solver.Settings(name=name))
