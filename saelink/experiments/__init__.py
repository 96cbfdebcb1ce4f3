"""Experiments: many fits, one table, one picture. One file each, registered by being here.

An experiment file has a class `Experiment` (a subclass of `base.Experiment`); the file's name is what
`experiment.names` takes.
"""

from __future__ import annotations

import importlib
import pkgutil

from saelink.experiments.base import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    module.name: importlib.import_module(f"{__name__}.{module.name}").Experiment()
    for module in pkgutil.iter_modules(__path__)
    if module.name not in ("base", "runner")
}
