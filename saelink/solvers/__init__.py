"""Solvers: how a connector's weights are found. One file each, registered by being here.

A solver file has a class `Solver` (a subclass of `base.Solver`) with the dataclass of its settings as
`Solver.Config`; the file's name is what `solver=` takes.
"""

from __future__ import annotations

import importlib
import pkgutil

from saelink.solvers.base import Solver

SOLVERS: dict[str, type[Solver]] = {
    module.name: importlib.import_module(f"{__name__}.{module.name}").Solver
    for module in pkgutil.iter_modules(__path__)
    if module.name not in ("base", "kernels")
}
