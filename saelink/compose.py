"""The registries meet Hydra: the schema, every connector, solver and experiment become options and settings.

A file in conf/connector or conf/solver shows the settings and starts from the types that are registered here. A
connector or solver without a file there, such as one that you add, becomes an option all the same.

Jobs take the settings from the registries. What runs none (`--help`, `--cfg`, completion, the look for settings that do
not exist) takes the same from the files' source, see declared.py, and never imports torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from saelink.config.files import conf_dir
from saelink.config.schema import Config, ExperimentConfig
from saelink.declared import declared

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.config_store import ConfigStore
    from omegaconf import DictConfig


class Options(NamedTuple):
    """What can be chosen, by name."""

    connectors: Mapping[str, type[Any]]
    """The settings of each connector,"""
    default_solvers: Mapping[str, str]
    """and the solver it takes unless another is chosen."""
    solvers: Mapping[str, type[Any]]
    owners: Mapping[str, type[Any]]
    """The settings of each experiment that has a name of its own for them."""
    experiment: type[Any]
    """The settings of all experiments: the shared ones, and by name those that each owns."""


@cache
def registered_options() -> Options:
    """From the registries: the classes that jobs use."""
    from saelink.connectors import CONNECTORS
    from saelink.experiments import EXPERIMENTS
    from saelink.fit.solvers import SOLVERS

    owners = {name: experiment.Settings for name, experiment in EXPERIMENTS.items() if experiment.owner == name}
    return Options(
        {name: connector.Settings for name, connector in CONNECTORS.items()},
        {name: connector.default_solver for name, connector in CONNECTORS.items()},
        {name: solver.Settings for name, solver in SOLVERS.items()},
        owners,
        _experiment_settings(owners, "ExperimentSettings"),
    )


@cache
def declared_options() -> Options:
    """The same, from the files' source."""
    connectors = declared("saelink.connectors", "Connector", but=("base", "exported", "wide_linear"))
    solvers = declared("saelink.fit.solvers", "Solver", but=("base",))
    experiments = declared("saelink.experiments", "Experiment", but=("base", "fits", "tables", "runner"))
    owners = {name: each.settings for name, each in experiments.items() if not each.overrides("owner")}
    return Options(
        {name: each.settings for name, each in connectors.items()},
        {name: each.constant("default_solver") for name, each in connectors.items()},
        {name: each.settings for name, each in solvers.items()},
        owners,
        _experiment_settings(owners, "DeclaredExperimentSettings"),
    )


def _experiment_settings(owners: Mapping[str, type[Any]], name: str) -> type[Any]:
    return dataclasses.make_dataclass(
        name,
        [(owner, kind, dataclasses.field(default_factory=kind)) for owner, kind in owners.items()],
        bases=(ExperimentConfig,),
        namespace={"__module__": __name__},
    )


def __getattr__(name: str) -> Any:
    """The types of experiments' settings, by which another process of a multirun finds them."""
    if name in ("ExperimentSettings", "DeclaredExperimentSettings"):
        return (registered_options() if name == "ExperimentSettings" else declared_options()).experiment
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register(options: Options | None = None) -> None:
    """Tell Hydra the schema, and every connector and solver as an option of its group; None takes the registries'.

    The schemas are in no group, because Hydra's help and completion list every group there is.
    """
    from hydra.core.config_store import ConfigNode, ConfigStore

    options = options or registered_options()
    store = ConfigStore.instance()
    store.repo["schema.yaml"] = ConfigNode("schema.yaml", _schema(options.experiment), None, "_global_", None)
    for name, settings in options.connectors.items():
        solver = {"override /solver@_global_.solver": options.default_solvers[name]}
        _register(store, "connector", name, settings, solver)
    for name, settings in options.solvers.items():
        _register(store, "solver", name, settings)


@contextmanager
def composing(options: Options | None = None) -> Generator[ConfigLoader, None, None]:
    """Inside it Hydra's `compose` finds everything registered here; a caller's own Hydra is back afterwards."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register(options)
    running = GlobalHydra.instance()
    outer = running.hydra  # of a caller that is a Hydra application itself
    running.clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            yield GlobalHydra.instance().config_loader()
    finally:
        running.hydra = outer


def choices_of(loader: ConfigLoader, overrides: Sequence[str]) -> dict[str, list[str]]:
    """By group its choices, those in folders of the user's own (hydra.searchpath) among them; Hydra's groups apart."""
    from hydra.core.object_type import ObjectType

    places = [override for override in overrides if override.startswith("hydra.searchpath=")]

    def options(group: str, kind: ObjectType) -> list[str]:
        if places:
            return sorted(loader.get_group_options(group, kind, "config", places))
        sources = [source for source in loader.get_sources() if source.available() and source.is_group(group)]
        return sorted({name for source in sources for name in source.list(group, kind)})

    found = {name: options(name, ObjectType.CONFIG) for name in options("", ObjectType.GROUP) if name != "hydra"}
    return {name: each for name, each in found.items() if each}


@cache
def _schema(experiment: type[Any]) -> DictConfig:
    """The types of all settings, read once: that takes longer than a job's settings, and Hydra copies what it loads."""
    from omegaconf import OmegaConf

    return OmegaConf.structured(Config(experiment=experiment()))


@cache
def _types(settings: type[Any], name: str) -> DictConfig:
    """Those of one connector or solver."""
    from omegaconf import OmegaConf

    return OmegaConf.structured(settings(name=name))


def _register(store: ConfigStore, group: str, name: str, settings: type[Any], *defaults: dict[str, str]) -> None:
    """The types of an option, and where conf/ has no file of it, what that file would say."""
    from hydra.core.config_store import ConfigNode

    schema = f"schema_{group}_{name}"
    store.repo[f"{schema}.yaml"] = ConfigNode(f"{schema}.yaml", _types(settings, name), None, None, None)
    if not (conf_dir() / group / f"{name}.yaml").is_file():
        store.store(group=group, name=name, node={"defaults": [f"/{schema}@_here_", *defaults]})
